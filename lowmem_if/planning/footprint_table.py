"""What dry runs of the real networks took: a table that ships with the package, read without torch.

`make footprints` writes it (`lowmem_if/simulate/table.py`). A network is known by its folder, its number of
parameters and its first width, so that a copy in a user's folder is known, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from lowmem_if.errors import CheckpointError
from lowmem_if.planning.catalog import Module

FILE = Path(__file__).with_name("footprints.json")

FUSED, MATH = "fused", "math"
ATTENTION = (FUSED, MATH)
"""Kernels of attention: those that hold their output only (flash and memory-efficient), and products."""


class Pass(BaseModel):
    """One pass of a network beside its weights, as a dry run saw it.

    Attributes:
        network: where it is found first: cascade, folder there.
        folder, parameters, channels: what it is known by.
        item_bytes: of the numbers it computes with.
        attention: `fused` or `math`.
        tiled: whether the autoencoder works in tiles.
        activation_bytes: the peak beside the weights for one picture (a guided pair) or text, its
            inputs and output counted; `more_bytes` for every further one: exact, for peaks are linear
            in the batch.
        largest_layer_bytes: of the layer with the most weights.
        flops: for one picture or text; a multiplication and an addition count as two.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    network: str
    folder: str
    parameters: PositiveInt
    channels: NonNegativeInt
    item_bytes: PositiveInt
    attention: Annotated[str, Field(pattern=f"^({FUSED}|{MATH})$")]
    tiled: bool
    activation_bytes: PositiveInt
    more_bytes: NonNegativeInt
    largest_layer_bytes: PositiveInt
    flops: PositiveInt

    def activations(self, batch: int) -> int:
        """Peak bytes beside the weights for `batch` pictures or texts at once."""
        return self.activation_bytes + (batch - 1) * self.more_bytes


class FootprintTable(BaseModel):
    """The whole table, with the versions of the libraries whose kernels and hooks it saw."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    versions: dict[str, str]
    passes: tuple[Pass, ...]


@dataclass(frozen=True, slots=True)
class _Key:
    folder: str
    parameters: int
    channels: int
    item_bytes: int
    attention: str
    tiled: bool


def look_up(
    module: Module, *, item_bytes: int, attention: str = FUSED, tiled: bool = False
) -> Pass | None:
    """One pass of a network; None if the table lacks it."""
    key = _Key(
        module.folder,
        module.weights.parameters,
        module.channels,
        item_bytes,
        attention,
        tiled,
    )
    return _passes().get(key)


@cache
def read_table(file: Path = FILE) -> FootprintTable:
    """The shipped table.

    Raises:
        CheckpointError: the file is not the one that was installed.
    """
    try:
        return FootprintTable.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: {first}; install lowmem-if again") from error


@cache
def _passes() -> dict[_Key, Pass]:
    return {
        _Key(
            row.folder, row.parameters, row.channels, row.item_bytes, row.attention, row.tiled
        ): row
        for row in read_table().passes
    }
