"""What dry runs of the real networks took: a table that ships with the package, read without torch.

`make footprints` writes it (`simulate/write_memory_table.py`). A network is known by its folder, number
of parameters and its first width, so that a copy in a user's folder is known, too. Of a whole component
under a strategy there are rows that a dry run of its stage gave, hooks and allocator included; what has
none is put together from the passes of its networks (`memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, Module, Part
from lowmem_if.errors import CheckpointError

FILE = Path(__file__).with_name("memory_table.json")

FUSED, MATH = "fused", "math"
ATTENTION = (FUSED, MATH)
"""Kernels of attention: those that hold their output only (flash and memory-efficient), and products."""


SAME_IN_16_BITS = (STAGE_1, STAGE_2)
"""Components that take in bfloat16 what they take in float16: one row is for both."""


class PassProfile(BaseModel):
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


class StepProfile(BaseModel):
    """One component's turn, loading to leaving, as a dry run of its stage saw it; one picture at a time.

    Attributes:
        modules: folder -> parameters of its networks, by which it is known.
        loading_bytes, drawing_bytes, decoding_bytes: at most on the accelerator while weights load,
            while the network works, and while pixels come out, as torch's allocator counts them
            (`max_memory_allocated`); `reserved_bytes`: what it held from the driver.
        anonymous_bytes, pinned_bytes: on the host, beside the process itself.
        to_device_bytes: copied in each step after the first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    component: str
    modules: dict[str, PositiveInt]
    strategy: str
    storage: str
    attention: Annotated[str, Field(pattern=f"^({FUSED}|{MATH})$")]
    tiled: bool
    loading_bytes: NonNegativeInt
    drawing_bytes: PositiveInt
    decoding_bytes: NonNegativeInt
    reserved_bytes: PositiveInt
    anonymous_bytes: NonNegativeInt
    pinned_bytes: NonNegativeInt
    to_device_bytes: NonNegativeInt


class MemoryTable(BaseModel):
    """The whole table, with the versions of the libraries that the dry runs used.

    The rows hold for the other versions, too: `test_memory_table.py` states how closely.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    versions: dict[str, str]
    passes: tuple[PassProfile, ...]
    turns: tuple[StepProfile, ...]


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
) -> PassProfile | None:
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


def look_up_step(
    part: Part, component: str, strategy: str, storage: str, *, attention: str, tiled: bool
) -> StepProfile | None:
    """A component's turn under a strategy; None if the table lacks it."""
    if component in SAME_IN_16_BITS and storage == "bfloat16":
        storage = "float16"
    return _turns().get((component, _of(part), strategy, storage, attention, tiled))


def _of(part: Part) -> frozenset[tuple[str, int]]:
    return frozenset((module.folder, module.weights.parameters) for module in part.modules)


@cache
def read_table(file: Path = FILE) -> MemoryTable:
    """The shipped table.

    Raises:
        CheckpointError: the file is not the one that was installed.
    """
    try:
        return MemoryTable.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: {first}; install lowmem-if again") from error


@cache
def _passes() -> dict[_Key, PassProfile]:
    return {
        _Key(
            row.folder, row.parameters, row.channels, row.item_bytes, row.attention, row.tiled
        ): row
        for row in read_table().passes
    }


@cache
def _turns() -> dict[tuple[str, frozenset[tuple[str, int]], str, str, str, bool], StepProfile]:
    return {
        (
            row.component,
            frozenset(row.modules.items()),
            row.strategy,
            row.storage,
            row.attention,
            row.tiled,
        ): row
        for row in read_table().turns
    }
