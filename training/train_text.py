"""Teach the T5 encoder what the captions say: every attribute must be readable from its states.

Afterwards the encoder is frozen, as in the real cascade. Two readings are trained: from the mean of
the words' states, and from the mean of all 77 places, for the U-Nets look at the padding as well.

    python -m training.train_text --folder build/demo
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional
from transformers import T5EncoderModel, T5Tokenizer

from training import loop
from training.architectures import TEXT_WIDTH, text_encoder
from training.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, random_caption, random_scene
from training.words import load_tokenizer, tokenise

BATCH = 32
NOTHING = -100
GROUND_CLASSES = len(COLOURS) + 1
THING_CLASSES = (len(SHAPES) + 1, len(COLOURS), len(SIZES), len(PLACES))
CLASSES = (GROUND_CLASSES, *THING_CLASSES, *THING_CLASSES)


class Reader(nn.Module):
    """The encoder and the two linear readings of its states."""

    def __init__(self, encoder: T5EncoderModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.from_words = nn.Linear(TEXT_WIDTH, sum(CLASSES))
        self.from_everywhere = nn.Linear(TEXT_WIDTH, sum(CLASSES))

    def forward(self, tokens: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of all attributes, by each reading."""
        states = self.encoder(**tokens)[0].float()
        mask = tokens["attention_mask"][..., None]
        words = (states * mask).sum(1) / mask.sum(1)
        return self.from_words(words), self.from_everywhere(states.mean(1))


def answers(scene: Scene | None) -> list[int]:
    """The right class of each attribute; `NOTHING` where the words leave it open."""
    if scene is None:
        return [len(COLOURS)] + [len(SHAPES), NOTHING, NOTHING, NOTHING] * 2
    found = [COLOURS.index(scene.ground)]
    for thing in scene.things:
        found += [SHAPES.index(thing.shape), COLOURS.index(thing.colour)]
        found += [list(SIZES).index(thing.size), list(PLACES).index(thing.place)]
    missing = 2 - len(scene.things)
    return found + [len(SHAPES), NOTHING, NOTHING, NOTHING] * missing


def loss_of_step(tokenizer: T5Tokenizer) -> loop.LossOfStep:
    """The loss on a fresh batch of captions, some of them empty."""

    def loss(network: nn.Module, lots: loop.Lots, _step: int):
        rng = lots.scenes
        scenes = [None if rng.random() < 0.04 else random_scene(rng) for _ in range(BATCH)]
        captions = ["" if scene is None else random_caption(scene, rng) for scene in scenes]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            readings = network(tokenise(tokenizer, captions))
        right = torch.tensor([answers(scene) for scene in scenes])
        total = sum(_cross_entropy(scores.float(), right) for scores in readings)
        return total, {
            "loss": total.item(),
            "right words": _all_right(readings[0], right),
            "right everywhere": _all_right(readings[1], right),
        }

    return loss


def _cross_entropy(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    parts = zip(scores.split(CLASSES, 1), right.T, strict=True)
    return sum(
        functional.cross_entropy(part, classes, ignore_index=NOTHING)
        for part, classes in parts
        if (classes != NOTHING).any()
    )


def _all_right(scores: torch.Tensor, right: torch.Tensor) -> float:
    """The share of captions of which every attribute is read rightly."""
    guesses = torch.stack([part.argmax(1) for part in scores.split(CLASSES, 1)], 1)
    return ((guesses == right) | (right == NOTHING)).all(1).float().mean().item()


def main() -> None:
    """Train or carry on."""
    chosen = loop.arguments(__doc__, "text.pt", steps=900, rate=2e-3)
    tokenizer = load_tokenizer(chosen.folder)
    reader = Reader(text_encoder(len(tokenizer)))
    # Muon did not bind colours to nouns here (optimiser.py).
    loop.run(reader, loss_of_step(tokenizer), replace(chosen.plan, matrix_rate=0.0))


if __name__ == "__main__":
    main()
