"""The modes mean something: on the bundled cascade, in pictures whose truth is known exactly."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch.nn import functional

import lowmem_if as lm
from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.request.image_spec import FACTOR
from training.judge import look, mark
from training.pictures import read_picture
from training.scenes import Scene, Thing, plain_caption, render

ROOT = Path(__file__).parents[2]
CIRCLE = Thing("circle", "red", "", "", 0.5, 0.5, 0.22)
OWN = Scene("blue", (CIRCLE,))
OTHER = Scene("yellow", (Thing("star", "green", "", "", 0.5, 0.5, 0.22),))
INSIDE = Scene("blue", (Thing("star", "yellow", "", "", 0.5, 0.5, 0.22),))


def to_file(picture: torch.Tensor, file: Path) -> Path:
    """A picture [3, side, side] in [-1, 1] as PNG."""
    pixels = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(file)
    return file


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red circle on blue, 256 pixels."""
    return to_file(render([OWN], 256)[0], tmp_path_factory.mktemp("own") / "own.png")


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White around the circle, with a border of a fifth left alone."""
    levels = numpy.zeros((256, 256), numpy.uint8)
    levels[52:204, 52:204] = 255
    file = tmp_path_factory.mktemp("mask") / "mask.png"
    Image.fromarray(levels).save(file)
    return file


@pytest.mark.worker
def test_a_low_strength_keeps_the_ground_and_a_high_one_takes_the_prompts(
    own: Path, tmp_path: Path
) -> None:
    """At 0.2 the picture is still blue with a red circle; at 0.9 it is what the text says."""
    low, high = (
        [
            read_picture(image)
            for image in lm.vary(
                own, plain_caption(OTHER), strength=strength, size=64, steps=14, seed=1, images=2,
                out=tmp_path / str(strength),
            ).images
        ]
        for strength in (0.2, 0.9)
    )  # fmt: skip
    assert [look(picture).ground for picture in low] == ["blue", "blue"]
    assert [look(picture).ground for picture in high] == ["yellow", "yellow"]
    assert all(mark(picture, OTHER).colour for picture in high)


@pytest.mark.worker
def test_inpainting_puts_the_colour_inside_the_mask_and_leaves_the_outside(
    own: Path, mask: Path, tmp_path: Path
) -> None:
    """The star is yellow and within the mask; outside the picture is its input, resized."""
    (image,) = lm.inpaint(
        own, mask, plain_caption(INSIDE), size=64, steps=14, seed=1, out=tmp_path / "run"
    ).images
    picture = read_picture(image)
    found = mark(picture, INSIDE)
    assert (found.ground, found.colour, found.shape) == (True, True, True)
    before = Image.open(own).resize((64, 64), Image.Resampling.BICUBIC)
    left = numpy.array(Image.open(mask).resize((64, 64), Image.Resampling.BICUBIC)) < 128
    left[-16:, -16:] = False  # where IF's visible mark is
    gap = numpy.abs(numpy.array(Image.open(image)).astype(int) - numpy.array(before))[left]
    assert gap.max() <= 1


@pytest.mark.worker
def test_the_outside_at_1024_is_no_further_from_the_input_than_the_round_trip(
    own: Path, mask: Path, tmp_path: Path
) -> None:
    """What the upscaler makes of the input alone is the plain pipelines' own round trip."""
    options: dict[str, Any] = {"seed": 1, "steps": (4, 3, 2), "watermark": False}
    caption = plain_caption(INSIDE)
    inpainted = lm.inpaint(own, mask, caption, out=tmp_path / "inpainted", **options).images[0]
    round_trip = lm.upscale(own, caption, out=tmp_path / "trip", **options).images[0]
    truth = render([OWN], 1024)[0]
    left = numpy.array(Image.open(mask).resize((1024, 1024), Image.Resampling.NEAREST)) == 0
    left[200:824, 200:824] = False  # the blending border: two of stage 1's pixels beyond the mask
    outside = torch.from_numpy(left)
    gaps = [
        (read_picture(image) - truth).abs().mean(0)[outside].mean().item()
        for image in (inpainted, round_trip)
    ]
    assert gaps[0] <= 1.05 * gaps[1]


@pytest.mark.worker
def test_upscaling_a_picture_made_smaller_beats_bicubic(tmp_path: Path) -> None:
    """A quarter of 1024 pixels comes back nearer to the truth than by interpolation."""
    truth = render([OTHER], 1024)[0]
    side = 1024 // FACTOR
    small = functional.interpolate(truth[None], (side, side), mode="area")[0]
    file = to_file(small, tmp_path / "small.png")
    result = lm.upscale(file, plain_caption(OTHER), seed=1, watermark=False, out=tmp_path / "run")
    enlarged = read_picture(result.images[0])
    plain = functional.interpolate(small[None], (1024, 1024), mode="bicubic")[0].clamp(-1, 1)
    assert psnr(enlarged, truth) > psnr(plain, truth)


def psnr(picture: torch.Tensor, truth: torch.Tensor) -> float:
    """In decibels, of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (picture - truth).square().mean()))


def documented_commands() -> list[list[str]]:
    """The commands of docs/how-to/pictures.md that begin with a picture."""
    page = ROOT / "docs/how-to/pictures.md"
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (
        line.split("lowmem-if ", 1)[-1] for line in text.splitlines() if line.startswith("    ")
    )
    return [shlex.split(line) for line in lines if line.startswith(("vary", "inpaint", "upscale"))]


@pytest.mark.worker
@pytest.mark.parametrize("command", documented_commands(), ids=lambda command: command[0])
def test_the_documented_commands_draw_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """As they stand there, but small and with a step or two."""
    monkeypatch.chdir(ROOT)
    less = ["--steps", "2"] if command[0] == "upscale" else ["--steps", "2", "--size", "64"]
    assert main([*command, *less, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert len(RunFolder.open(tmp_path / "run").images) == 1


def test_the_documents_show_every_mode() -> None:
    """Each has a command of its own, and a picture that is there and small."""
    assert [command[0] for command in documented_commands()] == [
        "vary",
        "inpaint",
        "vary",
        "upscale",
    ]
    for name in ("vary", "inpaint", "style", "upscale"):
        assert 0 < (ROOT / "docs" / f"{name}.jpg").stat().st_size < 60_000
