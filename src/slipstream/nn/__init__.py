"""The model as PyTorch modules whose streaming state is a value: the backend `torch` steps them, training trains them.

`y, state = module(x, state)`: with `state=None`, `x` is a whole sequence (also in training), with a state, the next
piece of a stream.
"""
