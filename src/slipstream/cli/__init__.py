"""The command line. Importing it loads nothing, so that Ctrl-C during the imports ends without a traceback."""

from __future__ import annotations

import atexit
import signal
import sys


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 after Ctrl-C, 143 after SIGTERM."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:  # which a shell sets for a background process
        # While modules are imported and when the interpreter exits, nothing needs cleaning up.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:2] == ["serve"] and hasattr(signal, "SIGHUP"):
        # Until the server handles it: a reload while the model loads waits instead of ending the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    from slipstream.cli.app import run

    try:
        run()
    finally:
        signal.signal(signal.SIGINT, handler)
