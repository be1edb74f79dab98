"""Strips of rows: what a layer sees of them, and the moments that they add up to."""

from __future__ import annotations

import pytest
import torch

from lowmem_if.stages.decoding.row_strips import Moments, RowStrips

CPU = torch.device("cpu")


def cut(picture: torch.Tensor, *rows: int) -> RowStrips:
    strips = RowStrips(CPU)
    for strip in picture.split(rows, dim=2):
        strips.add(strip.contiguous())
    return strips


def test_moments_of_strips_are_those_of_the_picture() -> None:
    """Also where strips have other means and other heights than the whole, and means are large."""
    picture = torch.randn(1, 6, 9, 7) + 1000 * torch.arange(9.0)[:, None]
    mean, variance = cut(picture, 4, 4, 1).moments.of_groups(2)
    grouped = picture.double().view(2, -1)
    torch.testing.assert_close(mean, grouped.mean(1).repeat_interleave(3).float())
    expected = grouped.var(1, correction=0).repeat_interleave(3).float()
    torch.testing.assert_close(variance, expected)


def test_small_variance_with_a_large_mean_keeps_its_digits() -> None:
    """The difference of two sums of squares would be lost in rounding."""
    moments = Moments()
    picture = 1000 + 0.01 * torch.randn(1, 1, 64, 64)
    for strip in picture.split(8, dim=2):
        moments.add(strip)
    _mean, variance = moments.of_groups(1)
    assert variance.item() == pytest.approx(picture.double().var(correction=0).item(), rel=1e-3)


def test_windows_have_a_row_of_each_neighbour() -> None:
    """And zeros beyond the edges, as a convolution pads."""
    picture = torch.randn(1, 2, 7, 5)
    padded = torch.nn.functional.pad(picture, (0, 0, 1, 1))
    windows = list(cut(picture, 3, 3, 1).windows(CPU))
    expected = [padded[:, :, 0:5], padded[:, :, 3:8], padded[:, :, 6:9]]
    assert [torch.equal(*pair) for pair in zip(windows, expected, strict=True)] == [True] * 3


def test_a_strip_may_change_when_its_window_is_made() -> None:
    """The next window still shows the row that was there before."""
    picture = torch.randn(1, 2, 6, 5)
    strips = cut(picture.clone(), 3, 3)
    seen = []
    for number, window in enumerate(strips.windows(CPU)):
        seen.append(window)
        strips.add_to(number, torch.full((1, 2, 3, 5), 100.0))
    assert torch.equal(seen[1][:, :, :4], picture[:, :, 2:])
    torch.testing.assert_close(torch.cat(strips.strips, dim=2), picture + 100)


def test_consumed_strips_are_freed() -> None:
    """One after the other, so that the next activation can take their memory."""
    strips = cut(torch.randn(1, 2, 6, 5), 2, 2, 2)
    windows = strips.windows(CPU, consume=True)
    left = [sum(strip.numel() for strip in strips.strips) for _window in windows]
    assert left == [40, 20, 0]
