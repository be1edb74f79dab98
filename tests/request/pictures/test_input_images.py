"""The user's pictures: any mode, size and orientation, or one line that says what is wrong."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from lowmem_if.cascade.modes import INPAINT, UPSCALE, VARY
from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.input_copies import IMAGE, MASK, source_bytes
from lowmem_if.errors import PictureError, RequestError
from lowmem_if.request.build import make_request
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_tiles import boxes, spans
from lowmem_if.request.pictures.input_images import look_at

RED = (220, 40, 30)


def save(file: Path, image: Image.Image, **options: Any) -> Path:
    image.save(file, **options)
    return file


def kept(file: Path, kind: str = IMAGE) -> Image.Image:
    """The picture as a run folder keeps it."""
    picture = look_at(file)
    mode, mask = (INPAINT, picture) if kind == MASK else (VARY, None)
    task = ImageSpec(0, "a red circle", 1, mode=mode, image=picture, mask=mask)
    return Image.open(io.BytesIO(source_bytes(task, kind)))


def refused(file: Path | str, **request: Any) -> str:
    with pytest.raises(PictureError) as caught:
        make_request("a red circle", seed=1, mode=VARY, image=file, **request)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    return str(caught.value)


# --- modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "a.png", RED), ("RGB", "a.jpg", RED), ("RGB", "a.webp", RED), ("RGB", "a.bmp", RED),
        ("RGBA", "a.png", RED), ("P", "a.png", RED), ("P", "a.gif", RED), ("CMYK", "a.jpg", RED),
        ("CMYK", "a.tif", RED), ("YCbCr", "a.jpg", RED), ("L", "a.png", (93, 93, 93)),
        ("LA", "a.png", (93, 93, 93)), ("1", "a.png", (0, 0, 0)),
    ],
)  # fmt: skip
def test_a_picture_of_any_mode_is_kept_as_its_colours(
    tmp_path: Path, mode: str, name: str, expected: tuple[int, int, int]
) -> None:
    """Within what its format loses."""
    image = Image.new("RGB", (16, 12), RED)
    image = image.convert(mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE)
    options = {"lossless": True} if name.endswith("webp") else {}
    found = kept(save(tmp_path / name, image, **options))
    assert (found.mode, found.size) == ("RGB", (16, 12))
    assert numpy.abs(numpy.array(found).astype(int) - expected).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_cannot_be_seen_is_white_in_an_image_and_left_by_a_mask(
    tmp_path: Path, mode: str
) -> None:
    """Colours under full transparency never show."""
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, 255, 255, 255])
        image.putpixel((1, 0), 1)
        file = save(tmp_path / "a.png", image, transparency=0)
    else:
        clear = Image.new("RGBA", (2, 1), (*RED, 0))
        clear.putpixel((1, 0), (255, 255, 255, 255))
        file = save(tmp_path / "a.png", clear.convert(mode))
    assert kept(file).getpixel((0, 0)) == (255, 255, 255)
    mask = kept(file, MASK)
    assert mask.mode == "L"
    assert [mask.getpixel((x, 0)) for x in (0, 1)] == [0, 255]


@pytest.mark.parametrize(
    ("dtype", "name", "white"),
    [(numpy.uint16, "a.png", 65535), (numpy.uint16, "a.tif", 65535),
     (numpy.int32, "a.tif", 65535), (numpy.float32, "a.tif", 1)],
)  # fmt: skip
def test_deep_grey_is_scaled_and_not_cut(
    tmp_path: Path, dtype: Any, name: str, white: float
) -> None:
    """16 bits, 32 bits and floats: black, half and white stay that."""
    levels = (numpy.array([[0, 0.502, 1]]) * white).astype(dtype)
    found = kept(save(tmp_path / name, Image.fromarray(levels)))
    assert [found.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]  # type: ignore[index]


def test_levels_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    """Floats beyond 0 to 1 have no white; the error names the file and the levels."""
    file = save(
        tmp_path / "heights.tif", Image.fromarray(numpy.array([[-5.0, 900.0]], numpy.float32))
    )
    with pytest.raises(PictureError, match=r"heights.tif has levels from -5.0 to 900.0"):
        kept(file)


# --- orientation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_a_rotated_photograph_is_kept_upright(tmp_path: Path, name: str, orientation: int) -> None:
    """All eight of EXIF's orientations: measured and kept as people see it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / name, Image.new("RGB", (40, 24), RED), exif=exif)
    size = (24, 40) if orientation >= 5 else (40, 24)
    picture = look_at(file)
    assert (picture.width, picture.height) == size
    assert kept(file).size == size


def test_a_mask_may_be_turned_otherwise_than_its_image(tmp_path: Path) -> None:
    """Both are compared upright; a mask without the tag fits a photograph with it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = save(tmp_path / "a.jpg", Image.new("RGB", (40, 24), RED), exif=exif)
    mask = save(tmp_path / "m.png", Image.new("L", (24, 40), 255))
    make_request("x", seed=1, mode=INPAINT, image=image, mask=mask)  # type: ignore[arg-type]


def test_an_image_and_a_mask_of_other_sizes_are_told_with_both(tmp_path: Path) -> None:
    """Which is which, and what each measures."""
    image = save(tmp_path / "a.png", Image.new("RGB", (40, 24)))
    mask = save(tmp_path / "m.png", Image.new("L", (24, 40)))
    with pytest.raises(PictureError) as caught:
        make_request("x", seed=1, mode=INPAINT, image=image, mask=mask)  # type: ignore[arg-type]
    assert "image is 40x24" in str(caught.value)
    assert "mask is 24x40" in str(caught.value)


# --- files that are no pictures ---------------------------------------------------------------------


def test_files_that_are_no_pictures_are_told_in_one_line(tmp_path: Path) -> None:
    """Missing, a folder, text, empty, cut off in the header, an animation."""
    (tmp_path / "text.png").write_text("no picture\nat all")
    (tmp_path / "empty.png").touch()
    header = save(tmp_path / "whole.png", Image.new("RGB", (9, 9))).read_bytes()[:20]
    (tmp_path / "header.png").write_bytes(header)
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue", "green")]
    for name in ("a.gif", "a.webp", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "contains 3 images" in refused(tmp_path / name)
    assert "does not exist" in refused("no/such.png")
    assert "is a folder" in refused(tmp_path)
    assert "not an image" in refused(tmp_path / "text.png")
    assert "not an image" in refused(tmp_path / "empty.png")
    assert "image" in refused(tmp_path / "header.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif"])
def test_a_truncated_picture_is_told_before_anything_runs(tmp_path: Path, name: str) -> None:
    """Its header is whole, its pixels are not: the run folder is not even begun."""
    rng = numpy.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=numpy.uint8))
    file = save(tmp_path / name, image)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    code = main(["vary", str(file), "a red circle", "--size", "64", "--device", "cpu",
                 "--out", str(tmp_path / "run")])  # fmt: skip
    assert code == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_picture_that_changes_while_it_is_copied_is_told(tmp_path: Path) -> None:
    """What was measured and planned for is what must be kept."""
    file = save(tmp_path / "a.png", Image.new("RGB", (9, 9)))
    task = ImageSpec(0, "x", 1, mode=VARY, image=look_at(file))
    save(file, Image.new("RGB", (9, 9), "red"))
    with pytest.raises(PictureError, match="has changed"):
        source_bytes(task, IMAGE)


# --- sizes ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_huge_picture_is_shrunk_and_its_mask_alike(tmp_path: Path) -> None:
    """20,000 pixels wide: kept within 17 million pixels, image and mask at one size, JPEG or PNG."""
    image = save(tmp_path / "a.jpg", Image.new("RGB", (20_000, 5_003), RED))
    mask = save(tmp_path / "m.png", Image.new("1", (20_000, 5_003), 1))
    found, white = kept(image), kept(mask, MASK)
    assert found.size == white.size
    assert found.width * found.height < 4096 * 4096
    assert abs(found.width / found.height - 20_000 / 5_003) < 0.01
    assert numpy.array(white).min() == 255
    assert numpy.abs(numpy.array(found).astype(int) - RED).max() <= 4


def test_pillows_limit_for_decompression_bombs_is_respected(tmp_path: Path) -> None:
    """400 million pixels in a file of some kilobytes are refused by what the header says."""
    file = save(tmp_path / "bomb.png", Image.new("1", (20_000, 20_000)))
    assert "Pillow's limit" in refused(file)


@pytest.mark.parametrize(("width", "height"), [(401, 100), (1, 20_000)])
def test_a_strip_is_told_to_be_cropped(tmp_path: Path, width: int, height: int) -> None:
    """The stages' memory grows with the longer side; beyond 4:1 nothing is planned."""
    file = save(tmp_path / "a.png", Image.new("1", (width, height)))
    assert f"a.png ({width}x{height}) is longer than 4:1" in refused(file)


def test_what_would_become_too_large_is_told_with_its_size(tmp_path: Path) -> None:
    """The enlarged picture must be one that Pillow opens again."""
    file = save(tmp_path / "a.png", Image.new("1", (4_000, 3_000)))
    with pytest.raises(PictureError, match="192 million pixels"):
        make_request("", seed=1, mode=UPSCALE, image=file)  # type: ignore[arg-type]


# --- what goes together -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mode": "dream"}, "unknown mode 'dream'"),
        ({"mode": VARY}, "needs an image"),
        ({"mode": INPAINT, "image": "own"}, "needs a mask"),
        ({"image": "own"}, "takes no image"),
        ({"mode": VARY, "image": "own", "mask": "own"}, "takes no mask"),
        ({"strength": 0.5}, "takes no strength"),
        ({"mode": UPSCALE, "image": "own", "strength": 0.5}, "takes no strength"),
        ({"mode": VARY, "image": "own", "strength": 0}, "above 0 and up to 1"),
        ({"mode": VARY, "image": "own", "strength": 1.1}, "above 0 and up to 1"),
        ({"mode": VARY, "image": "own", "strength": (0.1, 0.2, 0.3)}, "3 values for strength"),
        ({"mode": VARY, "image": "own", "aspect": "3:2"}, "input image sets the aspect"),
        ({"mode": INPAINT, "image": "own", "mask": "own", "style_prompt": "x"}, "no style prompt"),
        ({"mode": UPSCALE, "image": "own", "size": 64}, "no stage enlarges to 64"),
        ({"mode": VARY, "image": "own", "prompts": ""}, "prompt is empty"),
        ({"aspect": "wide"}, "not like 3:2"),
        ({"aspect": "3:0"}, "not like 3:2"),
        ({"aspect": (1, 2, 3)}, "not like 3:2"),
        ({"noise_level": 1000}, "noise level"),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_told(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    """Each in one line that says which."""
    own = save(tmp_path / "own.png", Image.new("RGB", (9, 9), "white"))
    given = {name: own if value == "own" else value for name, value in values.items()}
    with pytest.raises(RequestError, match=words):
        make_request(**{"prompts": "a red circle", "seed": 1} | given)


def test_an_aspect_is_kept_in_its_smallest_numbers() -> None:
    """6:4 asks for what 3:2 asks for, so a folder begun with one goes on with the other."""
    assert make_request("x", seed=1, aspect="6:4") == make_request("x", seed=1, aspect=(3, 2))  # type: ignore[arg-type]


def test_a_strength_of_less_than_one_step_is_told(tmp_path: Path) -> None:
    """diffusers would end in an index error; the plan says what to raise."""
    own = save(tmp_path / "own.png", Image.new("RGB", (9, 9)))
    code = main(["plan", "x", "--mode", "vary", "--image", str(own), "--strength", "0.1",
                 "--steps", "5", "--size", "64", "--device", "cpu"])  # fmt: skip
    assert code == 2


# --- tiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 128, 256])
@pytest.mark.parametrize("length", [1, 3, 64, 65, 100, 255, 256, 257, 300, 513, 1000, 2364])
def test_tiles_cover_a_side_and_overlap(length: int, tile: int) -> None:
    """From the first pixel to the last, in whole fours, each sharing pixels with the next."""
    aligned = -(-length // 4) * 4
    found = spans(aligned, tile)
    assert found[0][0] == 0
    assert found[-1][1] == aligned
    assert all(start % 4 == 0 and stop % 4 == 0 for start, stop in found)
    for (start, stop), (after, _) in pairwise(found):
        assert start < after
        assert stop - after >= tile // 4 - 4
    assert all(stop - start == min(tile, aligned) for start, stop in found)


def test_a_picture_that_fits_is_one_tile() -> None:
    """Whole, as asked for or because it is no larger than a tile."""
    assert len(boxes(2000, 100, 0)) == len(boxes(256, 256, 256)) == 1
    assert len(boxes(257, 256, 256)) == 2
