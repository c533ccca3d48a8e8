"""`python -m slipstream`: the command line, where the `slipstream` script is not on the path."""

from __future__ import annotations

from slipstream.cli import main

if __name__ == "__main__":
    main()
