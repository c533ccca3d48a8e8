#!/usr/bin/env bash
# Collect what a GPU machine without a network lacks, in one folder of at most 64 MB to copy there.
#
#     tools/h100/wheels.sh FOLDER [PYTHON_VERSION [PACK...]]
#
# FOLDER/wheels (18 MB): packages, among them espeak-ng and a decoder of Opus. FOLDER/source (5 MB). With packs
# of samples, FOLDER/speech: as much of them as fits, as Opus of 12 kbit/s; for that, PYTHON needs Slipstream.
set -euo pipefail
folder=$1
version=${2:-3.12}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$folder/wheels" "$folder/source"
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any)
fetch=("$python" -m pip download --quiet --only-binary :all: --python-version "$version" "${platforms[@]}" --dest "$folder/wheels")
# moshi pins older versions of what is installed there, and nothing of it beyond its own code is used.
"${fetch[@]}" --no-deps annotated-types cffi espeakng-loader moshi protobuf soundfile soxr typing-inspection
# pydantic needs one version of its core: with its dependencies, pip finds it.
"${fetch[@]}" pydantic
git -C "$root" archive HEAD src benchmarks tools tests recipes/tiny pyproject.toml README.md \
    ':(exclude)src/slipstream/models' ':(exclude)tests/data' ':(exclude)recipes/tiny/logs' | tar -x -C "$folder/source"
git -C "$root" archive HEAD src/slipstream/models/tiny/tokenizer.model | tar -x -C "$folder/source"
if [ $# -gt 2 ]; then
    PYTHONPATH="$root/src:$root" "$python" -m tools.h100.speech "$folder" "${@:3}" --megabytes "${MEGABYTES:-30}"
fi
du -sm "$folder"/* | awk '{ print $2 ": " $1 " MB" }'
size=$(du -sm "$folder" | cut -f1)
[ "$size" -le 64 ] || { echo "$folder has $size MB: expected at most 64" >&2; exit 1; }
