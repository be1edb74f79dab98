"""The T5 text encoder: prompts in, embeddings out, by diffusers' own `IFPipeline.encode_prompt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import IFPipeline

from lowmem_if.cascade.catalog import KNOWN_WORDS, MAX_TOKENS
from lowmem_if.cascade.configs import read_as
from lowmem_if.cascade.strategies import STREAM
from lowmem_if.planning.plan import Step
from lowmem_if.stages.one_pass import encode_in_one_pass
from lowmem_if.stages.pipelines import let_go, loading_device, place
from lowmem_if.weights.loading import load_text_encoder, load_tokenizer, stream_text_encoder
from lowmem_if.weights.streaming.streamer import Streamed


@dataclass(frozen=True, slots=True)
class CleanedText:
    """A prompt as the encoder will see it.

    Attributes:
        text: after IF's caption cleaning.
        cut: the end that is left out for length.
        unknown: words that the encoder was never taught; always empty where the language is open.
    """

    text: str
    cut: str
    unknown: tuple[str, ...]


class TextCleaner:
    """IF's caption cleaning and the tokenizer: all that can be known about a prompt without T5."""

    def __init__(self, root: Path) -> None:
        self.tokenizer = load_tokenizer(root / "tokenizer")
        self.known_words = _known_words(root / "tokenizer" / KNOWN_WORDS)
        self._pipeline = IFPipeline(
            self.tokenizer, None, None, None, None, None, None, requires_safety_checker=False
        )

    def clean(self, prompt: str) -> CleanedText:
        """The prompt cleaned as `IFPipeline` does by default, and what exceeds 77 tokens of it."""
        text = self._pipeline._text_preprocessing(prompt, clean_caption=True)[0]
        return CleanedText(text, cut_off(self.tokenizer, text), self._unknown(text))

    def _unknown(self, text: str) -> tuple[str, ...]:
        if not self.known_words:
            return ()
        known = {word for words in self.known_words.values() for word in words}
        return tuple(dict.fromkeys(w for w in re.findall(r"\w+", text.lower()) if w not in known))


def cut_off(tokenizer: Any, text: str) -> str:
    """What of a text comes behind the 77 tokens, their end mark included, that IF's encoders read."""
    ids = tokenizer(text).input_ids
    cut: str = tokenizer.decode(ids[MAX_TOKENS - 1 : -1]) if len(ids) > MAX_TOKENS else ""
    return cut


def _known_words(file: Path) -> dict[str, list[str]]:
    return read_as(file, dict[str, list[str]]) if file.is_file() else {}


class TextEncoder:
    """T5, in memory or streaming; freed by `close()`."""

    def __init__(self, root: Path, step: Step) -> None:
        self._step = step
        self._streamed: Streamed | None = None
        with ExitStack() as streams:
            encoder = self._take(root, streams)
            self.modules = [encoder]
            self._pipeline = IFPipeline(
                load_tokenizer(root / "tokenizer"), encoder, None, None, None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            place(self._pipeline, step)
            self._streams = streams.pop_all()

    def _take(self, root: Path, streams: ExitStack) -> torch.nn.Module:
        step = self._step
        if step.config.strategy != STREAM:
            return load_text_encoder(
                root,
                storage=step.config.storage_dtype,
                compute=step.config.compute_dtype,
                device=loading_device(step),
            )
        self._streamed = streams.enter_context(
            stream_text_encoder(root, dtype=step.config.storage_dtype, device=step.config.device)
        )
        return self._streamed.module

    def encode(
        self, prompts: Sequence[str], together: int, on_step: Callable[[int, int], None]
    ) -> Iterator[torch.Tensor]:
        """The embedding of each prompt: (1, 77, width) in the encoder's compute type, on the CPU.

        Args:
            together: prompts that share a pass over weights that stream.
            on_step: called with what is done and of how much: prompts, or blocks where weights stream
                and all prompts go through together.
        """
        if self._streamed:
            yield from self._encode_together(self._streamed, list(prompts), together, on_step)
            return
        for number, prompt in enumerate(prompts, start=1):
            yield self._encode(prompt)
            on_step(number, len(prompts))

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
        self,
        streamed: Streamed,
        prompts: list[str],
        together: int,
        on_step: Callable[[int, int], None],
    ) -> Iterator[torch.Tensor]:
        """As `encode_prompt` does it for each, but for all at once."""
        tokens = self._pipeline.tokenizer(
            self._pipeline._text_preprocessing(prompts, clean_caption=True),
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self._step.config.device)
        for embedding in encode_in_one_pass(
            streamed, tokens.input_ids, tokens.attention_mask, together, on_step
        ):
            yield embedding.to(streamed.module.dtype).cpu()

    def close(self) -> None:
        let_go(self._pipeline)
        self._streams.close()
        self._pipeline, self._streamed, self.modules = None, None, []
