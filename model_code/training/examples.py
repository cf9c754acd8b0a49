"""What a channel becomes, whatever files it came in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Examples:
    """Preprocessed inputs, float32 (n, ...), and labels, int64 (n,), each the index of a class."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
