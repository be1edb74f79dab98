"""How one component is executed, and the estimate of its memory and time."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import FLOATS
from lowmem_if.planning.estimates.memory_layout import CONTIGUOUS
from lowmem_if.request.input_tiles import UPSCALER_SIDE

WHOLE, STRIPS, RAM_STRIPS, TILES = "whole", "strips", "ram_strips", "tiles"
"""How the VAE decodes: as diffusers does; in strips of rows that are kept where it computes, or in RAM;
or in diffusers' tiles, which only plans of earlier versions contain."""


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """How a component keeps its weights and how it draws: everything that its memory use depends on.

    Attributes:
        strategy, device: where the weights are kept, and where they are used.
        storage_dtype, compute_dtype: the types that weights are kept in and that a network computes in.
        batch: images per batch, or prompts per pass of a streaming text encoder.
        decoding: how the VAE decodes.
        resident_bytes: weights of a streaming network that are kept on the compute device.
        area: ratio of the largest image's pixels to those of the square that the stage was trained on.
        tile: side in pixels of the tiles for enlarging the user's own images; 0: no tiles.
        speedup: factor by which compiling makes a step faster; 1: the UNet is not compiled.
        merge_bytes: RAM needed while LoRAs are merged into the weights.
        layout: `contiguous` or `channels_last`: the order of the UNet's numbers in memory.
    """

    component: str
    strategy: str
    storage_dtype: str
    compute_dtype: str
    batch: int
    device: str
    decoding: str = WHOLE
    resident_bytes: int = 0
    area: float = 1.0
    tile: int = 0
    speedup: float = 1.0
    merge_bytes: int = 0
    layout: str = CONTIGUOUS

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        decoding = _DECODINGS[self.decoding]
        resident = f", {self.resident_bytes / 1e9:.1f} GB resident" if self.resident_bytes else ""
        parts = f", tiles of {self.tile}" if self.tile else ""
        compiled = ", compiled" if self.speedup > 1 else ""
        words = f"{self.strategy} {self.storage_dtype}{resident}{batch}{decoding}{parts}{compiled}"
        return words.replace("_", " ")

    @property
    def facts(self) -> catalog.Component:
        return catalog.facts(self.component)

    @property
    def float_dtype(self) -> str:
        """The number type of the weights that are not quantised."""
        return self.storage_dtype if self.storage_dtype in FLOATS else self.compute_dtype

    @property
    def quantises_unet(self) -> bool:
        """Whether the weights of a UNet are kept as whole numbers."""
        return self.storage_dtype not in FLOATS and self.facts.draws

    @property
    def decodes_in_ram(self) -> bool:
        """Whether the decoder's activations are kept in RAM, and strips of them cross the bus."""
        return self.decoding == RAM_STRIPS

    @property
    def at_once(self) -> int:
        """How many images are in memory at once; prompts are always encoded one at a time."""
        return 1 if self.facts.encodes else self.batch

    @property
    def drawn_area(self) -> float:
        """`area` of one UNet input: of the whole image, or of one tile."""
        return min(self.area, (self.tile / UPSCALER_SIDE) ** 2) if self.tile else self.area


_DECODINGS = {
    WHOLE: "",
    STRIPS: ", VAE in strips",
    RAM_STRIPS: ", VAE in strips from RAM",
    TILES: ", tiled VAE",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory and time that a component is expected to need.

    Attributes:
        vram_bytes: peak on the accelerator: tensors only, or everything that torch's allocator reserves
            if the plan counts that.
        ram_bytes: peak in RAM.
        read_bytes: bytes read from disk.
        seconds: time of the whole step; 0 if only the memory was estimated.
    """

    vram_bytes: int
    ram_bytes: int
    read_bytes: int
    seconds: float = 0.0
