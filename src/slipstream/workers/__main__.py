"""The entry point of the processes that a parent starts: `python -m slipstream.workers JOB LINK`."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys


def main() -> None:
    """Run a pickled job. The arguments are the descriptors of the job and of the link to the parent."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # a terminal or a service manager sends them to all; the parent decides
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        sys.path[:] = pickle.load(file)
        job = pickle.load(file)
    job.run(socket.socket(fileno=int(sys.argv[2])))


if __name__ == "__main__":
    main()
