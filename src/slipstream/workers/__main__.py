"""The entry point of the processes that a parent starts: `python -m slipstream.workers JOB LINK`."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

LOOK_SECONDS = 0.2


def main() -> None:
    """Run a pickled job. The arguments are the descriptors of the job and of the link to the parent."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # a terminal or a service manager sends them to all; the parent decides
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[2]))
    threading.Thread(target=_leave_with_parent, args=(end.dup(),), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        sys.path[:] = pickle.load(file)
        job = pickle.load(file)
    job.run(end)


def _leave_with_parent(end: socket.socket) -> None:
    """End the process when the parent is gone, whatever the other threads do."""
    poll = select.poll()
    poll.register(end, select.POLLIN)
    while poll.poll():
        with suppress(BlockingIOError):  # another thread has read the message
            if not end.recv(1, socket.MSG_PEEK):
                os._exit(1)
        time.sleep(LOOK_SECONDS)  # messages are for another thread


if __name__ == "__main__":
    main()
