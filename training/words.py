"""From captions to the frozen text encoder's states, as the pipelines make them."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import T5EncoderModel, T5Tokenizer

from training.architectures import text_encoder
from training.scenes import Scene, random_caption
from training.tokenizer import MAX_TOKENS, train_tokenizer

EMPTY_SHARE = 0.1


def load_tokenizer(folder: Path) -> T5Tokenizer:
    """The run's tokenizer, trained on the first call."""
    if (folder / "tokenizer").exists():
        return T5Tokenizer.from_pretrained(folder / "tokenizer")
    return train_tokenizer(folder / "tokenizer")


def load_text_encoder(folder: Path, tokenizer: T5Tokenizer) -> T5EncoderModel:
    """The trained text encoder, frozen."""
    encoder = text_encoder(len(tokenizer))
    state = torch.load(folder / "text.pt", weights_only=True)["smooth"]
    prefix = "encoder."
    encoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    return encoder.eval().requires_grad_(False)


class Words:
    """Tokenizer and frozen text encoder in one: captions in, states [n, 77, width] out."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.encoder = load_text_encoder(folder, self.tokenizer)

    def states(self, captions: list[str]) -> torch.Tensor:
        """The encoder's last hidden states, padded places included, as the pipelines use them."""
        tokens = tokenise(self.tokenizer, captions)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return self.encoder(**tokens)[0]

    def captions(self, scenes: list[Scene], rng: random.Random) -> list[str]:
        """A paraphrase for each scene, now and then empty, which is what guidance steers away from."""
        return ["" if rng.random() < EMPTY_SHARE else random_caption(s, rng) for s in scenes]


def tokenise(tokenizer: T5Tokenizer, captions: list[str]) -> dict[str, torch.Tensor]:
    """Token numbers and mask, padded to the length the pipelines use."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
