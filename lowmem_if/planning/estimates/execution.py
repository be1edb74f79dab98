"""How one component is executed, and what that is expected to take."""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_if.cascade import catalog
from lowmem_if.request.tiling import UPSCALER_SIDE


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """How a component's weights are held and how it draws: all that its memory use depends on.

    Attributes:
        strategy, storage_dtype, compute_dtype, device: where the weights are kept and in which types.
        batch: images drawn together, or prompts per pass of a text encoder that streams.
        vae_tiling: whether the VAE decodes in tiles.
        resident_bytes: weights of a streaming network that stay on the compute device.
        area: pixels of the largest image over those of the square that the stage was made for.
        tile: side in pixels of the tiles that the user's own images are enlarged in; 0: whole.
        speedup: factor by which compiling makes a step faster; 1: the UNet is not compiled.
        merge_bytes: RAM needed while LoRAs are merged into the weights.
    """

    component: str
    strategy: str
    storage_dtype: str
    compute_dtype: str
    batch: int
    device: str
    vae_tiling: bool = False
    resident_bytes: int = 0
    area: float = 1.0
    tile: int = 0
    speedup: float = 1.0
    merge_bytes: int = 0

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        tiled = ", tiled VAE" if self.vae_tiling else ""
        resident = f", {self.resident_bytes / 1e9:.1f} GB resident" if self.resident_bytes else ""
        parts = f", tiles of {self.tile}" if self.tile else ""
        compiled = ", compiled" if self.speedup > 1 else ""
        words = f"{self.strategy} {self.storage_dtype}{resident}{batch}{tiled}{parts}{compiled}"
        return words.replace("_", " ")

    @property
    def at_once(self) -> int:
        """How many images are in memory together; prompts are always encoded one at a time."""
        return 1 if self.component == catalog.TEXT_ENCODER else self.batch

    @property
    def drawn_area(self) -> float:
        """`area` of what is drawn at once: of the image, or of one tile."""
        return min(self.area, (self.tile / UPSCALER_SIDE) ** 2) if self.tile else self.area


@dataclass(frozen=True, slots=True)
class Estimate:
    """Peak bytes of a component on the accelerator and in RAM, bytes read from disk, and seconds.

    `vram_bytes` counts tensors, or all that torch's allocator reserves where the plan counts that.
    """

    vram_bytes: int
    ram_bytes: int
    read_bytes: int
    seconds: float = 0.0
    """0 where only the memory was estimated."""
