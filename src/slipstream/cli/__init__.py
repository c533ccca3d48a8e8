"""The command line. Its start loads nothing: what Ctrl-C interrupts before that ends without a traceback."""

from __future__ import annotations

import atexit
import signal


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C, 143 after SIGTERM."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:  # which a shell sets for a background process
        # Nothing is to be cleaned up while modules are imported, nor when the interpreter exits.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    from slipstream.cli.app import run

    try:
        run()
    finally:
        signal.signal(signal.SIGINT, handler)
