"""A picture drawn in a style: what it shows and how it is drawn are said by two texts.

As DeepFloyd's own package does it (`deepfloyd_if/modules/base.py`, `style_transfer`): the style's text
takes the prompt's place where the UNet reads a text as a whole, beside the timestep, and a part of the
noise is predicted from the style alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

MIXED_IN = 0.15
"""How much of the predicted noise is the style's alone: `positive_mixer` there."""

_COLOURS = 3
"""Channels of the predicted noise; those behind are the variance's, which is the prompt's."""


@contextmanager
def styled(unet: Any, style: torch.Tensor) -> Iterator[None]:
    """Let a UNet draw in a style while the block lasts, whatever pipeline calls it.

    Its batch grows by the prompts' part, once more with the style as text, and is mixed at its end; so
    the pipeline sees what it always does, with guidance or without.

    Args:
        style: embeddings (n, 77, width) for the n pictures of every call.
    """
    count = len(style)

    def widen(_module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        sample, *others = args
        texts, labels = given["encoder_hidden_states"], given.get("class_labels")
        wider = {"encoder_hidden_states": torch.cat([texts, style.to(texts)])}
        if labels is not None:
            wider["class_labels"] = torch.cat([labels, labels[-count:]])
        return (torch.cat([sample, sample[-count:]]), *others), given | wider

    def as_a_whole(_module: Any, args: tuple[Any, ...]) -> Any:
        (texts,) = args
        return torch.cat([texts[: -2 * count], texts[-count:], texts[-count:]])

    def mix(_module: Any, _args: Any, output: tuple[torch.Tensor]) -> Any:
        (noise,) = output
        prompt, own = noise[-2 * count : -count], noise[-count:]
        mixed = (1 - MIXED_IN) * prompt[:, :_COLOURS] + MIXED_IN * own[:, :_COLOURS]
        return (torch.cat([noise[: -2 * count], torch.cat([mixed, prompt[:, _COLOURS:]], dim=1)]),)

    with ExitStack() as hooks:
        for handle in (
            unet.register_forward_pre_hook(widen, with_kwargs=True),
            unet.add_embedding.register_forward_pre_hook(as_a_whole),
            unet.register_forward_hook(mix),
        ):
            hooks.callback(handle.remove)
        yield
