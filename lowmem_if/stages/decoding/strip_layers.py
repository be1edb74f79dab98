"""The layers of diffusers' VAE decoder, computed strip by strip over a whole picture.

Each function takes layers of the decoder and an activation in strips, and gives the next activation.
Weights are used where `hold` has put them: once per layer, however many strips there are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from lowmem_if.planning.estimates.strip_memory import SCORE_BYTES
from lowmem_if.stages.decoding.row_strips import RowStrips

Hold = Callable[[torch.nn.Module], AbstractContextManager[object]]
"""Called with a layer: inside, its weights are on the device that computes."""


@dataclass(frozen=True)
class Layers:
    """What every layer needs: how weights are held, the device that computes, and the number type."""

    hold: Hold
    device: torch.device
    dtype: torch.dtype

    def convolve(self, conv: Any, strips: RowStrips) -> RowStrips:
        """A convolution of 3 x 3 without a norm; the input is consumed."""
        result = RowStrips(strips.home)
        with self._kernel(conv) as convolve:
            for window in strips.windows(self.device, self.dtype, consume=True):
                result.add(convolve(window))
                del window  # before the next one is made
        return result

    def enlarge(self, conv: Any, strips: RowStrips) -> RowStrips:
        """Double height and width by repetition, then convolve. The number of strips doubles, too."""
        result = RowStrips(strips.home)
        with self._kernel(conv) as convolve:
            for window in strips.windows(self.device, self.dtype, consume=True):
                for part in _halves(window):
                    larger = functional.interpolate(part, scale_factor=2.0, mode="nearest")
                    result.add(convolve(larger[:, :, 1:-1]))
                    del larger, part
                del window
        return result

    def residual(self, block: Any, strips: RowStrips) -> RowStrips:
        """A residual block, in the memory of its input.

        A shortcut is computed together with the first convolution, so that the strip can be freed. Where
        a block halves its channels, both results take the memory of the strip.
        """
        hidden, kept = RowStrips(strips.home), RowStrips(strips.home)
        activate = self._activation(block.norm1, strips, block.nonlinearity)
        shortcut = block.conv_shortcut
        with self._kernel(block.conv1) as convolve, self._pointwise(shortcut) as project:
            for window in strips.windows(self.device, consume=shortcut is not None):
                if shortcut is not None:
                    kept.strips.append(project(window[:, :, 1:-1]).to(strips.home))
                hidden.add(convolve(activate(window)))
                del window
        if shortcut is None:
            kept.strips = strips.strips
        activate = self._activation(block.norm2, hidden, block.nonlinearity)
        with self._kernel(block.conv2) as convolve:
            for number, window in enumerate(hidden.windows(self.device, consume=True)):
                kept.add_to(number, convolve(activate(window)))
                del window
        return kept

    def attend(self, attention: Any, strips: RowStrips) -> RowStrips:
        """Attention over the whole picture, added to the input: only keys and values are whole."""
        norm = self._affine(attention.group_norm, strips)
        keys = self._project_all(attention.to_k, norm, strips)
        values = self._project_all(attention.to_v, norm, strips)
        result, output = RowStrips(strips.home, strips.strips), attention.to_out[0]
        with self.hold(attention.to_q), self.hold(output):
            for number, strip in enumerate(result.strips):
                queries = functional.linear(
                    self._tokens(norm, strip), attention.to_q.weight, attention.to_q.bias
                )
                mixed = _attention(queries, keys, values, attention.heads)
                mixed = functional.linear(mixed, output.weight, output.bias)
                result.add_to(number, mixed.transpose(1, 2).reshape(strip.shape))
        return result

    def finish(self, norm: Any, conv: Any, strips: RowStrips) -> torch.Tensor:
        """The picture (1, colours, height, width): the last norm, activation and convolution."""
        activate = self._activation(norm, strips, functional.silu)
        height, width = sum(s.shape[2] for s in strips.strips), strips.strips[0].shape[3]
        shape = 1, conv.out_channels, height, width
        picture, row = torch.empty(shape, dtype=self.dtype, device=self.device), 0
        with self._kernel(conv) as convolve:
            for window in strips.windows(self.device, consume=True):
                rows = window.shape[2] - 2
                picture[:, :, row : row + rows] = convolve(activate(window))
                row += rows
                del window
        return picture

    @contextmanager
    def _kernel(self, conv: Any) -> Any:
        """A convolution of 3 x 3 over windows; a window's own first and last row are its halo."""
        with self.hold(conv):
            yield lambda window: functional.conv2d(window, conv.weight, conv.bias, padding=(0, 1))

    @contextmanager
    def _pointwise(self, conv: Any) -> Any:
        """A convolution of 1 x 1; without a layer nothing is held."""
        if conv is None:
            yield None
            return
        with self.hold(conv):
            yield lambda strip: functional.conv2d(strip.to(self.dtype), conv.weight, conv.bias)

    def _affine(self, norm: Any, strips: RowStrips) -> tuple[torch.Tensor, torch.Tensor]:
        """A group norm over the whole picture as (factor, summand) of each channel, in float32."""
        mean, variance = strips.moments.of_groups(norm.num_groups)
        with self.hold(norm):
            factor = norm.weight.float() * torch.rsqrt(variance + norm.eps)
            summand = norm.bias.float() - mean * factor
        return factor.view(1, -1, 1, 1), summand.view(1, -1, 1, 1)

    def _activation(
        self, norm: Any, strips: RowStrips, nonlinearity: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Norm and activation of a window, in its own memory, in the number type of the layers.

        A convolution pads with zeros, not with what a norm makes of them: rows beyond the picture's
        edges are zeros again.
        """
        factor, summand = self._affine(norm, strips)
        last = len(strips.strips) - 1
        number = -1

        def activate(window: torch.Tensor) -> torch.Tensor:
            nonlocal number
            number += 1
            active = _activated(torch.addcmul(summand, window, factor, out=window), nonlinearity)
            if number == 0:
                active[:, :, :1].zero_()
            if number == last:
                active[:, :, -1:].zero_()
            return active.to(self.dtype)

        return activate

    def _project_all(
        self, linear: Any, norm: tuple[torch.Tensor, torch.Tensor], strips: RowStrips
    ) -> torch.Tensor:
        """A linear layer over all pixels, (1, pixels, features), from normalised strips."""
        pixels = [strip.shape[2] * strip.shape[3] for strip in strips.strips]
        shape = 1, sum(pixels), linear.out_features
        result, done = torch.empty(shape, dtype=self.dtype, device=self.device), 0
        with self.hold(linear):
            for strip, count in zip(strips.strips, pixels, strict=True):
                tokens = self._tokens(norm, strip)
                result[:, done : done + count] = functional.linear(
                    tokens, linear.weight, linear.bias
                )
                done += count
        return result

    def _tokens(self, norm: tuple[torch.Tensor, torch.Tensor], strip: torch.Tensor) -> torch.Tensor:
        """The pixels of a strip, normalised, (1, pixels, channels)."""
        factor, summand = norm
        numbers = torch.addcmul(summand, strip.to(self.device, torch.float32), factor)
        return numbers.to(self.dtype).flatten(2).transpose(1, 2)


def _activated(
    window: torch.Tensor, nonlinearity: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The activation, in the memory of the window where it is SiLU."""
    if nonlinearity is functional.silu or isinstance(nonlinearity, torch.nn.SiLU):
        return functional.silu(window, inplace=True)
    return nonlinearity(window)


def _halves(window: torch.Tensor) -> list[torch.Tensor]:
    """A window as two windows of about half its rows; one of a single row is left whole."""
    rows = window.shape[2] - 2
    middle = rows // 2
    return [window[:, :, : middle + 2], window[:, :, middle:]] if middle else [window]


def _attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: int
) -> torch.Tensor:
    """Attention of some pixels to all pixels, (1, pixels, features)."""
    keys, values = _in_heads(keys, heads), _in_heads(values, heads)
    most = queries.shape[1]
    if queries.device.type == "mps":
        most = max(1, SCORE_BYTES // (heads * keys.shape[2] * queries.element_size()))
    mixed = [
        functional.scaled_dot_product_attention(_in_heads(some, heads), keys, values)
        for some in queries.split(most, dim=1)
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2).flatten(2)


def _in_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)
