"""The reference and CUDA backend: PyTorch modules whose streaming state is a value.

`y, state = module(x, state)`: with `state=None` the whole sequence at once (this also trains), with a state one more
piece of a stream.
"""
