"""The T5 text encoder: prompts in, embeddings out, by diffusers' own `IFPipeline.encode_prompt`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import IFPipeline

from lowmem_if.planning.catalog import MAX_TOKENS
from lowmem_if.planning.configurations import read_as
from lowmem_if.planning.plan import Step
from lowmem_if.planning.strategies import STREAM
from lowmem_if.stages.one_pass import OnePassEncoder
from lowmem_if.stages.pipelines import let_go, loading_device, place
from lowmem_if.weights.loading import load_text_encoder, load_tokenizer, stream_text_encoder

KNOWN_WORDS = "known_words.json"
"""Beside a tokenizer whose encoder was taught a small language only: kind of word -> its words."""

_ONE_PASS = 64
"""Prompts that go through the weights together where those stream: on the way one takes up to 4 MB
(77 tokens of T5-XXL in float32, the bias of its attention, the result), all of them stay below the RAM
that every plan leaves free."""


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


def _report_block(
    on_step: Callable[[int, int], None], group: int, groups: int, done: int, total: int
) -> None:
    on_step(group * total + done, groups * total)


class TextEncoder:
    """T5, in memory or streaming; freed by `close()`."""

    def __init__(self, root: Path, step: Step) -> None:
        self._step = step
        self._on_block: Callable[[int, int], None] = lambda _done, _total: None
        with ExitStack() as streams:
            encoder, self.modules = self._take(root, streams)
            self._pipeline = IFPipeline(
                load_tokenizer(root / "tokenizer"), encoder, None, None, None, None, None,
                requires_safety_checker=False,
            )  # fmt: skip
            place(self._pipeline, step)
            self._streams = streams.pop_all()

    def _take(self, root: Path, streams: ExitStack) -> tuple[Any, list[torch.nn.Module]]:
        step = self._step
        if step.strategy != STREAM:
            encoder = load_text_encoder(
                root,
                storage=step.storage_dtype,
                compute=step.compute_dtype,
                device=loading_device(step),
            )
            return encoder, [encoder]
        streamed = streams.enter_context(
            stream_text_encoder(root, dtype=step.storage_dtype, device=step.device)
        )
        return OnePassEncoder(streamed, lambda *blocks: self._on_block(*blocks)), [streamed.module]

    def encode(
        self, prompts: Sequence[str], on_step: Callable[[int, int], None]
    ) -> Iterator[torch.Tensor]:
        """The embedding of each prompt: (1, 77, width) in the encoder's compute type, on the CPU.

        Args:
            on_step: called with what is done and of how much: prompts, or blocks where weights stream
                and many prompts come out together.
        """
        if self._step.strategy == STREAM:
            groups = [prompts[k : k + _ONE_PASS] for k in range(0, len(prompts), _ONE_PASS)]
            for number, group in enumerate(groups):
                self._on_block = partial(_report_block, on_step, number, len(groups))
                yield from self._encode(list(group)).split(1)
            return
        for number, prompt in enumerate(prompts, start=1):
            yield self._encode(prompt)
            on_step(number, len(prompts))

    def _encode(self, prompts: str | list[str]) -> torch.Tensor:
        embeddings, _ = self._pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self._step.device, clean_caption=True
        )
        return embeddings.cpu()

    def close(self) -> None:
        let_go(self._pipeline)
        self._streams.close()
        self._pipeline, self.modules = None, []
