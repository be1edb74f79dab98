"""Measure an exported cascade on held-out scenes.

    python -m training.evaluate EXPORT stage_1 [--count 96] [--sheet stage_1.png]
    python -m training.evaluate EXPORT pairs | stage_2 | upscaler | whole

`stage_1`, `pairs` and `whole` are judged by what the pictures show; `stage_2` and `upscaler` start
from true small pictures and are measured against the true large ones, beside bicubic enlargement.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from training import cascade
from training.cascade import Cascade, Setting
from training.judge import Marks, both_colours_right, mark
from training.scenes import Scene, plain_caption, random_scene, render
from training.sheets import save_sheet

SCENES_SEED = 7
EDGE_REACH, EDGE_CONTRAST = 9, 0.2


def held_out_scenes(count: int, things: int = 1) -> list[Scene]:
    """Held-out scenes, the same ones at each call."""
    rng = random.Random(SCENES_SEED)
    return [random_scene(rng, held_out=True, count=things) for _ in range(count)]


def figures(marks: list[Marks]) -> dict[str, float]:
    """The share of pictures in which each thing is right."""
    names = ("ground", "colour", "shape", "all_three", "alone")
    shares = {name: _share([getattr(m, name) for m in marks]) for name in names}
    return shares | {"place": _share([m.place for m in marks if m.place is not None])}


def psnr(pictures: torch.Tensor, truth: torch.Tensor) -> float:
    """Decibels of whole pictures, averaged."""
    error = (pictures - truth).square().mean((1, 2, 3))
    return (-10 * torch.log10(error / 4)).mean().item()


def edge_psnr(pictures: torch.Tensor, truth: torch.Tensor) -> float:
    """Decibels within a few pixels of the true edges only: sharpness is decided there."""
    reach = (EDGE_REACH, 1, EDGE_REACH // 2)
    spread = functional.max_pool2d(truth, *reach) + functional.max_pool2d(-truth, *reach)
    band = (spread.amax(1, keepdim=True) > EDGE_CONTRAST).expand_as(truth)
    return (-10 * torch.log10((pictures - truth)[band].square().mean() / 4)).item()


def _share(values: list[bool]) -> float:
    return sum(values) / max(1, len(values))


def _stage_1(model: Cascade, setting: Setting, count: int) -> tuple[dict, torch.Tensor]:
    scenes = held_out_scenes(count)
    pictures = model.draw([plain_caption(scene) for scene in scenes], setting)
    return figures([mark(p, s) for p, s in zip(pictures, scenes, strict=True)]), pictures


def _pairs(model: Cascade, setting: Setting, count: int) -> tuple[dict, torch.Tensor]:
    scenes = held_out_scenes(count, things=2)
    pictures = model.draw([plain_caption(scene) for scene in scenes], setting)
    right = [both_colours_right(p, s) for p, s in zip(pictures, scenes, strict=True)]
    return {"both colours": _share(right)}, pictures


def _stage_2(model: Cascade, setting: Setting, count: int) -> tuple[dict, torch.Tensor]:
    scenes = held_out_scenes(count)
    captions = [plain_caption(scene) for scene in scenes]
    small, truth = render(scenes, 64), render(scenes, 256)
    return _beside_bicubic(small, truth, model.enlarge(captions, small, setting))


def _upscaler(model: Cascade, setting: Setting, count: int) -> tuple[dict, torch.Tensor]:
    scenes = held_out_scenes(count)
    captions = [plain_caption(scene) for scene in scenes]
    small, truth = render(scenes, 256), render(scenes, 1024)
    return _beside_bicubic(small, truth, model.finish(captions, small, setting))


def _beside_bicubic(
    small: torch.Tensor, truth: torch.Tensor, pictures: torch.Tensor
) -> tuple[dict, torch.Tensor]:
    plain = functional.interpolate(small, truth.shape[2:], mode="bicubic").clamp(-1, 1)
    found = {
        "psnr": psnr(pictures, truth),
        "edges": edge_psnr(pictures, truth),
        "bicubic psnr": psnr(plain, truth),
        "bicubic edges": edge_psnr(plain, truth),
    }
    columns = torch.stack([plain, pictures, truth], 1).flatten(0, 1)
    return found, columns


def _whole(model: Cascade, setting: Setting, count: int) -> tuple[dict, torch.Tensor]:
    scenes = held_out_scenes(count)
    captions = [plain_caption(scene) for scene in scenes]
    pictures = model.draw(captions, setting)
    for step in (model.enlarge, model.finish):
        pictures = step(captions, pictures)
    return figures([mark(p, s) for p, s in zip(pictures, scenes, strict=True)]), pictures


Measure = Callable[[Cascade, Setting, int], tuple[dict, torch.Tensor]]
MEASURES: dict[str, tuple[Measure, Setting, int]] = {
    "stage_1": (_stage_1, cascade.STAGE_1, 96),
    "pairs": (_pairs, cascade.STAGE_1, 48),
    "stage_2": (_stage_2, cascade.STAGE_2, 8),
    "upscaler": (_upscaler, cascade.UPSCALER, 4),
    "whole": (_whole, cascade.STAGE_1, 8),
}


def main() -> None:
    """Measure one thing and print its figures and the seconds a picture took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--count", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--noise-level", type=int)
    parser.add_argument("--sheet", type=Path, help="also write the pictures here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    measure, setting, count = MEASURES[chosen.what]
    asked = {name: getattr(chosen, name) for name in ("steps", "guidance", "noise_level")}
    setting = replace(setting, **{name: v for name, v in asked.items() if v is not None})
    count = chosen.count or count
    model = Cascade(chosen.export)
    found, pictures = measure(model, setting, count)
    print(chosen.what, setting, f"{count} scenes", {k: round(v, 3) for k, v in found.items()})
    print("seconds a picture:", {k: round(v / count, 2) for k, v in model.seconds.items()})
    if chosen.sheet:
        save_sheet(pictures, chosen.sheet, columns=12 if pictures.shape[2] <= 64 else 3)


if __name__ == "__main__":
    main()
