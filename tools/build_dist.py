"""Build the wheel and the source distribution in `dist`, and check that both install and run in a new environment.

python tools/build_dist.py
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
NEEDED = (
    "slipstream/py.typed",
    "slipstream/server/page/index.html",
    "slipstream/server/page/slipstream/index.js",
    "slipstream/server/api/openapi.yaml",
)
CONSTRAINTS = str(ROOT / "constraints.txt")
INSTALL = ("-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--constraint", CONSTRAINTS)


def main() -> None:
    for old in DIST.glob("slipstream_stt-*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder) / "build")
        run(python, *INSTALL, "hatchling")
        run(python, "-m", "hatchling", "build", "--directory", str(DIST))
        (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
        check_files(wheel, source)
        python = environment(Path(folder) / "check")
        run(python, *INSTALL, str(wheel))
        version = run(python, "-m", "slipstream", "--version").strip()
        text = run(python, "-m", "slipstream", "transcribe", str(ROOT / "examples" / "sample.opus"))
        run(python, *INSTALL, "--force-reinstall", "--no-deps", str(source))
        if run(python, "-m", "slipstream", "--version").strip() != version:
            sys.exit(f"{source.name} has another version than {wheel.name}")
    print(f"{wheel.name} and {source.name}: {version}, transcribes the sample: {text.split()[:4]}")


def check_files(wheel: Path, source: Path) -> None:
    """Exit with a message if a needed file is missing, or the description is not one that an index can show."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    with tarfile.open(source) as archive_of_source:
        sources = archive_of_source.getnames()
    missing = [name for name in NEEDED if name not in names]
    missing += [name for name in NEEDED if not any(path.endswith(f"src/{name}") for path in sources)]
    if missing or not any(name.startswith("slipstream/models/tiny/") for name in names):
        sys.exit(f"missing from the packages: {', '.join(missing) or 'the built-in model'}")
    if headers["Description-Content-Type"] != "text/markdown" or not str(headers.get_payload()).startswith("# "):
        sys.exit(f"{wheel.name}: the description is not Markdown")


def environment(folder: Path) -> Path:
    """Create a virtual environment, and return its interpreter."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def run(*command: Path | str) -> str:
    """Run a command in the repository, and return its output. Raises `CalledProcessError`."""
    return subprocess.run([*map(str, command)], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    main()
