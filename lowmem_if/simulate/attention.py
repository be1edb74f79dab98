"""The attention kernel that an accelerator would choose, and the memory that it takes.

A build without CUDA chooses plain products for a fake accelerator. That would be the largest error of
a dry
run: the x4 autoencoder would decode 1024 pixels with 36 GB instead of 4 GB.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from lowmem_if.planning.estimates.memory_table import MATH

_FLASH_HEAD, _FLASH_TYPES = 256, (torch.float16, torch.bfloat16)
_MASK_GRAIN = 8
"""Rows of a mask must begin at a multiple of this; other masks are copied (attention.cpp)."""


def attend(
    kernel: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_options: Any,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` by the kernel of that name.

    `fused` is flash attention or, with a mask, wide heads or float32, the memory-efficient kernel; both
    allocate only the output. `math` allocates the whole matrix of attention weights.
    """
    aten: Any = torch.ops.aten
    if kernel == MATH:
        outputs = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )
    elif attn_mask is None and query.dtype in _FLASH_TYPES and query.shape[-1] <= _FLASH_HEAD:
        outputs = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
    else:
        mask = None if attn_mask is None else _prepared(attn_mask, query, key)
        outputs = aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, False, dropout_p, is_causal, scale=scale
        )
    output: torch.Tensor = outputs[0]
    return output


def _prepared(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask as the memory-efficient kernel needs it."""
    if mask.dtype == torch.bool:
        zeros = torch.zeros_like(mask, dtype=query.dtype)
        mask = zeros.masked_fill_(mask.logical_not(), float("-inf"))
    if any(stride % _MASK_GRAIN for stride in mask.stride()[:-1]):
        width = mask.shape[-1]
        mask = pad(mask, (0, _MASK_GRAIN - width % _MASK_GRAIN))[..., :width]
    return mask.expand(*query.shape[:-1], key.shape[-2])
