"""What each rung of `--prefer fast` saves and costs, on the bundled cascade's judged scenes.

    python -m bench.fast_rungs [--scenes 32] [--only stage_1]

Writes the section `fast` of `bench/RESULTS.md`. Every rung draws the same held-out scenes from the same
seeds: stage 1 from words, stage 2 and the upscaler from true smaller pictures. The first rung takes 50
steps of the checkpoint's own scheduler. Time is CPU seconds of the UNet and everything around it in one
process, as a share of the first rung's. PSNR and SSIM compare with the picture that the same scheduler
and steps draw with nothing left out. The judge is the one of `training/evaluate.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from torch.nn.functional import avg_pool2d

import lowmem_if as lm
from bench.__main__ import RESULTS
from bench.results import write_section
from lowmem_if.cascade.catalog import DEMO_DEFAULTS, STAGE_1, STAGE_2, UPSCALER
from lowmem_if.request.denoising.noise_scheduler import DDPM, DPM_SOLVER
from lowmem_if.request.denoising.shortcuts import EVERYTHING, FAST_SHORTCUTS, Shortcuts
from lowmem_if.request.sampling import Sampling
from lowmem_if.stages.drawing.shortened import shortened
from lowmem_if.stages.pipelines import LAMBDA_MIN
from training.evaluate import edge_psnr, held_out_scenes, sharpness
from training.judge import both_colours_right, mark
from training.scenes import Scene, Window, plain_caption, render

_BATCH = {STAGE_1: 8, STAGE_2: 2, UPSCALER: 1}
_SHARE = {STAGE_1: 1.0, STAGE_2: 0.5, UPSCALER: 0.125}
"""Of the scenes: larger pictures take longer."""
_SSIM_WINDOW = 8


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to draw: a scheduler, its steps, and what is left out of them."""

    scheduler: str
    steps: int
    shortcuts: Shortcuts = EVERYTHING

    def __str__(self) -> str:
        words = [f"{self.steps} steps of {self.scheduler}"]
        if self.shortcuts.guided_share < 1:
            words.append(f"guidance in the first {self.shortcuts.guided_share:.0%}")
        if self.shortcuts.every > 1:
            words.append(f"every {self.shortcuts.every}. pass after {self.shortcuts.first}")
        return ", ".join(words)


def rungs(stage: str) -> list[Rung]:
    """The rungs of a stage, one change at a time, and the whole of `--prefer fast`."""
    solver = DDPM if stage == UPSCALER else DPM_SOLVER  # the upscaler has one scheduler, DDIM
    steps = DEMO_DEFAULTS[stage].fast_steps
    guided = replace(EVERYTHING, guided_share=FAST_SHORTCUTS.guided_share)
    forecast = replace(FAST_SHORTCUTS, guided_share=1.0)
    some = [Rung(DDPM, 50), Rung(DDPM, DEMO_DEFAULTS[stage].steps), Rung(solver, steps)]
    some.append(Rung(solver, steps, forecast))
    if DEMO_DEFAULTS[stage].guidance_scale > 1:
        some += [Rung(solver, steps, guided), Rung(solver, steps, FAST_SHORTCUTS)]
    return some


@dataclass(frozen=True, slots=True)
class Drawn:
    """The pictures of a rung (n, 3, side, side) in [-1, 1], and the CPU seconds that they took."""

    pictures: torch.Tensor
    seconds: float


class Bench:
    """One stage of the bundled cascade, open, with its scenes."""

    def __init__(self, stage: str, scenes: int, pin: str = "resident:float32") -> None:
        self.stage, self._texts = stage, {}
        count = max(_BATCH[stage], round(scenes * _SHARE[stage]))
        self.singles = held_out_scenes(count, 1)
        self.pairs = held_out_scenes(count, 2) if stage == STAGE_1 else []
        captions = [plain_caption(scene) for scene in (*self.singles, *self.pairs)]
        self._texts = lm.embed(["", *captions], cascade="demo", dtype="float32")
        number = (STAGE_1, STAGE_2, UPSCALER).index(stage) + 1
        self._open = lm.open_stage("demo", number, pin=pin, batch=_BATCH[stage])
        self._open.set_progress_bar_config(disable=True)
        self._own = self._open.scheduler

    @property
    def unet(self) -> Any:
        """The stage's network."""
        return self._open.unet

    def close(self) -> None:
        self._open.close()

    def draw(self, rung: Rung, scenes: Sequence[Scene]) -> Drawn:
        """The scenes, drawn by a rung."""
        if rung.scheduler == DPM_SOLVER:
            self._open.scheduler = DPMSolverMultistepScheduler.from_config(
                self._own.config, lambda_min_clipped=LAMBDA_MIN
            )
        else:
            self._open.scheduler = self._own
        batch, began = _BATCH[self.stage], time.process_time()
        pieces = [
            self._some(rung, scenes[first : first + batch], first)
            for first in range(0, len(scenes), batch)
        ]
        return Drawn(torch.cat(pieces).clamp(-1, 1), time.process_time() - began)

    @torch.no_grad()
    def _some(self, rung: Rung, scenes: Sequence[Scene], first: int) -> torch.Tensor:
        defaults = DEMO_DEFAULTS[self.stage]
        sampling = Sampling(
            rung.steps, None, defaults.guidance_scale, None, shortcuts=rung.shortcuts
        )
        given: dict[str, Any] = {
            "num_inference_steps": rung.steps, "guidance_scale": defaults.guidance_scale,
            "output_type": "pt",
            "generator": [torch.Generator().manual_seed(first + k) for k in range(len(scenes))],
        }  # fmt: skip
        captions = [plain_caption(scene) for scene in scenes]
        if self.stage != STAGE_1:
            side = 64 if self.stage == STAGE_2 else 256
            given |= {"image": render(list(scenes), side), "noise_level": defaults.noise_level}
        if self.stage == UPSCALER:
            given |= {"prompt": captions}
        else:
            given["prompt_embeds"] = torch.cat([self._texts[text] for text in captions])
            given["negative_prompt_embeds"] = torch.cat([self._texts[""]] * len(captions))
        with shortened(self._open, sampling):
            pictures: torch.Tensor = self._open(**given).images
        return pictures * 2 - 1 if self.stage == UPSCALER else pictures


def judged(bench: Bench, rung: Rung) -> tuple[Drawn, dict[str, float]]:
    """The single scenes as a rung draws them, and the judge's scores."""
    drawn = bench.draw(rung, bench.singles)
    marks = [mark(p, s) for p, s in zip(drawn.pictures, bench.singles, strict=True)]
    scores = {"all right": sum(m.all_three for m in marks) / len(marks)}
    if bench.pairs:
        two = bench.draw(rung, bench.pairs)
        right = [both_colours_right(p, s) for p, s in zip(two.pictures, bench.pairs, strict=True)]
        return drawn, scores | {"both colours": sum(right) / len(right)}
    truth = _truth(bench)
    scores["edges, dB"] = edge_psnr(drawn.pictures, truth)
    return drawn, scores | {"sharpness": sharpness(drawn.pictures, truth)}


def _truth(bench: Bench) -> torch.Tensor:
    """The true large pictures; stage 2 is shown its small one from corner to corner."""
    if bench.stage == UPSCALER:
        return render(bench.singles, 1024)
    window = Window(256, 0, 0, 256).corner_to_corner(64)
    return render(bench.singles, [window] * len(bench.singles))


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Decibels between pictures in [-1, 1]."""
    return float(-10 * torch.log10((one - other).square().mean() / 4))


def ssim(one: torch.Tensor, other: torch.Tensor) -> float:
    """Structural similarity in windows of 8 x 8 pixels (Wang et al., 2004), averaged."""

    def mean(images: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(images, _SSIM_WINDOW, 1)

    (a, b), (c1, c2) = (mean(one), mean(other)), ((0.01 * 2) ** 2, (0.03 * 2) ** 2)
    spread_a, spread_b = mean(one**2) - a**2, mean(other**2) - b**2
    both = mean(one * other) - a * b
    alike = (2 * a * b + c1) * (2 * both + c2)
    return float((alike / ((a**2 + b**2 + c1) * (spread_a + spread_b + c2))).mean())


def measure(stage: str, scenes: int, report: Callable[[str], object]) -> str:
    """The table of one stage as Markdown."""
    bench, rows, plain = Bench(stage, scenes), [], dict[tuple[str, int], torch.Tensor]()
    first = 0.0
    for rung in rungs(stage):
        drawn, scores = judged(bench, rung)
        first = first or drawn.seconds
        whole = plain.setdefault((rung.scheduler, rung.steps), drawn.pictures)
        alike = "" if whole is drawn.pictures else (
            f"{psnr(drawn.pictures, whole):.1f} dB, {ssim(drawn.pictures, whole):.3f}"
        )  # fmt: skip
        defaults = DEMO_DEFAULTS[stage]
        passes = Sampling(
            rung.steps, None, defaults.guidance_scale, None, shortcuts=rung.shortcuts
        ).passes
        found = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
        share = f"{drawn.seconds / first:.2f}"
        rows.append(f"| {rung} | {sum(passes)} | {share} | {found} | {alike} |")
        report(rows[-1])
    bench.close()
    columns = "| rung | UNet inputs | time | judge | to the whole |\n|---|---|---|---|---|\n"
    return f"### {stage}, {len(bench.singles)} scenes\n\n{columns}" + "\n".join(rows) + "\n"


def main() -> None:
    """Measure the rungs and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--only", choices=(STAGE_1, STAGE_2, UPSCALER))
    chosen = parser.parse_args()
    stages = [chosen.only] if chosen.only else [STAGE_1, STAGE_2, UPSCALER]
    tables = [measure(stage, chosen.scenes, print) for stage in stages]
    if not chosen.only:
        write_section(RESULTS, "fast", "## `--prefer fast`, rung by rung\n\n" + "\n".join(tables))


if __name__ == "__main__":
    main()
