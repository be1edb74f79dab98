"""Differences between the versions of the libraries that this package runs on.

The rest of the package is the same for all of them: torch from 2.10, transformers from 5.0, diffusers
from 0.36. `tests/weights/test_library_differences.py` fails as soon as an entry is no longer needed.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import torch
import transformers
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
from transformers import T5PreTrainedModel


def repaired_safety_checker() -> Any:
    """IF's safety checker class, loadable. Needed up to diffusers 0.42 with transformers from 5.0.

    Its constructor never calls `post_init()`, which since transformers 5 sets the table of tied
    weights that loading reads. It ties none, so an empty table is right.
    """
    if not hasattr(IFSafetyChecker, "all_tied_weights_keys"):
        IFSafetyChecker.all_tied_weights_keys = {}
    return IFSafetyChecker


def kept_dtype(module: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of a weight in a transformers module whose other weights are `dtype`.

    transformers keeps T5's `wo` in float32 if the rest is float16. Its table of such weights is a
    property of the module in 5.0 and a private method by 5.3; 5.0 also keeps them in float32 if the
    rest is bfloat16, which no later version does. This is what the later ones do, in every version.
    """
    patterns = [*(module._keep_in_fp32_modules_strict or ())]
    if dtype == torch.float16:
        patterns += module._keep_in_fp32_modules or ()
    kept = any(re.search(rf"(^|\.){re.escape(pattern)}(\.|$)", name) for pattern in patterns)
    return torch.float32 if kept and dtype.itemsize == 2 else dtype


def t5_block(
    block: Any, states: torch.Tensor, mask: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One block of a T5 encoder for one text: (the states after it, the bias for the next block).

    Args:
        states: (1, tokens, width).
        mask: what attention adds for padding, (1, 1, tokens, tokens); None: nothing.
        bias: of the tokens' positions alone, the same for every text, (1, heads, tokens, tokens); None
            in the first block, which makes it.

    Up to transformers 5.14 the first block adds the mask to the bias, and the others take the sum; from
    5.15 on a bias is one of positions alone.
    """
    if T5PreTrainedModel._supports_sdpa:
        states, bias, _ = block(states, mask, bias)
        return states, bias
    if bias is None:
        length = states.shape[1]
        bias = block.layer[0].SelfAttention.compute_bias(length, length, device=states.device)
    return block(states, mask, bias if mask is None else bias + mask)[0], bias


def nested_name(name: str, wanted: Container[str]) -> str:
    """A stored weight's name in a CLIP text encoder that may nest its network in `text_model`.

    transformers up to 5.3 does so, and so do the published files. By 5.8 it does not, translates the
    published names itself, and wrote the files of the demo.
    """
    nested = f"text_model.{name}"
    return nested if name not in wanted and nested in wanted else name


def pil_image_processor() -> Any:
    """CLIP's picture preparation by Pillow, which needs no torchvision.

    transformers up to 5.3 calls it `CLIPImageProcessor`; by 5.8 that name is torchvision's, and Pillow's
    has a name of its own.
    """
    named = getattr(transformers, "CLIPImageProcessorPil", None)
    return named or transformers.CLIPImageProcessor


def empty_pinned_cache(kind: str) -> None:
    """Return the unused memory of torch's allocator of pinned memory; `kind`: `cuda` or `xpu`.

    Public from 2.12 on. Builds of 2.10 and 2.11 with CUDA have only a private function; those for XPU
    have none and keep the memory for the next transfer.
    """
    public = getattr(torch.accelerator, "empty_host_cache", None)
    private = getattr(torch._C, "_host_emptyCache", None) if kind == "cuda" else None
    empty = public or private
    if empty is not None:
        empty()
