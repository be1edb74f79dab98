"""Masks as tools write them: what they repaint, and one line for those that repaint nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image, ImageDraw
from runs import CPU

from lowmem_if.cascade.modes import INPAINT
from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.input_copies import MASK, source_bytes
from lowmem_if.errors import PictureError, RequestError
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.batch_request import read_request, request_of
from lowmem_if.request.build import make_request
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.pictures.masks import as_stage_1_sees

SIDE = 128
SPOT = (40, 40, 90, 90)
RIM, MIDDLE = (2, 2), (60, 60)


def drawn(mode: str, ground: Any, spot: Any) -> Image.Image:
    """A mask with a spot in its middle."""
    image = Image.new(mode, (SIDE, SIDE), ground)
    ImageDraw.Draw(image).rectangle(SPOT, fill=spot)
    return image


def photograph(alpha: bool = True) -> Image.Image:
    """Many colours, and a transparent hole in the middle."""
    rng = numpy.random.default_rng(0)
    levels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=numpy.uint8)
    image = Image.fromarray(levels)
    if alpha:
        image.putalpha(drawn("L", 255, 0))
    return image


def palette(colour: tuple[int, int, int]) -> Image.Image:
    """Index 0 is black, index 1 the colour."""
    image = drawn("P", 0, 1)
    image.putpalette([0, 0, 0, *colour])
    return image


def dotted() -> Image.Image:
    """One white pixel, which is lost at stage 1's size."""
    image = drawn("L", 0, 0)
    image.putpixel((60, 60), 255)
    return image


MASKS: dict[str, Callable[[], Image.Image]] = {
    "white": lambda: drawn("L", 0, 255),
    "inverted": lambda: drawn("L", 255, 0),
    "one bit": lambda: drawn("1", 0, 1),
    "palette": lambda: palette((255, 255, 255)),
    "dark palette": lambda: palette((128, 0, 0)),
    "empty": lambda: drawn("L", 0, 0),
    "levels 0 and 1": lambda: drawn("L", 0, 1),
    "red": lambda: drawn("RGB", "black", "red"),
    "white on transparent": lambda: drawn("RGBA", (0, 0, 0, 0), "white"),
    "black on transparent": lambda: drawn("RGBA", (0, 0, 0, 0), "black"),
    "black with a hole": lambda: drawn("RGBA", "black", (0, 0, 0, 0)),
    "picture with a hole": photograph,
    "dot": dotted,
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    photograph(alpha=False).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def saved(folder: Path, name: str) -> Path:
    file = folder / "mask.png"
    MASKS[name]().save(file)
    return file


def spec_of(image: Path, mask: Any, **options: Any) -> ImageSpec:
    return make_request(
        "x", seed=1, mode=INPAINT, image=image, mask=mask, size=64, **options
    ).images[0]


def repainted(spec: ImageSpec) -> tuple[bool, bool]:
    """Whether the rim and the middle are repainted by the copy that a run keeps."""
    kept = Image.open(io.BytesIO(source_bytes(spec, MASK)))
    assert kept.mode == "L"
    rim, middle = (int(kept.getpixel(place)) >= 128 for place in (RIM, MIDDLE))  # type: ignore[arg-type]
    return rim, middle


ONLY_MIDDLE, ONLY_RIM = (False, True), (True, False)
INVERT, ALPHA = {"invert_mask": True}, {"mask_alpha": True}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("white", {}, ONLY_MIDDLE),
        ("white", INVERT, ONLY_RIM),
        ("inverted", {}, ONLY_RIM),
        ("inverted", INVERT, ONLY_MIDDLE),
        ("one bit", {}, ONLY_MIDDLE),
        ("palette", {}, ONLY_MIDDLE),
        ("dark palette", INVERT, (True, True)),
        ("empty", INVERT, (True, True)),
        ("white on transparent", {}, ONLY_MIDDLE),
        ("white on transparent", ALPHA, ONLY_RIM),
        ("white on transparent", ALPHA | INVERT, ONLY_MIDDLE),
        ("black on transparent", INVERT, ONLY_MIDDLE),
        ("black on transparent", ALPHA | INVERT, ONLY_MIDDLE),
        ("black with a hole", ALPHA, ONLY_MIDDLE),
        ("black with a hole", INVERT, ONLY_RIM),
        ("picture with a hole", ALPHA, ONLY_MIDDLE),
        ("picture with a hole", ALPHA | INVERT, ONLY_RIM),
    ],
)
def test_white_is_repainted_unless_another_part_is_asked_for(
    tmp_path: Path, image: Path, name: str, options: dict[str, bool], expected: tuple[bool, bool]
) -> None:
    """By files and by objects alike; what is transparent is never repainted for its colour."""
    file = saved(tmp_path, name)
    for mask in (file, Image.open(file), file.read_bytes()):
        assert repainted(spec_of(image, mask, **options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("empty", {}, "repaints nothing: it is black everywhere, and white repaints"),
        ("levels 0 and 1", {}, "has the levels 0 and 1 of 255, .*: save 1 as 255"),
        ("levels 0 and 1", INVERT, "has the levels 0 and 1 of 255, .*: save 1 as 255"),
        ("red", {}, "its brightest level is 76 of 255, and levels from 128 on repaint"),
        ("dark palette", {}, "its brightest level is 38 of 255"),
        ("black on transparent", {}, "dark on transparent, .* --invert-mask .* --mask-alpha"),
        ("black with a hole", {}, "dark on transparent, .* --invert-mask .* --mask-alpha"),
        ("picture with a hole", {}, "a picture with transparent parts, .*: --mask-alpha"),
        ("white on transparent", INVERT, "it has no black part; leave out the option"),
        ("white", ALPHA, "has no transparent parts: leave out --mask-alpha"),
        ("white", ALPHA | INVERT, "has no transparent parts: leave out --mask-alpha"),
        ("dot", {}, "repaints too little: at stage 1's 64 pixels"),
    ],
)
def test_a_mask_that_repaints_nothing_is_refused_with_the_likely_reason(
    tmp_path: Path, image: Path, name: str, options: dict[str, bool], words: str
) -> None:
    """In one line that names the option that helps, before anything is planned."""
    file = saved(tmp_path, name)
    for mask in (file, Image.open(file)):
        with pytest.raises(PictureError, match=words) as caught:
            spec_of(image, mask, **options)
        assert "\n" not in str(caught.value)


def test_an_array_of_booleans_repaints_where_it_is_true(image: Path) -> None:
    """And floats from a half on; levels 0 and 1 of 8 bits are the mistake that it mends."""
    spot = numpy.zeros((SIDE, SIDE), bool)
    spot[40:90, 40:90] = True
    for mask in (spot, spot[..., None], spot.astype(numpy.float32), spot * 0.6):
        assert repainted(spec_of(image, mask)) == ONLY_MIDDLE
    assert repainted(spec_of(image, ~spot, invert_mask=True)) == ONLY_MIDDLE
    with pytest.raises(PictureError, match="give mask > 0"):
        spec_of(image, spot.astype(numpy.uint8))


def test_a_mask_of_another_size_is_told_first(tmp_path: Path, image: Path) -> None:
    """It is more likely than a mask that is empty on purpose."""
    Image.new("L", (SIDE, SIDE - 1)).save(tmp_path / "mask.png")
    with pytest.raises(PictureError, match="the image is 128x128 pixels and the mask is 128x127"):
        spec_of(image, tmp_path / "mask.png")


@pytest.mark.parametrize("option", ["invert_mask", "mask_alpha"])
def test_the_options_need_a_mask_and_a_truth(image: Path, option: str) -> None:
    """A request without a mask, and a value that is none."""
    with pytest.raises(RequestError, match=f"{option} needs a mask"):
        make_request("x", **{option: True})
    with pytest.raises(RequestError, match=f"{option} must be True or False"):
        spec_of(image, MASKS["white"](), **{option: "yes"})
    assert make_request("x", seed=1, **{option: False}) == make_request("x", seed=1)


# --- the options in commands and batches ------------------------------------------------------------


def test_commands_take_the_options(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan` and `inpaint`; a mask that repaints nothing ends them before a run folder is made."""
    mask = saved(tmp_path, "black on transparent")
    plan = ["plan", "x", "--mode", "inpaint", "--image", str(image), "--mask", str(mask),
            "--size", "64", "--device", "cpu"]  # fmt: skip
    assert main([*plan, "--invert-mask"]) == 0
    assert main([*plan, "--mask-alpha", "--json"]) == 0
    assert '"repaints": "transparent"' in capsys.readouterr().out
    assert main(plan) == 1
    out = tmp_path / "run"
    assert main(["inpaint", str(image), str(mask), "x", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "repaints nothing" in error
    assert not out.exists()


def test_rows_of_a_batch_take_the_options(tmp_path: Path, image: Path) -> None:
    """In JSON lines and CSV, over those of the command; a bad mask is a bad line."""
    saved(tmp_path, "white").rename(tmp_path / "white.png")
    saved(tmp_path, "empty").rename(tmp_path / "empty.png")
    lines = [
        '{"prompt": "a", "mask": "white.png"}',
        '{"prompt": "b", "mask": "white.png", "invert_mask": true}',
        '{"prompt": "c", "mask": "empty.png"}',
        '{"prompt": "d", "mask": "white.png", "invert_mask": "yes"}',
        '{"prompt": "e", "mode": "vary", "mask_alpha": true}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    common: dict[str, Any] = {"mode": INPAINT, "image": image, "size": 64, "seed": 1}
    common["mask"] = tmp_path / "white.png"
    request, bad = read_request(tmp_path / "a.jsonl", **common)
    assert [repainted(spec) for spec in request.images] == [ONLY_MIDDLE, ONLY_RIM]
    reasons = {line.number: line.reason for line in bad}
    assert [*reasons] == [3, 4, 5]
    assert "repaints nothing" in reasons[3]
    assert "True or False" in reasons[4]
    (tmp_path / "a.csv").write_text(
        "prompt,mask,invert_mask\na,white.png,TRUE\nb,white.png,\nc,white.png,2\n"
    )
    request, bad = read_request(tmp_path / "a.csv", **common)
    assert [repainted(spec) for spec in request.images] == [ONLY_RIM, ONLY_MIDDLE]
    assert "is not true or false" in bad[0].reason
    common["invert_mask"] = True
    rows: list[Any] = [
        "a",
        {"prompt": "b", "invert_mask": False},
        {"prompt": "c", "mask": MASKS["inverted"]()},
    ]
    request, bad = request_of(rows, **common)
    assert [repainted(spec) for spec in request.images] == [ONLY_RIM, ONLY_MIDDLE, ONLY_MIDDLE]
    assert not bad


def test_what_a_mask_repaints_is_part_of_the_request(
    tmp_path: Path, image: Path, tiny: Path
) -> None:
    """A plan says it in JSON, one of version 0.2 means white, and a folder keeps each copy."""
    mask = saved(tmp_path, "white")
    rows = [{"prompt": "a"}, {"prompt": "b", "invert_mask": True}]
    request, _ = request_of(
        rows, mode=INPAINT, image=image, mask=mask, size=64, seed=1, cascade=str(tiny)
    )
    plan = make_plan(CPU, request)
    data = plan.to_json()
    assert Plan.from_json(data) == plan
    lines = data["request"]["lines"]
    assert [line["mask"]["repaints"] for line in lines] == ["white", "black"]
    assert "repaints" not in lines[0]["image"]
    del lines[0]["mask"]["repaints"]
    mask.unlink()
    assert Plan.from_json(data) == plan


@pytest.mark.parametrize("size", [(128, 128), (300, 100), (77, 300), (64, 64), (1, 1)])
def test_too_little_is_what_the_pipeline_makes_of_it(size: tuple[int, int]) -> None:
    """The mask is checked in the very levels that diffusers gives it for stage 1."""
    from diffusers.pipelines.deepfloyd_if.pipeline_if_inpainting import resize

    width, height = size
    levels = numpy.random.default_rng(0).integers(0, 256, (height, width), dtype=numpy.uint8)
    mask = Image.fromarray(levels)
    assert numpy.array_equal(as_stage_1_sees(mask), resize(mask, 64))
