"""Which weights of a UNet are kept in 8 or 4 bits, and how many bytes they take.

The text encoder's 8-bit and 4-bit weights are bitsandbytes', and not described here.
"""

from __future__ import annotations

from collections.abc import Sequence

INT8, INT4 = "int8", "int4"

GROUP = 32
"""How many 4-bit numbers of a row share a scale."""

_LEFT_ALONE = ("conv_in.", "conv_out.")
"""The first and the last convolution, which are small, and every error of which is seen."""

_EMBEDDING = "class_embedding.weight"
"""The upscaler's table of noise levels, of which a pass reads two rows."""


def is_quantised(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight of a UNet becomes whole numbers: matrices of linear layers and convolutions."""
    matrix = len(shape) > 1 and name.endswith(".weight") and name != _EMBEDDING
    return matrix and not name.startswith(_LEFT_ALONE)


def quantised_bytes(numbers: int, rows: int, storage: str) -> int:
    """Bytes of quantised weights; short rows of 4-bit numbers take a little more, for whole groups.

    Args:
        numbers, rows: of all matrices together.
    """
    if storage == INT8:
        return numbers + 4 * rows
    return numbers // 2 + 2 * numbers // GROUP
