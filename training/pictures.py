"""Pictures from the runner itself: whole ones by its command line, single stages by its run folder.

Pictures are [n, 3, side, side] in [-1, 1].
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image

import lowmem_if as lm
from lowmem_if.cascade.catalog import SIZES, UPSCALER
from lowmem_if.weights.files.tensor_file import load_tensor, tensor_bytes

FIRST_SEED = 1


def draw(cascade: str, captions: list[str], side: int, out: Path, *options: str) -> torch.Tensor:
    """What `lowmem-if generate` makes of captions, each with a seed of its own, read from its files."""
    seeds = ",".join(str(FIRST_SEED + k) for k in range(len(captions)))
    command = ["generate", *captions, "--cascade", cascade, "--size", str(side), "--seed", seeds]
    command += ["--out", str(out), "--quiet", *options]
    subprocess.run([sys.executable, "-m", "lowmem_if", *command], check=True)
    return torch.stack([read_picture(out / f"{k:04}.png") for k in range(len(captions))])


def enlarge(
    cascade: str,
    captions: list[str],
    smaller: list[torch.Tensor],
    out: Path,
    side: int | None = None,
) -> torch.Tensor:
    """What the next stage, or those up to `side`, make of given pictures.

    `smaller` stands in for the first stages: a run that finds these stages' pictures in its folder does
    not draw them again.
    """
    side = side or tuple(SIZES)[len(smaller)]
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + len(captions)))
    request = lm.make_request(tuple(captions), cascade=cascade, size=side, seed=seeds)
    plan = lm.make_plan(lm.probe(), request)
    folder = lm.RunFolder.for_plan(out, plan)
    folder.prepare()
    for stage, pictures in zip(SIZES[side], smaller, strict=False):
        for task, picture in zip(request.images, pictures, strict=True):
            folder.write(folder.tensor_file(stage, task), tensor_bytes(picture))
    lm.run(plan, out)
    last = SIZES[side][-1]
    drawn = torch.stack([load_tensor(folder.tensor_file(last, task)) for task in request.images])
    return drawn * 2 - 1 if last == UPSCALER else drawn.clamp(-1, 1)


def read_picture(file: Path) -> torch.Tensor:
    """A picture file as [3, side, side]."""
    pixels = torch.from_numpy(numpy.asarray(Image.open(file).convert("RGB")).copy())
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
