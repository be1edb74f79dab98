"""The memory that dry runs of the real networks needed: a table in the package, read without torch.

`make footprints` writes it (`simulate/write_memory_table.py`). Folder, number of parameters and first
width identify a network, so a copy in a user's folder is found too. Other rows are for a whole component
under a strategy, from a dry run of its stage with hooks and allocator. Without such a row, `memory.py`
composes the estimate from the passes of the component's networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2
from lowmem_if.cascade.parts import Module, Part
from lowmem_if.errors import CheckpointError

FILE = Path(__file__).with_name("memory_table.json")

FUSED, MATH = "fused", "math"
ATTENTION = (FUSED, MATH)
"""Attention kernels: fused ones (flash, memory-efficient) keep only the output; others keep products."""

SAME_IN_16_BITS = (STAGE_1, STAGE_2)
"""Components that need the same memory in bfloat16 and float16: one row covers both."""


class PassProfile(BaseModel):
    """The memory of one pass of a network, without its weights, from a dry run.

    Attributes:
        network: the first cascade with this network, and its folder there.
        folder, parameters, channels: the key by which the network is found.
        item_bytes: bytes per number of the compute dtype.
        attention: `fused` or `math`.
        activation_bytes: peak without the weights for one image (a guided pair) or text, including
            inputs and output.
        more_bytes: bytes for each further image or text; exact, because peaks are linear in the batch.
        largest_layer_bytes: size of the layer with the most weights.
        flops: operations for one image or text; a multiplication and an addition count as two.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    network: str
    folder: str
    parameters: PositiveInt
    channels: NonNegativeInt
    item_bytes: PositiveInt
    attention: Annotated[str, Field(pattern=f"^({FUSED}|{MATH})$")]
    activation_bytes: PositiveInt
    more_bytes: NonNegativeInt
    largest_layer_bytes: PositiveInt
    flops: PositiveInt

    def activations(self, batch: int) -> int:
        """Peak bytes without the weights for a batch of images or texts."""
        return self.activation_bytes + (batch - 1) * self.more_bytes


class StepProfile(BaseModel):
    """The memory of one component's step from loading to release, from a dry run with batch 1.

    Attributes:
        modules: folder -> parameters of its networks; the key by which the component is found.
        loading_bytes, drawing_bytes, decoding_bytes: peaks on the accelerator while weights load, while
            the network runs, and while images are decoded (torch's `max_memory_allocated`).
        reserved_bytes: peak of the memory that torch's allocator reserved from the driver.
        anonymous_bytes, pinned_bytes: host memory in addition to the process itself.
        to_device_bytes: bytes copied to the device in each denoising step after the first.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    component: str
    modules: dict[str, PositiveInt]
    strategy: str
    storage: str
    attention: Annotated[str, Field(pattern=f"^({FUSED}|{MATH})$")]
    loading_bytes: NonNegativeInt
    drawing_bytes: PositiveInt
    decoding_bytes: NonNegativeInt
    reserved_bytes: PositiveInt
    anonymous_bytes: NonNegativeInt
    pinned_bytes: NonNegativeInt
    to_device_bytes: NonNegativeInt


class MemoryTable(BaseModel):
    """The whole table, with the versions of the libraries that the dry runs used.

    The rows are valid for other versions too: `test_memory_table.py` shows how closely. `turns` are the
    rows for the steps of whole components.
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


def look_up(module: Module, *, item_bytes: int, attention: str = FUSED) -> PassProfile | None:
    """The row for one pass of a network; None if the table has none."""
    key = _Key(
        module.folder,
        module.weights.parameters,
        module.channels,
        item_bytes,
        attention,
    )
    return _passes().get(key)


def look_up_step(
    part: Part, component: str, strategy: str, storage: str, *, attention: str
) -> StepProfile | None:
    """The row for a component's step under a strategy; None if the table has none."""
    if component in SAME_IN_16_BITS and storage == "bfloat16":
        storage = "float16"
    return _steps().get((component, part_key(part), strategy, storage, attention))


def part_key(part: Part) -> frozenset[tuple[str, int]]:
    """The identity of a component in the table: the folders of its networks, and their parameters."""
    return frozenset((module.folder, module.weights.parameters) for module in part.modules)


@cache
def read_table(file: Path = FILE) -> MemoryTable:
    """Read the table in the package.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return MemoryTable.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: {first}; reinstall lowmem-if") from error


@cache
def _passes() -> dict[_Key, PassProfile]:
    return {
        _Key(row.folder, row.parameters, row.channels, row.item_bytes, row.attention): row
        for row in read_table().passes
    }


@cache
def _steps() -> dict[tuple[str, frozenset[tuple[str, int]], str, str, str], StepProfile]:
    return {
        (
            row.component,
            frozenset(row.modules.items()),
            row.strategy,
            row.storage,
            row.attention,
        ): row
        for row in read_table().turns
    }
