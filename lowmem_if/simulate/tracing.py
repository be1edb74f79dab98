"""Trace every operator: track the tensors that it makes, and count its multiplications.

The same mode traces fake and real tensors, which makes the truth check possible
(`tests/simulate/test_fake_device.py`). It does not see inside kernels: workspaces of cuDNN and cuBLAS,
oneDNN's copies.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from lowmem_if.planning.estimates.memory_table import FUSED
from lowmem_if.simulate.assumed_values import AssumedValues, tensors_in
from lowmem_if.simulate.fake_streams import COMPUTING, HOST, Timeline
from lowmem_if.simulate.memory_tracker import MemoryTracker

_VIEWS = {
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.view.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.detach.default,
}
"""Operators that streaming calls several times for each weight, each time with other numbers.

torch finds the result of an operator on fake tensors by a key from all its arguments. If the key is new,
decompositions derive the result. Streaming cuts every weight out of one block of memory, so each key is
new, and that takes ten times as long as asking the meta kernel.
"""

_DEVICE = torch.ops.prim.device.default
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Trace(TorchDispatchMode):  # type: ignore[misc]
    """Follows all operators of a `with` block.

    Attributes:
        tracker: counts the bytes.
        values: the known numbers of fake tensors.
        kernel: the accelerator's attention, `fused` or `math`.
        timeline: what is ordered on the accelerator's streams.
        flops: multiplications and additions of products and convolutions, each counted as one.
        moved: bytes copied, by (source, target).
    """

    def __init__(
        self, tracker: MemoryTracker, values: AssumedValues | None = None, kernel: str = FUSED
    ) -> None:
        super().__init__()
        self.tracker, self.values, self.kernel = tracker, values, kernel
        self.timeline = Timeline()
        self.tracker.taken = self.timeline.inherit
        self.tracker.gone = self.timeline.forget
        self.flops = 0
        self.moved: Counter[tuple[str, str]] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard against it costs as much as the tracing."""
        return False

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # half of all calls; nothing is read, written or made
            (tensor,) = args
            return tensor.fake_device if isinstance(tensor, FakeTensor) else func(tensor)
        kwargs = kwargs or {}
        if self.values is not None:
            args, kwargs = self.values.faked(func, (args, kwargs))
            if func is torch.ops.aten._local_scalar_dense.default:
                return self.values.ask(args[0])
            shaped = self.values.shaped_by_numbers(func, args)
            if shaped is not None:
                self.tracker.see(shaped)
                return shaped
        out = run_operator(func, args, kwargs)
        for tensor in tensors_in(out):
            self.tracker.see(tensor)
        self._count(func, args, kwargs, out)
        self._order(func, args)
        if self.values is not None:
            self.values.follow(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet is _CPU_ATTENTION:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif func is torch.ops.aten._to_copy.default:
            self._move(args[0], out)
        elif func is torch.ops.aten.copy_.default:
            self._move(args[1], args[0])

    def _order(self, func: Any, args: Any) -> None:
        """Order what an operator reads and writes on the current stream, or on the host."""
        if _is_view(func):
            return  # done on the host; no bytes are touched
        tensors = list(tensors_in(args))
        if not tensors:
            return
        on_host = all(tensor.device.type == "cpu" for tensor in tensors)
        stream = HOST if on_host else self.timeline.current
        for tensor in tensors:
            if stream not in (COMPUTING, HOST):
                self.timeline.watch(tensor)
            writes = func._schema.is_mutable and tensor is tensors[0]
            self.timeline.use(tensor, stream=stream, writes=writes)

    def _move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        ways = source.device.type, target.device.type
        if ways[0] != ways[1]:
            self.moved[ways] += target.numel() * source.element_size()


@cache
def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its input in another way."""
    schema = func._schema
    return not schema.is_mutable and any(given.alias_info for given in schema.returns)


def run_operator(func: Any, args: Any, kwargs: Any) -> Any:
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
