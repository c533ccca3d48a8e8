"""Measurements on one GPU: see `python -m benchmarks.gpu --help`."""
