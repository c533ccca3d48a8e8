"""The reference and CUDA backend: it steps the modules of `slipstream.nn` for many slots together."""
