"""The backend for Apple silicon: MLX modules whose streaming state is a value.

`y, state = module(x, state)` always streams: an MLX array never changes, so a step takes the old state and returns the
new one, and MLX reuses the memory of what nobody holds any more. The offline form is the PyTorch backend's, which the
tests compare with. Arrays are laid out as MLX convolutions want them, channels last.
"""

from __future__ import annotations

import os

# From M5 on, MLX multiplies float32 matrices with ten bits unless told not to, and the codec's tokens change
# (github.com/ml-explore/mlx/issues/3860). It looks once, at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
