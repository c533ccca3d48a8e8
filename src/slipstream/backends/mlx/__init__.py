"""The backend for Apple silicon: MLX modules whose streaming state is a value.

`y, state = module(x, state)` always streams. MLX arrays are immutable: a step takes the old state and returns the new
one, and MLX reuses the memory of arrays without references. Whole sequences run in the PyTorch backend, which the tests
compare with. Channels are last, as in MLX's convolutions.
"""

from __future__ import annotations

import os

# From M5 on, MLX by default multiplies float32 matrices with ten bits, which changes the codec's tokens
# (github.com/ml-explore/mlx/issues/3860). It reads this variable once, at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
