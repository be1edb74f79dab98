"""T5 for many prompts in one pass over its weights: each block does all of them while it is there.

Prompts go through a block one by one, so that an embedding does not depend on its neighbours to the
last bit. Between blocks a prompt is its hidden states alone: 77 x 4096 numbers of T5-XXL, 1.3 MB in
float32. They keep the type that the blocks return: beside float16, transformers computes the last
product of each block in float32, and the sums exceed what float16 can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.masking_utils import create_bidirectional_mask

from lowmem_if.weights.library_differences import t5_block
from lowmem_if.weights.streaming.streamer import Streamed


def encode_in_one_pass(
    streamed: Streamed,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    together: int,
    on_block: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[torch.Tensor]:
    """The embedding (1, 77, width) of each prompt: transformers' `T5Stack.forward`, inside out.

    Args:
        streamed: a `T5EncoderModel`, its blocks coming and going as wholes.
        input_ids, attention_mask: (n, 77) of n prompts, where the encoder computes.
        together: prompts that share a pass; the states of more would fill the memory that streaming
            saves.
        on_block: called with the number of blocks done and of all.
    """
    stack: Any = streamed.module.encoder
    passes = list(zip(input_ids.split(together), attention_mask.split(together), strict=True))
    for number, (ids, mask) in enumerate(passes):
        blocks = len(stack.block)
        tell = _counting_on(on_block, number * blocks, len(passes) * blocks)
        yield from _one_pass(streamed, stack, ids, mask, tell)


def _counting_on(
    on_block: Callable[[int, int], None], before: int, total: int
) -> Callable[[int], None]:
    return lambda done: on_block(before + done, total)


def _one_pass(
    streamed: Streamed,
    stack: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    on_block: Callable[[int], None],
) -> Iterator[torch.Tensor]:
    # One tensor a prompt: each is freed as soon as the first block has replaced it.
    with streamed.holding(stack.embed_tokens):
        hidden = [stack.embed_tokens(ids) for ids in input_ids.split(1)]
    masks = [
        create_bidirectional_mask(
            stack.config, states, mask
        )  # in 5.0 its arguments have other names
        for states, mask in zip(hidden, attention_mask.split(1), strict=True)
    ]
    bias = None  # of positions alone: the first block makes it, for all prompts and blocks
    for done, block in enumerate(stack.block, start=1):
        with streamed.holding(block):
            for number, mask in enumerate(masks):
                hidden[number], bias = t5_block(block, hidden[number], mask, bias)
        on_block(done)
    with streamed.holding(stack.final_layer_norm):
        for states in hidden:
            yield stack.final_layer_norm(states)
