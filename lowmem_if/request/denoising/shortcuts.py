"""Work that a stage leaves out under `--prefer fast`: which passes of the UNet, and which guidance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """What is left out of a schedule's denoising steps.

    Guidance matters most while noise is high (Kynkaanniemi et al., "Applying guidance in a limited
    interval", 2024); afterwards the prompt alone is computed, in half the time. What the UNet gives
    changes slowly in the middle of a schedule, so that every other output can be forecast there (as
    Spectrum and EasyCache do, 2025).

    Attributes:
        guided_share: share of the steps, from the first, that use guidance; 1: all of them.
        first: steps from the first that are all computed.
        every: of the steps after `first`, every n-th is computed, and the last one; 1: all of them.

    Raises:
        ValueError: a forecast would have fewer than two outputs to continue.
    """

    guided_share: float = 1.0
    first: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.every > 1 and self.first < 2:
            raise ValueError("a forecast needs two outputs: compute at least the first two steps")

    def guides(self, step: int, count: int) -> bool:
        """Whether a step of `count`, from 0, uses guidance."""
        return step < self.guided_share * count

    def computes(self, step: int, count: int) -> bool:
        """Whether a step of `count`, from 0, computes the UNet; otherwise its output is forecast."""
        later = step - self.first
        return later < 0 or step == count - 1 or later % self.every == self.every - 1


EVERYTHING = Shortcuts()
"""Nothing is left out."""

FAST_SHORTCUTS = Shortcuts(guided_share=0.6, first=4, every=2)
"""What `--prefer fast` leaves out in addition to steps; chosen by measuring (docs/log.md)."""
