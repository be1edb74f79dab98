"""Measure a cascade on held-out scenes, with its default settings, through the runner.

    python -m training.evaluate stage_1 [--cascade demo] [--count 96] [--sheet stage_1.png]
    python -m training.evaluate pairs | whole | stage_2 | upscaler | enlarged

`stage_1`, `pairs` and `whole` are drawn by `lowmem-if generate` and judged by what the pictures show.
`stage_2`, `upscaler` and `enlarged` (both stages, 64 to 1024 px) start from true small pictures and are
measured against the true large ones, beside bicubic enlargement and what the autoencoder makes of the
truth. The pipelines enlarge for stage 2 from corner to corner, bicubic does the same there, and both are
held against the scene as it is seen then; `unmoved`: stage 2 against the scene where it was.
What follows `--` goes to `lowmem-if generate`: `-- --pin text_encoder=resident:int8`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from lowmem_if.cascade.locate import locate
from training.judge import Marks, both_colours_right, mark
from training.pictures import draw, enlarge
from training.scenes import Scene, Window, plain_caption, random_scene, render
from training.sheets import save_sheet

SCENES_SEED = 7
EDGE_REACH, EDGE_CONTRAST = 9, 0.2


def held_out_scenes(count: int, things: int = 1, seed: int = SCENES_SEED) -> list[Scene]:
    """Held-out scenes, the same ones at each call; settings are chosen on those of another seed."""
    rng = random.Random(seed)
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
    """Decibels within a few pixels of the true edges only: whether they are where they should be."""
    band = _edge_band(truth).expand_as(truth)
    return (-10 * torch.log10((pictures - truth)[band].square().mean() / 4)).item()


def sharpness(pictures: torch.Tensor, truth: torch.Tensor) -> float:
    """Energy of the gradients near the true edges, over the truth's: 1 as sharp, less is blurred.

    An edge of a given contrast has the less of it the wider it is; where it lies does not matter.
    """
    band = _edge_band(truth)[:, :, 1:, 1:]

    def energy(images: torch.Tensor) -> torch.Tensor:
        down, right = images.diff(dim=2)[:, :, :, 1:], images.diff(dim=3)[:, :, 1:]
        return ((down.square() + right.square()) * band).sum()

    return (energy(pictures) / energy(truth)).item()


def _edge_band(truth: torch.Tensor) -> torch.Tensor:
    """(n, 1, side, side), true within a few pixels of an edge."""
    reach = (EDGE_REACH, 1, EDGE_REACH // 2)
    spread = functional.max_pool2d(truth, *reach) + functional.max_pool2d(-truth, *reach)
    return spread.amax(1, keepdim=True) > EDGE_CONTRAST


def _share(values: list[bool]) -> float:
    return sum(values) / max(1, len(values))


@dataclass(frozen=True)
class Trial:
    """One measurement: a cascade, scenes and their captions, a scratch folder, options of `generate`."""

    cascade: str
    scenes: list[Scene]
    folder: Path
    options: list[str]

    @property
    def captions(self) -> list[str]:
        return [plain_caption(scene) for scene in self.scenes]


Found = tuple[dict[str, float], torch.Tensor]


def _singles(trial: Trial, side: int) -> Found:
    pictures = draw(trial.cascade, trial.captions, side, trial.folder, *trial.options)
    return figures([mark(p, s) for p, s in zip(pictures, trial.scenes, strict=True)]), pictures


def _pairs(trial: Trial) -> Found:
    pictures = draw(trial.cascade, trial.captions, 64, trial.folder, *trial.options)
    right = [both_colours_right(p, s) for p, s in zip(pictures, trial.scenes, strict=True)]
    return {"both colours": _share(right)}, pictures


def _stage_2(trial: Trial) -> Found:
    small, truth = render(trial.scenes, 64), _seen_after_stage_2(trial, 256)
    pictures = enlarge(trial.cascade, trial.captions, [small], trial.folder)
    found, sheet = _beside(truth, {"": pictures, "bicubic ": _bicubic(small, 256, corners=True)})
    unmoved = {"unmoved ": pictures, "unmoved bicubic ": _bicubic(small, 256)}
    return found | _beside(render(trial.scenes, 256), unmoved)[0], sheet


def _upscaler(trial: Trial) -> Found:
    small, middle, truth = (render(trial.scenes, side) for side in (64, 256, 1024))
    pictures = enlarge(trial.cascade, trial.captions, [small, middle], trial.folder)
    found = {"": pictures, "bicubic ": _bicubic(middle, 1024)}
    return _beside(truth, found | {"autoencoder ": _there_and_back(trial.cascade, truth)})


def _enlarged(trial: Trial) -> Found:
    small, truth = render(trial.scenes, 64), _seen_after_stage_2(trial, 1024)
    pictures = enlarge(trial.cascade, trial.captions, [small], trial.folder, side=1024)
    bicubic = _bicubic(_bicubic(small, 256, corners=True), 1024)
    found = {"": pictures, "bicubic ": bicubic}
    return _beside(truth, found | {"autoencoder ": _there_and_back(trial.cascade, truth)})


def _seen_after_stage_2(trial: Trial, side: int) -> torch.Tensor:
    """The scenes as stage 2 is shown them, which the upscaler leaves where they are."""
    window = Window(256, 0, 0, 256).corner_to_corner(64)
    return render(trial.scenes, [window.scaled(side / 256)] * len(trial.scenes))


def _bicubic(small: torch.Tensor, side: int, corners: bool = False) -> torch.Tensor:
    large = functional.interpolate(small, (side, side), mode="bicubic", align_corners=corners)
    return large.clamp(-1, 1)


def _there_and_back(cascade: str, truth: torch.Tensor) -> torch.Tensor:
    folder = locate(cascade, components=("upscaler",)).folder("upscaler", storage="float32")
    vae = AutoencoderKL.from_pretrained(folder / "vae", variant="fp16", torch_dtype=torch.float32)
    with torch.no_grad():
        return torch.cat([vae(picture[None]).sample.clamp(-1, 1) for picture in truth])


def _beside(truth: torch.Tensor, ways: dict[str, torch.Tensor]) -> Found:
    found = {}
    for way, pictures in ways.items():
        found[f"{way}psnr"] = psnr(pictures, truth)
        found[f"{way}edges"] = edge_psnr(pictures, truth)
        found[f"{way}sharpness"] = sharpness(pictures, truth)
    return found, torch.stack([*ways.values(), truth], 1).flatten(0, 1)


MEASURES: dict[str, tuple[Callable[[Trial], Found], int, int]] = {
    "stage_1": (lambda trial: _singles(trial, 64), 96, 1),
    "pairs": (_pairs, 96, 2),
    "whole": (lambda trial: _singles(trial, 1024), 96, 1),
    "stage_2": (_stage_2, 16, 1),
    "upscaler": (_upscaler, 8, 1),
    "enlarged": (_enlarged, 8, 1),
}
"""How, on how many scenes, with how many things in each."""


def main() -> None:
    """Measure one thing and print its figures as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--cascade", default="demo")
    parser.add_argument("--count", type=int)
    parser.add_argument("--scenes", type=int, default=SCENES_SEED, help="seed of the scenes")
    parser.add_argument("--sheet", type=Path, help="also write the pictures here")
    # argparse would give what follows -- to the first argument that takes any number.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = sys.argv[end + 1 :]
    chosen = parser.parse_args(sys.argv[1:end])
    measure, count, things = MEASURES[chosen.what]
    scenes = held_out_scenes(chosen.count or count, things, chosen.scenes)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(chosen.cascade, scenes, Path(scratch) / "run", options)
        found, pictures = measure(trial)
    rounded = {name: round(value, 3) for name, value in found.items()}
    print(json.dumps({"what": chosen.what, "scenes": len(scenes), **rounded}))
    if chosen.sheet:
        save_sheet(pictures, chosen.sheet, columns=12 if pictures.shape[2] <= 64 else 4)


if __name__ == "__main__":
    main()
