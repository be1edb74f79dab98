"""The one training loop: seeded by step, resumable at any moment, one line of progress.

A step's lots are drawn from `seed` and the step's number alone, so a run that was stopped and resumed
sees the same data as one that was not. Stop it with Ctrl-C or SIGTERM: it saves and leaves.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from training.optimiser import MATRIX_RATE, Optimiser

WARM_UP_STEPS = 60
LOWEST_SHARE = 0.02
GRADIENT_LIMIT = 1.0
SMOOTHING = 0.98
SAVE_SECONDS = 120


@dataclass(frozen=True)
class Lots:
    """A step's two sources of chance, one for scenes and words and one for noise.

    `tiny`: whether the step is there only to see that it runs.
    """

    scenes: random.Random
    noise: torch.Generator
    tiny: bool = False

    @classmethod
    def of_step(cls, seed: int, step: int, *, tiny: bool = False) -> Lots:
        """The lots of one step."""
        number = seed * 1_000_003 + step
        return cls(random.Random(number), torch.Generator().manual_seed(number), tiny)

    def size(self, batch_of_side: Mapping[int, int], share: Sequence[float]) -> tuple[int, int]:
        """The side of this step's pictures, and how many they are; a tiny step has one small picture."""
        side = self.scenes.choices(tuple(batch_of_side), share)[0]
        return (min(batch_of_side), 1) if self.tiny else (side, batch_of_side[side])


@dataclass(frozen=True)
class Plan:
    """How long to train, how fast (AdamW's and Muon's highest rates), and where the checkpoint lies."""

    checkpoint: Path
    steps: int
    rate: float
    seed: int = 0
    ema: float = 0.998
    decay: float = 0.3
    matrix_rate: float = MATRIX_RATE
    tiny: bool = False

    def share_at(self, step: int) -> float:
        """Of the full rates: warm-up, a plateau, and a straight way down over the last steps."""
        left = (self.steps - step) / (self.decay * self.steps)
        return max(min(1.0, (step + 1) / WARM_UP_STEPS, left), LOWEST_SHARE)


@dataclass
class Training:
    """A network under training with its optimiser and its smoothed copy."""

    network: nn.Module
    plan: Plan
    step: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.smooth = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = Optimiser(self.network, self.plan.rate, self.plan.matrix_rate)
        if self.plan.checkpoint.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.plan.checkpoint, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.smooth.load_state_dict(state["smooth"])
        if "optimiser" in state:  # unpacked checkpoints have none
            self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.figures = state["step"], state["seconds"], state["figures"]

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        self.plan.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        half = self.plan.checkpoint.with_suffix(".half")
        state = {
            "network": self.network.state_dict(),
            "smooth": self.smooth.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "figures": self.figures,
        }
        torch.save(state, half)
        half.replace(self.plan.checkpoint)

    def improve(self, loss: torch.Tensor) -> None:
        """One optimiser step on `loss`, and one of the smoothed copy."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_LIMIT)
        self.optimiser.step(self.plan.share_at(self.step))
        self.step += 1
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            pair = list(self.smooth.parameters()), list(self.network.parameters())
            torch._foreach_lerp_(*pair, 1 - keep)

    def log(self) -> None:
        """Append the running means to the table beside the checkpoint, one figure a line."""
        with self.plan.checkpoint.with_suffix(".csv").open("a") as table:
            for name, value in self.figures.items():
                table.write(f"{self.step},{self.seconds:.0f},{name},{value:.5g}\n")

    def note(self, figures: dict[str, float]) -> None:
        """Take the step's figures into the running means."""
        for name, value in figures.items():
            old = self.figures.get(name, value)
            self.figures[name] = SMOOTHING * old + (1 - SMOOTHING) * value


LossOfStep = Callable[[nn.Module, Lots, int], tuple[torch.Tensor, dict[str, float]]]


def run(network: nn.Module, loss_of_step: LossOfStep, plan: Plan, log_every: int = 50) -> nn.Module:
    """Train to the plan's last step, or until told to stop; return the smoothed network.

    `loss_of_step(network, lots, step)` gives the loss and the figures worth following.
    """
    training = Training(network, plan)
    saved, logged = time.monotonic(), (training.step, training.seconds)
    with _stop_switch() as stop:
        while training.step < plan.steps and not stop:
            began = time.monotonic()
            lots = Lots.of_step(plan.seed, training.step, tiny=plan.tiny)
            loss, figures = loss_of_step(network, lots, training.step)
            training.improve(loss)
            training.note(figures)
            training.seconds += time.monotonic() - began
            if training.step % log_every == 0:
                steps, seconds = training.step - logged[0], training.seconds - logged[1]
                print(_progress(training, seconds / steps), flush=True)
                logged = (training.step, training.seconds)
                training.log()
            if time.monotonic() - saved > SAVE_SECONDS:
                training.save()
                saved = time.monotonic()
        training.save()
    return training.smooth


def _progress(training: Training, step_seconds: float) -> str:
    figures = "  ".join(f"{name} {value:.4f}" for name, value in training.figures.items())
    steps, left = training.plan.steps, (training.plan.steps - training.step) * step_seconds / 60
    rate = training.plan.share_at(training.step)
    trained = training.seconds / 60
    return (
        f"{training.plan.checkpoint.stem} {training.step}/{steps}  {figures}  rate {rate:.0%}  "
        f"{step_seconds:.2f} s/step  trained {trained:.1f} min  left {left:.0f} min"
    )


@contextmanager
def _stop_switch() -> Iterator[list[int]]:
    """A list that is empty until the process is asked to stop."""
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _frame: asked.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def arguments(
    description: str | None, checkpoint: str, steps: int, rate: float, decay: float = 0.3
) -> argparse.Namespace:
    """The command line every training shares; also makes the process polite and one-threaded."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="checkpoints")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--matrix-rate", type=float, default=MATRIX_RATE, help="Muon's")
    parser.add_argument("--decay", type=float, default=decay, help="share of steps to slow down in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="one small picture a step, to try it")
    chosen = parser.parse_args()
    chosen.plan = Plan(
        chosen.folder / checkpoint,
        chosen.steps,
        chosen.rate,
        chosen.seed,
        decay=chosen.decay,
        matrix_rate=chosen.matrix_rate,
        tiny=chosen.tiny,
    )
    torch.set_num_threads(1)
    torch.manual_seed(chosen.seed)
    os.nice(max(0, 19 - os.nice(0)))
    return chosen
