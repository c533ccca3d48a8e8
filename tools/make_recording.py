"""Makes docs/images/demo.svg, the picture in the README: a real run of the command line, as a terminal shows it.

.venv/bin/python tools/make_recording.py
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
COMMANDS = [
    "slipstream transcribe examples/sample.opus --words",
    "slipstream transcribe examples/sample.opus --format srt --delay-report",
]
COLUMNS = 112


def main() -> None:
    screen = Console(record=True, width=COLUMNS, file=StringIO(), highlight=False)
    for command in COMMANDS:
        arguments = [sys.executable, "-m", *shlex.split(command)]
        output = subprocess.check_output(arguments, cwd=ROOT, stderr=subprocess.STDOUT, text=True)
        screen.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        screen.print(Text(output))
    screen.save_svg(str(ROOT / "docs" / "images" / "demo.svg"), title="slipstream")


if __name__ == "__main__":
    main()
