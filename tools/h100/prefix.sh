# Install the wheels into a folder, and set the environment of this shell: `. tools/h100/prefix.sh WHEELS [PREFIX]`. A new folder by default.
prefix=${2:-$(mktemp -d)}
python3 -m pip install --quiet --no-deps --no-index --target "$prefix" "$1"/*.whl
export PYTHONPATH="$PWD/src:$PWD:$prefix${PYTHONPATH:+:$PYTHONPATH}"
export NO_TORCH_COMPILE=1 # moshi would compile its norms, which takes longer than the measurement
export LD_LIBRARY_PATH="$prefix/espeakng_loader${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ESPEAK_DATA_PATH="$prefix/espeakng_loader"
