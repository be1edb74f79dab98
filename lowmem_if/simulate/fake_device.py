"""A fake CUDA device: all replacements in torch that it needs, in one place, and undone at the end.

It works on the versions of torch in `TORCH`, in builds with and without CUDA, with and without a
driver; other versions are refused. Everything that depends on the version of torch is in this file.
Tensors are fake (`FakeTensorMode`). What the real pipelines and hooks need beyond that is added here:

- C++ code that switches devices finds the guard of the meta device, which does nothing;
- nothing initializes CUDA (up to torch 2.11, a fake tensor does so where there is a device);
- "cuda" means "cuda:0", since that guard knows no current device;
- modules move by `param.data = ...`, as those of real tensors do, which frees in the same order;
- streams and events only keep records, and pinned memory is a kind of memory in the tracker;
- functions about the device (is there one, what is allocated) answer from the tracker.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from transformers.utils import import_utils

from lowmem_if.errors import SimulationError
from lowmem_if.simulate.assumed_values import AssumedValues
from lowmem_if.simulate.attention import attend
from lowmem_if.simulate.fake_streams import COMPUTING, HOST, FakeStream, StreamEvent
from lowmem_if.simulate.memory_tracker import PINNED, MemoryTracker
from lowmem_if.simulate.tracing import Trace

TORCH = ("2.10", "2.11", "2.12", "2.13", "2.14")
"""The minor versions of torch on which the tests of the simulator passed."""

DEVICE = "cuda:0"

_NEWER = {"empty_host_cache"}
"""Names that older versions of torch do not have."""

_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
_CUDA, _META = 1, 14
"""c10's numbers of the two device types (torch/headeronly/core/DeviceType.h)."""


@contextmanager
def dry_run(*, kernel: str, total_bytes: int = 1 << 60) -> Iterator[Trace]:
    """Inside, tensors are fake, there is an accelerator `cuda:0`, and every operator is traced.

    Args:
        kernel: the accelerator's attention, `fused` or `math`.
        total_bytes: the memory that the accelerator reports; it never runs out.

    Raises:
        SimulationError: torch is not a version in `TORCH`.
    """
    check_version()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trace = Trace(MemoryTracker(), AssumedValues(mode), kernel)
    with ExitStack() as undo:
        undo.enter_context(_meta_guard())
        for owner, name, substitute in _substitutes(trace, total_bytes):
            undo.enter_context(patch.object(owner, name, substitute, create=name in _NEWER))
        undo.enter_context(torch.no_grad())
        undo.enter_context(mode)
        undo.enter_context(trace)
        undo.enter_context(_Calls(trace))
        yield trace


def check_version() -> None:
    """Check that torch is a version in `TORCH`.

    Raises:
        SimulationError: it is not.
    """
    if ".".join(torch.__version__.split(".")[:2]) not in TORCH:
        raise SimulationError(
            f"--simulate works with torch {', '.join(TORCH)}, and this is torch {torch.__version__}: "
            "plan without --simulate, which takes its figures from the shipped table, or install one "
            "of these"
        )


@contextmanager
def _meta_guard() -> Iterator[None]:
    """Inside, C++ code gets the meta device's guard for CUDA.

    A build without CUDA has no guard for it; that of a build with CUDA needs a driver and a card.
    """
    guards = (ctypes.c_void_p * (_META + 1)).in_dll(ctypes.CDLL(_core_library()), _GUARDS)
    before, guards[_CUDA] = guards[_CUDA], guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


def _core_library() -> str:
    """The path of torch's core library, which is loaded already."""
    folder = Path(torch.__file__).parent / "lib"
    return str(next(path for path in folder.iterdir() if path.stem in ("libc10", "c10")))


def _substitutes(trace: Trace, total_bytes: int) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what replaces it during a dry run)."""
    allocator = trace.tracker.allocator(DEVICE)
    current = FakeStream(trace.timeline, COMPUTING)

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        """Do nothing: the device does not exist."""

    def synchronize(_device: Any = None) -> None:
        for name in list(trace.timeline.streams):
            trace.timeline.wait(HOST, trace.timeline.moment(name))

    def free(_device: Any = None) -> tuple[int, int]:
        return total_bytes - allocator.reserved, total_bytes

    def restart(_device: Any = None) -> None:
        allocator.most_allocated, allocator.most_reserved = allocator.allocated, allocator.reserved

    for owner in (torch.cuda, torch.accelerator):
        yield owner, "is_available", lambda: True
        yield owner, "device_count", lambda: 1
        yield owner, "synchronize", synchronize
        yield owner, "empty_cache", allocator.empty_cache
        yield owner, "memory_allocated", lambda _device=None: allocator.allocated
        yield owner, "memory_reserved", lambda _device=None: allocator.reserved
        yield owner, "max_memory_allocated", lambda _device=None: allocator.most_allocated
        yield owner, "reset_peak_memory_stats", restart
        yield owner, "current_stream", lambda _device=None: current
    yield torch.cuda, "mem_get_info", free
    yield torch.cuda, "current_device", lambda: 0
    yield torch.accelerator, "get_memory_info", free
    yield torch.accelerator, "current_accelerator", lambda *_args: torch.device("cuda")
    yield torch, "Stream", lambda device: trace.timeline.stream()  # noqa: ARG005
    yield torch.cuda, "Stream", trace.timeline.stream_of
    yield torch.cuda, "Event", lambda blocking: StreamEvent(trace.timeline)  # noqa: ARG005
    yield torch.accelerator, "empty_host_cache", nothing
    yield torch.nn.Module, "_apply", _apply
    yield FakeTensor, "__new__", _new_fake(FakeTensor.__new__)
    yield fake_tensor, "init_gpu_context", nothing
    yield fake_tensor, "CONSTANT_NUMEL_LIMIT", -1  # `AssumedValues` does that, and on any device
    yield import_utils, "is_fake_tensor", lambda _tensor: False


def _apply(module: torch.nn.Module, function: Callable[..., Any], recurse: bool = True) -> Any:
    """`torch.nn.Module._apply` as with real tensors; fake ones would be swapped instead."""
    for child in module.children() if recurse else ():
        child._apply(function)
    for parameter in module._parameters.values():
        if parameter is not None:
            parameter.data = function(parameter.data)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _new_fake(new: Callable[..., Any]) -> Any:
    """accelerate makes parameters by `type(old)(value, ...)`; that of a fake one is FakeTensor."""

    def make(cls: Any, first: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(first, FakeTensor) and not args:
            return torch.nn.Parameter(first, requires_grad=kwargs.get("requires_grad", True))
        return new(cls, first, *args, **kwargs)

    return staticmethod(make)


class _Calls(TorchFunctionMode):  # type: ignore[misc]
    """Calls whose results differ between an accelerator and a build without CUDA or fake tensors."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [_indexed(given) for given in args]
        kwargs = {name: _indexed(given) for name, given in (kwargs or {}).items()}
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_cuda:
            return attend(self._trace.kernel, *args, **kwargs)
        if func in _NUMBERS:
            return self._numbers(args[0])
        if func == torch.Tensor.data.__set__:
            func(*args)
            args[0].fake_device = args[1].device
            return None
        if func is torch.tensor and kwargs.get("device") is not None:
            # Its numbers would be copied below all modes, to a device that does not exist.
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if kwargs.pop("pin_memory", False):
            with self._trace.tracker.entering(PINNED):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _numbers(self, tensor: torch.Tensor) -> Any:
        assert self._trace.values is not None
        known = self._trace.values.of(tensor)
        if known is None:
            return self._trace.values.assume()
        with no_dispatch():
            return known.numpy()


_NUMBERS = {torch.Tensor.numpy, torch.Tensor.__array__}


def _indexed(leaf: Any) -> Any:
    """`cuda` as `cuda:0`: the meta device's guard knows no current device."""
    if isinstance(leaf, str) and leaf == "cuda":
        return DEVICE
    if isinstance(leaf, torch.device) and leaf.type == "cuda" and leaf.index is None:
        return torch.device(DEVICE)
    return leaf
