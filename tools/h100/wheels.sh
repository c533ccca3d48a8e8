#!/usr/bin/env bash
# Collect the packages that a GPU machine without a network lacks, and the source, in one folder to copy there.
#
#     tools/h100/wheels.sh FOLDER [PYTHON_VERSION]     FOLDER/wheels (about 3 MB) and FOLDER/source
set -euo pipefail
folder=$1
version=${2:-3.12}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$folder/wheels" "$folder/source"
# moshi pins older versions of what is installed there, and nothing of it beyond its own code is used.
python3 -m pip download --quiet --no-deps --only-binary :all: --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform any --dest "$folder/wheels" \
    annotated-types moshi soxr typing-inspection
# pydantic needs one version of its core: with its dependencies, pip finds it.
python3 -m pip download --quiet --only-binary :all: --python-version "$version" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform any --dest "$folder/wheels" pydantic
git -C "$root" archive HEAD src benchmarks tools tests pyproject.toml README.md \
    ':(exclude)src/slipstream/models' ':(exclude)tests/data' | tar -x -C "$folder/source"
du -sm "$folder"/* | awk '{ print $2 ": " $1 " MB" }'
size=$(du -sm "$folder" | cut -f1)
[ "$size" -le 64 ] || { echo "$folder has $size MB: expected at most 64" >&2; exit 1; }
