"""The T5 text encoder: prompts in, embeddings out, by diffusers' own `IFPipeline.encode_prompt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import IFPipeline
from transformers.masking_utils import create_bidirectional_mask

from lowmem_if.cascade.catalog import KNOWN_WORDS, MAX_TOKENS
from lowmem_if.cascade.configs import read_as
from lowmem_if.cascade.strategies import STREAM
from lowmem_if.planning.plan import Step
from lowmem_if.stages.pipelines import loading_options, place, remove_hooks
from lowmem_if.stages.stage import OnStep, StageConfig, TextInputs
from lowmem_if.weights.library_differences import t5_block
from lowmem_if.weights.loading import load_text_encoder, stream_text_encoder
from lowmem_if.weights.small_parts import load_tokenizer
from lowmem_if.weights.streaming.streamer import Streamed


@dataclass(frozen=True, slots=True)
class CleanedText:
    """A prompt as the encoder reads it.

    Attributes:
        text: after IF's caption cleaning.
        cut: the end that is left out because the prompt is too long.
        unknown: words that the encoder has not learnt; always empty for a cascade of a natural language.
    """

    text: str
    cut: str
    unknown: tuple[str, ...]


class TextCleaner:
    """IF's caption cleaning and the tokenizer: what can be known about a prompt without T5."""

    def __init__(self, root: Path) -> None:
        self.tokenizer = load_tokenizer(root / "tokenizer")
        self.known_words = _known_words(root / "tokenizer" / KNOWN_WORDS)
        self._pipeline = IFPipeline(
            self.tokenizer, None, None, None, None, None, None, requires_safety_checker=False
        )

    def clean(self, prompt: str) -> CleanedText:
        """The prompt as `IFPipeline` cleans it by default, and the part beyond 77 tokens."""
        text = self._pipeline._text_preprocessing(prompt, clean_caption=True)[0]
        return CleanedText(text, cut_off(self.tokenizer, text), self._unknown(text))

    def _unknown(self, text: str) -> tuple[str, ...]:
        if not self.known_words:
            return ()
        known = {word for words in self.known_words.values() for word in words}
        return tuple(dict.fromkeys(w for w in re.findall(r"\w+", text.lower()) if w not in known))


def cut_off(tokenizer: Any, text: str) -> str:
    """The part of a text beyond the 77 tokens, with the end mark, that IF's encoders read."""
    ids = tokenizer(text).input_ids
    cut: str = tokenizer.decode(ids[MAX_TOKENS - 1 : -1]) if len(ids) > MAX_TOKENS else ""
    return cut


def _known_words(file: Path) -> dict[str, list[str]]:
    return read_as(file, dict[str, list[str]]) if file.is_file() else {}


class TextEncoder:
    """T5, in memory or streaming; `load` it, `run` it on prompts, `close` it."""

    def __init__(
        self, pipeline: Any, encoder: torch.nn.Module, step: Step, streamed: Streamed | None
    ) -> None:
        self.modules = [encoder]
        self._pipeline, self._step, self._streamed = pipeline, step, streamed
        place(pipeline, step)

    @classmethod
    def load(cls, config: StageConfig) -> Self:
        root, step = config.root, config.step
        options = loading_options(config)
        with ExitStack() as undo:
            streamed = None
            if step.config.strategy == STREAM:
                streamed = undo.enter_context(stream_text_encoder(root, **options))
                encoder = streamed.module
            else:
                del options["dtype"]
                storage, compute = step.config.storage_dtype, step.config.compute_dtype
                encoder = load_text_encoder(root, storage=storage, compute=compute, **options)
            pipeline = IFPipeline(
                load_tokenizer(config.folder("tokenizer")), encoder, None, None, None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            loaded = cls(pipeline, encoder, step, streamed)
            undo.pop_all()
            return loaded

    def run(self, inputs: TextInputs, on_step: OnStep) -> Iterator[torch.Tensor]:
        """The embedding of each prompt: (1, 77, width) in the encoder's compute type, on the CPU.

        `on_step` counts prompts, or blocks where weights stream and prompts share a pass.
        """
        if self._streamed:
            yield from self._encode_together(self._streamed, inputs, on_step)
            return
        for number, prompt in enumerate(inputs.prompts, start=1):
            yield self._encode(prompt)
            on_step(number, len(inputs.prompts))

    def _encode(self, prompt: str) -> torch.Tensor:
        embedding, _ = self._pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=self._step.config.device,
            clean_caption=True,
        )
        return embedding.cpu()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _encode_together(
        self, streamed: Streamed, inputs: TextInputs, on_step: OnStep
    ) -> Iterator[torch.Tensor]:
        """As `encode_prompt` does it for one prompt, but for all at once."""
        tokens = self._pipeline.tokenizer(
            self._pipeline._text_preprocessing(list(inputs.prompts), clean_caption=True),
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self._step.config.device)
        for embedding in encode_in_one_pass(
            streamed, tokens.input_ids, tokens.attention_mask, inputs.together, on_step
        ):
            yield embedding.to(streamed.module.dtype).cpu()

    def close(self) -> None:
        """Remove all hooks and drop every reference to the encoder."""
        remove_hooks(self._pipeline)
        if self._streamed:
            self._streamed.close()
        self._pipeline, self._streamed, self.modules = None, None, []


def encode_in_one_pass(
    streamed: Streamed,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    together: int,
    on_block: OnStep = lambda _done, _total: None,
) -> Iterator[torch.Tensor]:
    """The embedding (1, 77, width) of each prompt: transformers' `T5Stack.forward`, block by block.

    Each block processes all prompts while its weights are in memory, one prompt at a time, so that an
    embedding does not depend on other prompts, to the last bit. Between blocks a prompt is only its
    hidden states: 77 x 4096 numbers of T5-XXL, 1.3 MB in float32. They keep the type that the blocks
    return: with float16, transformers computes the last product of each block in float32, and the sums
    exceed what float16 can hold.

    Args:
        streamed: a `T5EncoderModel` whose blocks are loaded as wholes.
        input_ids, attention_mask: (n, 77) of n prompts, on the encoder's device. together: how many
            prompts share a pass over the weights; the states of more would need the memory
            that streaming saves.
        on_block: called with the number of blocks done and of all.
    """
    stack: Any = streamed.module.encoder
    passes = list(zip(input_ids.split(together), attention_mask.split(together), strict=True))
    for number, (ids, mask) in enumerate(passes):
        blocks = len(stack.block)
        tell = _counting_on(on_block, number * blocks, len(passes) * blocks)
        yield from _one_pass(streamed, stack, ids, mask, tell, is_last=number == len(passes) - 1)


def _counting_on(on_block: OnStep, before: int, total: int) -> Callable[[int], None]:
    return lambda done: on_block(before + done, total)


def _one_pass(
    streamed: Streamed,
    stack: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    on_block: Callable[[int], None],
    *,
    is_last: bool,
) -> Iterator[torch.Tensor]:
    # One tensor for each prompt: it is freed as soon as the first block has replaced it.
    with streamed.holding(stack.embed_tokens):
        if is_last:
            streamed.begin_last_pass([*stack.block, stack.final_layer_norm])
        hidden = [stack.embed_tokens(ids) for ids in input_ids.split(1)]
    masks = [
        create_bidirectional_mask(
            stack.config, states, mask
        )  # in 5.0 its arguments have other names
        for states, mask in zip(hidden, attention_mask.split(1), strict=True)
    ]
    bias = None  # depends on positions alone: the first block computes it for all
    for done, block in enumerate(stack.block, start=1):
        with streamed.holding(block):
            for number, mask in enumerate(masks):
                hidden[number], bias = t5_block(block, hidden[number], mask, bias)
        on_block(done)
    with streamed.holding(stack.final_layer_norm):
        for states in hidden:
            yield stack.final_layer_norm(states)
