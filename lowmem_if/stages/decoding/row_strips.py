"""An activation of a whole picture, kept as strips of rows, and how layers walk over it.

A strip is a contiguous tensor (1, channels, rows, width) of its own, so that the memory of one strip can
be freed while others are in use. It is not in channels_last order: oneDNN's convolutions in float32 are
as quick there, but four times as far from the exact result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch


class Moments:
    """The mean and variance of each channel over a whole picture, from strips that are added one by one.

    Two variances are joined by their means' distance (Chan, Golub and LeVeque 1979): a sum of squares
    would lose digits where a mean is large.
    """

    def __init__(self) -> None:
        self._pixels = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, strip: torch.Tensor) -> None:
        """Count the numbers of one strip."""
        pixels = strip.shape[2] * strip.shape[3]
        mean, variance = _strip_moments(strip)
        if not self._pixels:
            self._pixels, self._mean, self._squares = pixels, mean, variance * pixels
            return
        total, apart = self._pixels + pixels, mean - self._mean
        self._mean = self._mean + apart * (pixels / total)
        self._squares = (
            self._squares + variance * pixels + apart**2 * (self._pixels * pixels / total)
        )
        self._pixels = total

    def of_groups(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, variance) of groups of neighbouring channels, repeated for each channel."""
        means = self._mean.view(groups, -1)
        mean = means.mean(1, keepdim=True)
        within = self._squares.view(groups, -1).mean(1, keepdim=True) / self._pixels
        variance = within + (means - mean).square().mean(1, keepdim=True)
        return mean.expand_as(means).flatten(), variance.expand_as(means).flatten()


@dataclass
class RowStrips:
    """An activation (1, channels, height, width) of a picture, in strips from top to bottom.

    Attributes:
        home: the device that keeps the strips.
        moments: of all strips that were added, as they were added.
    """

    home: torch.device
    strips: list[torch.Tensor] = field(default_factory=list)
    moments: Moments = field(default_factory=Moments)

    def add(self, strip: torch.Tensor) -> None:
        """Append a strip; it may be on another device than the others."""
        self.moments.add(strip)
        self.strips.append(strip.to(self.home))

    def add_to(self, number: int, more: torch.Tensor) -> None:
        """Add to the numbers of one strip, in its own memory, and count them in `moments`.

        `more`, in which the sum is computed if it is on another device, is of no use afterwards.
        """
        strip = self.strips[number]
        if more.device == self.home:
            total = strip.add_(more)
        else:
            total = more.add_(strip.to(more.device))
            strip.copy_(total)
        self.moments.add(total)

    def windows(
        self, device: torch.device, dtype: torch.dtype = torch.float32, *, consume: bool = False
    ) -> Iterator[torch.Tensor]:
        """A copy of each strip with the row above and the row below it, on a device.

        Beyond the picture's edges a row is zeros. When a window has been made, its strip is not read any
        more, so it may be changed.

        Args:
            consume: free each strip when its window has been made.
        """
        above: torch.Tensor | None = None
        for number, strip in enumerate(self.strips):
            below = self.strips[number + 1] if number + 1 < len(self.strips) else None
            _one, channels, rows, width = strip.shape
            shape = 1, channels, rows + 2, width
            window = torch.empty(shape, dtype=dtype, device=device)
            window[:, :, 1:-1].copy_(strip)
            _set_row(window[:, :, :1], above)
            _set_row(window[:, :, -1:], None if below is None else below[:, :, :1])
            above = window[:, :, -2:-1].clone()
            if consume:
                self.strips[number] = strip = strip.new_empty(0)
            yield window
            del window


def _set_row(row: torch.Tensor, given: torch.Tensor | None) -> None:
    if given is None:
        row.zero_()
    else:
        row.copy_(given)


def _strip_moments(strip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, variance) of each channel in float32."""
    numbers = strip.float()
    if strip.device.type == "cpu":
        # A third of the time that `var_mean` takes.
        mean, variance = torch.batch_norm_update_stats(numbers, None, None, 0.0)
    else:
        variance, mean = torch.var_mean(numbers, dim=(0, 2, 3), correction=0)
    return mean, variance
