"""T5 for many prompts in one pass over its weights: each block does all of them while it is there.

Prompts go through a block one by one, so that an embedding does not depend on its neighbours to the
last bit. Of a prompt on its way some 2 MB are held (hidden states and the bias of its attention).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.masking_utils import create_bidirectional_mask

from lowmem_if.weights.streaming import Streamed


class OnePassEncoder:
    """Stands in for `T5EncoderModel` in a pipeline: the same numbers, block by block.

    Args:
        streamed: the encoder, its blocks coming and going as wholes.
        on_block: called with the number of blocks done and of all.
    """

    def __init__(
        self, streamed: Streamed, on_block: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        self._streamed, self._on_block = streamed, on_block

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, which the pipelines ask for."""
        dtype: torch.dtype = self._streamed.module.dtype
        return dtype

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Hidden states (n, 77, width) of n prompts: transformers' `T5Stack.forward`, inside out."""
        stack: Any = self._streamed.module.encoder
        hold = self._streamed.holding
        with hold(stack.embed_tokens):
            hidden = [stack.embed_tokens(ids) for ids in input_ids.split(1)]
        masks = [
            create_bidirectional_mask(
                config=stack.config, inputs_embeds=states, attention_mask=mask
            )
            for states, mask in zip(hidden, attention_mask.split(1), strict=True)
        ]
        biases: list[Any] = [None] * len(hidden)
        for done, block in enumerate(stack.block, start=1):
            with hold(block):
                for number, states in enumerate(hidden):
                    hidden[number], biases[number], _ = block(states, masks[number], biases[number])
            self._on_block(done, len(stack.block))
        with hold(stack.final_layer_norm):
            return (torch.cat([stack.final_layer_norm(states) for states in hidden]),)
