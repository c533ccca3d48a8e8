"""Array types in signatures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Audio and probabilities are float32 on the host.
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
