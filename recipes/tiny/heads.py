"""Copy the phone heads of a run to a model that was made from it: `python recipes/tiny/heads.py RUN/model MODEL`.

`slipstream convert` leaves them out. They are stored in float16, half as large as a run writes them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

HEADS, PHONES = "training.safetensors", "phones.json"


def main(source: Path, model: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(source / HEADS).items()}, model / HEADS)
    shutil.copyfile(source / PHONES, model / PHONES)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
