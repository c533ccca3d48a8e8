"""The reference and CUDA backend: PyTorch modules whose streaming state is a value.

`y, state = module(x, state)`: with `state=None`, `x` is a whole sequence (also in training), with a state, the next
piece of a stream.
"""
