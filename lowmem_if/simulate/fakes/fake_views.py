"""Views and copies of fake tensors without torch's cache of fake results.

torch finds the result of an operator by a key from all its arguments, and derives it with decompositions
if the key is new. Streaming cuts every weight out of one block of memory, so each key is new, and that
takes ten times as long as asking the meta kernel, which is what remains here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

_VIEWS = {
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.view.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.detach.default,
}
"""Operators that streaming calls several times for each weight, each time with other numbers."""


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator on fake tensors, by the shortest way there is for it."""
    if kwargs or not isinstance(args[0] if args else None, FakeTensor):
        return func(*args, **kwargs)
    if func in _VIEWS:
        return _view(func, args)
    if func is torch.ops.aten.copy_.default and _are_alike(*args):
        return args[0]
    return func(*args)


def _are_alike(target: torch.Tensor, source: Any, _non_blocking: bool = False) -> bool:
    return isinstance(source, FakeTensor) and source.shape == target.shape


def _view(func: Any, args: Any) -> FakeTensor:
    """The result of an operator that only looks at the storage of its first argument in another way."""
    tensor: FakeTensor = args[0]
    with in_kernel_invocation_manager(tensor.fake_mode):
        view = func(*args)
    return FakeTensor(tensor.fake_mode, view, tensor.fake_device)
