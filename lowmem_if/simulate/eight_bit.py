"""bitsandbytes' quantised layers in plain operators that allocate the memory of its CUDA code.

The library's operators are opaque, some of their sizes depend on numbers, and its class of parameters
cannot hold fake tensors. Written after bitsandbytes 0.50 (`backends/cuda/ops.py`,
`backends/default/ops.py`, `autograd/_functions.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch

from lowmem_if.simulate.assumed_values import OUTLIER_COLUMNS
from lowmem_if.simulate.tracing import Trace

_HALF = torch.float16


@contextmanager
def spelled_out(trace: Trace) -> Iterator[None]:
    """Inside, quantised layers can be loaded and called."""
    if find_spec("bitsandbytes") is None:  # no layer is quantised then
        yield
        return
    import bitsandbytes

    assert trace.values is not None
    values = trace.values

    def matmul(inputs: Any, _weight: Any, bias: Any = None, state: Any = None) -> torch.Tensor:
        values.assumed[OUTLIER_COLUMNS] += 1
        output = _int8_product(inputs, state, OUTLIER_COLUMNS.answer)
        trace.flops += 2 * inputs.numel() * state.CB.shape[0]
        return output if bias is None else output.add_(bias)

    with ExitStack() as undo:
        undo.enter_context(
            patch.object(
                bitsandbytes.nn.Int8Params, "__new__", _new(bitsandbytes.nn.Int8Params.__new__)
            )
        )
        undo.enter_context(patch.object(bitsandbytes, "matmul", matmul))
        yield


def _new(new: Callable[..., Any]) -> Any:
    """Loaded weights become plain parameters; layers that are built on the meta device keep theirs."""

    def make(cls: Any, codes: Any = None, *args: Any, **options: Any) -> Any:
        if options.get("CB") is None:
            return new(cls, codes, *args, **options)
        parameter = torch.nn.Parameter(codes, requires_grad=False)
        parameter.CB, parameter.SCB = options["CB"], options["SCB"]
        return parameter

    return staticmethod(make)


def _int8_product(inputs: torch.Tensor, state: Any, outliers: int) -> torch.Tensor:
    """One layer's product; temporary tensors are allocated and freed as in the library."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    half = flat.to(_HALF)
    codes, _scales, columns = _quantised(half, outliers)
    del half
    rest = flat[:, columns].contiguous()
    weights = state.CB[:, columns].contiguous() * state.SCB.view(-1, 1) * (1 / 127)
    weights = weights.to(flat.dtype).t()
    product = torch.empty(codes.shape[0], state.CB.shape[0], dtype=torch.int32, device=flat.device)
    output = torch.empty_like(product, dtype=_HALF).to(flat.dtype)
    del product
    output = output.addmm(rest, weights)
    return output.reshape(*inputs.shape[:-1], output.shape[-1])


def _quantised(
    half: torch.Tensor, outliers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Rows as 8-bit numbers, their scales, the columns that are not quantised)."""
    scales = torch.empty(half.shape[0], dtype=torch.float32, device=half.device)
    codes = torch.empty(half.shape, dtype=torch.int8, device=half.device)
    mask = half.abs() >= 6.0
    mask.any(dim=0)
    columns = torch.empty(outliers, dtype=torch.int64, device=half.device)
    codes[:, columns] = 0
    return codes, scales, columns
