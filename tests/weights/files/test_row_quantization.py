"""Whole numbers with scales: how far they are from the numbers, and that every way back is the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.quantised_layers import GROUP, quantised_bytes
from lowmem_if.weights.files import row_quantization
from lowmem_if.weights.files.row_quantization import (
    dequantise_rows,
    empty_rows,
    inputs_last,
    quantise_rows,
)


def quantised(numbers: torch.Tensor, storage: str) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = empty_rows(len(numbers), numbers.shape[1], storage, "cpu")
    quantise_rows(numbers, codes, scales, storage)
    return codes, scales


def back(numbers: torch.Tensor, storage: str) -> torch.Tensor:
    out = torch.full_like(numbers, torch.nan)
    dequantise_rows(*quantised(numbers, storage), out, storage)
    return out


shapes = st.tuples(st.integers(1, 9), st.integers(1, 300))


@given(shapes, st.integers(0, 2**32), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_no_8_bit_number_is_off_by_more_than_half_a_step(
    shape: tuple[int, int], seed: int, size: float
) -> None:
    """A step is a 127th of the largest number of the row."""
    numbers = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    step = numbers.abs().amax(1, keepdim=True) / 127
    assert ((back(numbers, "int8") - numbers).abs() <= 0.5001 * step).all()


@given(shapes, st.integers(0, 2**32), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_no_4_bit_number_is_off_by_more_than_half_a_step_of_its_group(
    shape: tuple[int, int], seed: int, size: float
) -> None:
    """A step is a seventh of the largest number of the group, but for the rounding of its scale."""
    numbers = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    made = back(numbers, "int4")
    for first in range(0, shape[1], GROUP):
        group = numbers[:, first : first + GROUP]
        step = group.abs().amax(1, keepdim=True) / 7
        assert ((made[:, first : first + GROUP] - group).abs() <= 0.53 * step).all()


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_zeros_remain_zeros_and_extremes_remain_finite(storage: str) -> None:
    """A row of zeros has no scale to divide by; one outlier makes its own row coarse, no other."""
    numbers = torch.zeros(3, 70)
    numbers[1, 5], numbers[2] = 60_000.0, 0.5
    made = back(numbers, storage)
    assert torch.equal(made[0], numbers[0])
    assert made[1, 5] == pytest.approx(60_000, rel=5e-3)
    assert torch.allclose(made[2], numbers[2], rtol=5e-3)


@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("block", [1, 500, 10**6])
def test_layout_type_and_blocks_change_no_number(
    monkeypatch: pytest.MonkeyPatch,
    storage: str,
    dtype: torch.dtype,
    *,
    channels_last: bool,
    block: int,
) -> None:
    """Each is that of float32, rounded once."""
    rows = torch.randn(12, 3 * 3 * 20)
    kept, expected = quantised(rows, storage), back(rows, storage).view(12, 3, 3, 20)
    monkeypatch.setattr(row_quantization, "BLOCK", block)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    weight = torch.empty(12, 20, 3, 3, dtype=dtype, memory_format=layout)
    dequantise_rows(*kept, inputs_last(weight), storage)
    assert torch.equal(weight, expected.permute(0, 3, 1, 2).to(dtype))


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_the_bytes_are_those_that_are_planned(storage: str) -> None:
    """Codes and scales of a matrix whose rows fill whole groups."""
    codes, scales = empty_rows(64, 40 * GROUP, storage, "cpu")
    real = codes.nbytes + scales.nbytes
    assert quantised_bytes(64 * 40 * GROUP, 64, storage) == real
