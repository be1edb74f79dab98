"""Views and copies on the shorter way: the very tensors that torch's own fake mode gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lowmem_if.simulate.tracing import run_operator

aten: Any = torch.ops.aten


@pytest.fixture
def mode() -> FakeTensorMode:
    return FakeTensorMode()


def facts(tensor: Any) -> tuple[Any, ...]:
    return (
        type(tensor), tensor.fake_device, tensor.dtype, tensor.shape, tensor.stride(),
        tensor.storage_offset(), tensor.untyped_storage()._cdata, tensor.requires_grad,
    )  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        lambda block: (aten.slice.Tensor, (block, 0, 512, 1536)),
        lambda block: (aten.slice.Tensor, (block,)),
        lambda block: (aten.view.default, (block, [64, 64])),
        lambda block: (aten.view.dtype, (block, torch.float16)),
        lambda block: (aten.detach.default, (block,)),
        lambda block: (aten.slice.Tensor, (aten.view.default(block, [64, 64]), 1, 3, 9)),
    ],
    ids=["slice", "whole slice", "shape", "dtype", "detach", "slice of a matrix"],
)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_view_is_the_one_that_torch_gives(
    mode: FakeTensorMode, device: str, call: Callable[[Any], tuple[Any, tuple[Any, ...]]]
) -> None:
    """The same storage, place, type, sizes and strides."""
    with mode:
        meta = torch.empty(4096, dtype=torch.uint8, device="meta")
    block = FakeTensor(mode, meta_of(meta), torch.device(device))
    with mode:
        func, args = call(block)
        expected = func(*args)
    assert facts(run_operator(func, args, {})) == facts(expected)
    assert expected.untyped_storage()._cdata == block.untyped_storage()._cdata


def meta_of(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor on the meta device, as large as another."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def test_a_copy_gives_its_target(mode: FakeTensorMode) -> None:
    """Also of another type; one that must be spread out goes torch's own way, and so do errors."""
    with mode:
        target, source = torch.empty(4, 4), torch.empty(4, 4, dtype=torch.float16)
        row, other = torch.empty(4), torch.empty(3)
        assert run_operator(aten.copy_.default, (target, source), {}) is target
        assert run_operator(aten.copy_.default, (target, row), {}) is target
        with pytest.raises(RuntimeError):
            run_operator(aten.copy_.default, (target, other), {})


def test_a_view_that_cannot_be_is_an_error(mode: FakeTensorMode) -> None:
    """The meta kernel checks sizes as the real one does."""
    with mode:
        block = torch.empty(4096)
    with pytest.raises(RuntimeError):
        run_operator(aten.view.default, (block, [3, 3]), {})


def test_everything_else_goes_to_torch(mode: FakeTensorMode) -> None:
    """Other operators, and real tensors."""
    with mode:
        assert run_operator(aten.add.Tensor, (torch.empty(2), 1), {}).shape == (2,)
    real = run_operator(aten.slice.Tensor, (torch.arange(5), 0, 1, 3), {})
    assert real.tolist() == [1, 2]
