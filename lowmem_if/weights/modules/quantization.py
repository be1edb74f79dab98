"""bitsandbytes' 8-bit and 4-bit weights: which layers have them, and how they are made.

The package is optional, and nothing here imports it before a text encoder is quantised. Colab does not
have it, and a laptop without an accelerator does not need it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.tensor_reader import BLOCK
from lowmem_if.weights.modules.meta_init import Slot

Maker = Callable[[Slot, Any, str], torch.Tensor]
"""Reads a slot's numbers with a reader and makes the parameter on a device."""


def quantised_maker(parameter: Any, slot: Slot) -> Maker | None:
    """The function that makes a quantised parameter; None if the parameter is not quantised."""
    library: Any = sys.modules.get("bitsandbytes")
    if library is None:
        return None
    if isinstance(parameter, library.nn.Int8Params):
        return _stored_int8 if slot.stored.dtype == torch.int8 else _int8
    if isinstance(parameter, library.nn.Params4bit):
        return partial(_nf4, settings=dict(parameter.__dict__))
    return None


def _int8(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    """The weight in the compute type as bitsandbytes' row-wise int8, bit for bit.

    An accelerator uses the library's own kernel. A CPU uses its formula, a block of rows at a time: the
    library's CPU code computes in float16, which is slow there, and copies the tensor several times.
    """
    if device != "cpu":
        from bitsandbytes.functional import int8_vectorwise_quant

        numbers = _whole(slot, reader, device).to(torch.float16)
        codes, scales, _ = int8_vectorwise_quant(numbers)
        return int8_parameter(codes, scales)
    rows, width = slot.stored.shape
    codes = torch.empty((rows, width), dtype=torch.int8)
    scales = torch.empty(rows, dtype=torch.float32)
    step = max(1, BLOCK // width)
    block = torch.empty((step, width), dtype=slot.dtype)
    for row in range(0, rows, step):
        part = block[: min(step, rows - row)]
        reader.read(slot.stored, part, first=row * width)
        numbers = part.to(torch.float16).float()
        scales[row : row + step] = numbers.abs().amax(1)
        numbers *= (127.0 / scales[row : row + step])[:, None]
        codes[row : row + step] = numbers.round_()
    return int8_parameter(codes, scales)


def _stored_int8(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    codes = _whole(slot, reader, device)
    if slot.scales is None:
        raise CheckpointError(f"{slot.names[0]} is 8-bit without scales; fetch the folder again")
    scales = torch.empty(slot.scales.shape, dtype=torch.float32, device=device)
    reader.read(slot.scales, scales)
    return int8_parameter(codes, scales)


def int8_parameter(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The parameter of an 8-bit layer: codes (rows, columns), the rows' largest magnitudes (rows,)."""
    from bitsandbytes.nn import Int8Params

    parameter: torch.Tensor = Int8Params(
        codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales
    )
    return parameter


def _nf4(slot: Slot, reader: Any, device: str, *, settings: dict[str, Any]) -> torch.Tensor:
    from bitsandbytes.nn import Params4bit

    host = torch.empty(slot.stored.shape, dtype=slot.dtype)
    (reader if device == "cpu" else reader.reader).read(slot.stored, host)
    parameter: torch.Tensor = Params4bit(host, requires_grad=False, **settings).to(device)
    return parameter


def _whole(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    tensor = torch.empty(slot.stored.shape, dtype=slot.dtype, device=device)
    reader.read(slot.stored, tensor)
    return tensor
