"""Pictures as objects: every kind gives the pixels of the file, anything else one line that says why."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from lowmem_if.cascade.modes import INPAINT, UPSCALE, VARY
from lowmem_if.engine.run_folder.input_copies import IMAGE, MASK, source_bytes
from lowmem_if.errors import PictureError, RequestError
from lowmem_if.request.batch_request import request_of
from lowmem_if.request.build import make_request
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.pictures.picture_objects import picture_of

WIDTH, HEIGHT = 40, 24
LEVELS = numpy.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=numpy.uint8)
GREY = numpy.ascontiguousarray(LEVELS[..., 0])
CHANNELS_FIRST = torch.from_numpy(LEVELS).permute(2, 0, 1)


def png(levels: Any = LEVELS) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    return stream.getvalue()


def kept(given: Any) -> Any:
    """The levels of the copy that a run keeps of an image."""
    spec = make_request("x", seed=1, mode=VARY, image=given).images[0]
    assert spec.image is not None
    assert (spec.image.width, spec.image.height) == (WIDTH, HEIGHT)
    return numpy.array(Image.open(io.BytesIO(source_bytes(spec, IMAGE))))


class ReadOnce(io.RawIOBase):
    """A file that cannot be rewound, like the answer of a server."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._rest.readinto(buffer)


def written() -> io.BytesIO:
    """A file in memory whose position is at its end, as after saving into it."""
    stream = io.BytesIO()
    Image.fromarray(LEVELS).save(stream, "PNG")
    return stream


IN_COLOUR: dict[str, Callable[[], Any]] = {
    "PIL image": lambda: Image.fromarray(LEVELS),
    "uint8": lambda: LEVELS,
    "not contiguous": lambda: LEVELS.copy(order="F"),
    "four channels": lambda: numpy.dstack([LEVELS, numpy.full((HEIGHT, WIDTH), 255, numpy.uint8)]),
    "float32": lambda: LEVELS.astype(numpy.float32) / 255,
    "float64": lambda: LEVELS / 255,
    "float16": lambda: (LEVELS / 255).astype(numpy.float16),
    "batch of one": lambda: LEVELS[None],
    "tensor of uint8": lambda: CHANNELS_FIRST,
    "tensor of floats": lambda: CHANNELS_FIRST / 255,
    "tensor with gradients": lambda: (CHANNELS_FIRST / 255).requires_grad_(),
    "tensor of float16": lambda: (CHANNELS_FIRST / 255).half(),
    "tensors in a batch of one": lambda: CHANNELS_FIRST[None] / 255,
    "bytes": png,
    "bytearray": lambda: bytearray(png()),
    "memoryview": lambda: memoryview(png()),
    "file in memory": lambda: io.BytesIO(png()),
    "file at its end": written,
    "file read once": lambda: ReadOnce(png()),
}


@pytest.mark.parametrize("name", IN_COLOUR)
def test_every_kind_of_object_gives_the_pixels_of_the_file(tmp_path: Path, name: str) -> None:
    """Bit for bit, floats rounded to 8 bits."""
    (tmp_path / "a.png").write_bytes(png())
    expected = kept(tmp_path / "a.png")
    assert numpy.array_equal(expected, LEVELS)
    assert numpy.array_equal(kept(IN_COLOUR[name]()), expected)


def test_bfloat16_is_as_exact_as_it_is() -> None:
    """numpy has no such type: within its 8 bits of mantissa."""
    found = kept((CHANNELS_FIRST / 255).bfloat16())
    assert numpy.abs(found.astype(int) - LEVELS).max() <= 1


@pytest.mark.parametrize(
    "given",
    [GREY, GREY[..., None], GREY / 255, torch.from_numpy(GREY), torch.from_numpy(GREY)[None],
     Image.fromarray(GREY), Image.fromarray(GREY).convert("P"), GREY[None, ..., None]],
)  # fmt: skip
def test_one_channel_is_grey(given: Any) -> None:
    """(H, W), (H, W, 1) and a tensor's (1, H, W); the three channels become the same."""
    assert numpy.array_equal(kept(given), numpy.dstack([GREY] * 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr",
                                  "I;16", "I", "F", "HSV", "LAB", "La", "RGBa"])  # fmt: skip
def test_a_pil_image_of_any_mode_is_read(mode: str) -> None:
    """As Pillow converts it; deep greys are scaled."""
    base = Image.fromarray(LEVELS)
    white = {"I;16": 65535 / 255, "I": 65535 / 255, "F": 1 / 255}
    if mode in white:
        deep = {"I;16": numpy.uint16, "I": numpy.int32, "F": numpy.float32}[mode]
        image, expected = Image.fromarray((GREY * white[mode]).astype(deep)), GREY
    else:
        between = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode)
        if mode == "LAB":
            image = Image.new("LAB", base.size, (128, 0, 0))
        elif mode == "PA":
            image = base.convert("P").convert("PA")
        else:
            image = (base.convert(between) if between else base).convert(mode)
        readable = image.convert(between) if between else image
        expected = numpy.array(readable.convert("RGB"))
    found = kept(image)
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert (
        numpy.abs(
            found.astype(int) - (expected if expected.ndim == 3 else expected[..., None])
        ).max()
        <= 1
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_photograph_is_upright(tmp_path: Path, orientation: int) -> None:
    """As its file is: the camera's note is followed once, and the object is not changed."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tif", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        size = (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)
        image = Image.fromarray(LEVELS).resize(size)
        image.save(tmp_path / name, exif=exif, **options)
        with Image.open(tmp_path / name) as opened:
            assert numpy.array_equal(kept(opened), kept(tmp_path / name))
            assert numpy.array_equal(kept(opened), kept(tmp_path / name))


def test_a_transparent_object_is_white_where_it_is_clear() -> None:
    """As a file is; colours under full transparency never show."""
    clear = numpy.dstack([LEVELS, numpy.zeros((HEIGHT, WIDTH), numpy.uint8)])
    for given in (clear, Image.fromarray(clear), torch.from_numpy(clear).permute(2, 0, 1) / 255):
        assert kept(given).min() == 255


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, r"the image has type int: give a path, a PIL image, a numpy array"),
        ([LEVELS], r"the image has type list: give a path"),
        ({"background": 1, "layers": []}, r"the image has type dict: give a path"),
        (numpy.zeros((4, 5, 2), numpy.uint8), r"numpy ndarray, shape \(4, 5, 2\) and uint8 numbers"),
        (numpy.zeros(5, numpy.uint8), r"shape \(5,\) and uint8"),
        (numpy.zeros((0, 5), numpy.uint8), r"shape \(0, 5\)"),
        (numpy.float32(0.5), r"numpy float32, shape \(\)"),
        (numpy.zeros((4, 5), numpy.int64), r"shape \(4, 5\) and int64 numbers: give a path"),
        (numpy.zeros((4, 5), numpy.uint16), r"uint16 numbers: give a path"),
        (numpy.zeros((4, 5), complex), r"complex128 numbers: give a path"),
        (numpy.array([["a", None]], object), r"object numbers: give a path"),
        (numpy.zeros((3, 8, 9), numpy.uint8), r"channels come first: give x.transpose\(1, 2, 0\)"),
        (torch.zeros(8, 9, 3), r"torch Tensor, .* channels come last: give x.permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 8, 9), r"shape \(2, 3, 8, 9\) .*, which is a batch: give .* batch\[0\]"),
        (numpy.zeros((2, 8, 9, 3)), r"which is a batch"),
        (torch.zeros(1, 1, 3, 8, 9), r"shape \(1, 1, 3, 8, 9\)"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), r"int64 numbers"),
        (torch.zeros(3, 8, 9, device="meta"), r"has type torch Tensor and cannot be read"),
        (numpy.full((4, 5), numpy.nan), r"some NaN or infinite: floats go from 0 to 1"),
        (torch.full((3, 4, 5), torch.inf), r"some NaN or infinite"),
        (LEVELS.astype(float), r"from 0 to 255, but floats go from 0 to 1: divide by 255"),
        (CHANNELS_FIRST / 127.5 - 1, r"from -1 to 1, but floats .*: give \(x \+ 1\) / 2"),
        (numpy.linspace(-9, 900, 20).reshape(4, 5), r"from -9 to 900, .*: scale them"),
        (io.StringIO("text"), r"io StringIO and reads str: open it as 'rb'"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_type_shape_and_what_is_accepted(
    given: Any, words: str
) -> None:
    """In one line, as image and as mask."""
    with pytest.raises(RequestError, match=words) as caught:
        make_request("x", mode=VARY, image=given)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=words.replace("image has", "mask has")):
        make_request("x", mode=INPAINT, image=LEVELS, mask=given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"", "<bytes> is not an image"),
        (b"no picture", "<bytes> is not an image"),
        (io.BytesIO(b"GIF89a"), "<open file>"),
        (png()[:60], "<bytes>"),
        ("https://example.com/a.png", "a.png is an address: download the image"),
        (Image.new("L", (500, 100)), r"<PIL image> \(500x100\) is longer than 4:1"),
    ],
)
def test_broken_files_in_memory_are_told_like_others(given: Any, words: str) -> None:
    """By what they are instead of a path."""
    with pytest.raises(PictureError, match=words) as caught:
        source_bytes(make_request("x", mode=VARY, image=given).images[0], IMAGE)
    assert "\n" not in str(caught.value)


def test_a_closed_file_and_a_closed_image_are_told(tmp_path: Path) -> None:
    """Both after the `with` in which they were opened."""
    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "a.png").open("rb") as file, Image.open(tmp_path / "a.png") as image:
        file.read(1)
    with pytest.raises(RequestError, match="open the file again"):
        picture_of(file, "image")
    with pytest.raises(PictureError, match="<PIL image> is a broken image"):
        picture_of(image, "image")


# --- values ------------------------------------------------------------------------------------------


def test_an_object_is_copied_when_it_is_given() -> None:
    """What happens to it later does not matter, and a file keeps its position."""
    levels, file = LEVELS.copy(), io.BytesIO(png())
    file.seek(5)
    specs = [
        make_request("x", seed=1, mode=VARY, image=given).images[0]
        for given in (levels, Image.fromarray(levels), file)
    ]
    assert file.tell() == 5
    levels[:] = 0
    file.truncate(0)
    for spec in specs:
        copy = numpy.array(Image.open(io.BytesIO(source_bytes(spec, IMAGE))))
        assert numpy.array_equal(copy, LEVELS)


def test_equal_pixels_are_equal_requests() -> None:
    """So a call with the same picture resumes its run; other pixels are another request."""
    first, same, other = (
        make_request("x", seed=1, mode=VARY, image=given)
        for given in (
            Image.fromarray(LEVELS),
            Image.fromarray(LEVELS.copy()),
            Image.fromarray(255 - LEVELS),
        )
    )
    assert first == same != other
    assert "content" not in repr(first)


def test_other_modes_and_batches_take_objects() -> None:
    """Upscaling, and rows next to those with paths; a bad object is a bad line."""
    enlarged = make_request(
        "", seed=1, mode=UPSCALE, image=torch.from_numpy(LEVELS).permute(2, 0, 1)
    )
    assert enlarged.images[0].stages == ("stage_2", "upscaler")
    mask = GREY > 100
    rows: list[Any] = [
        {"mode": VARY, "image": LEVELS, "prompt": "a"},
        {"mode": INPAINT, "image": Image.fromarray(LEVELS), "mask": mask, "prompt": "b"},
        {"mode": VARY, "image": LEVELS[:, :, :2], "prompt": "c"},
    ]
    request, bad = request_of(rows, seed=1, size=64)
    assert [spec.mode for spec in request.images] == [VARY, INPAINT]
    copy = Image.open(io.BytesIO(source_bytes(request.images[1], MASK)))
    assert numpy.array_equal(numpy.array(copy) > 127, mask)
    assert [line.number for line in bad] == [3]


def test_a_specification_without_its_object_is_told() -> None:
    """As from a plan in JSON, which holds no pixels."""
    picture = replace(picture_of(LEVELS, "image"), content=None)
    with pytest.raises(PictureError, match="names <numpy array> but does not contain it"):
        source_bytes(ImageSpec(0, "x", 1, mode=VARY, image=picture), IMAGE)


def test_tensors_are_read_without_importing_torch() -> None:
    """They are recognised by their methods: detach, cpu, numpy."""
    program = """
import sys, numpy
from lowmem_if.request.build import make_request

class Tensor:
    def __init__(self, array): self.array = array
    def detach(self): return self
    def cpu(self): return self
    def float(self): return self
    def is_floating_point(self): return True
    def numpy(self): return self.array
    def __array__(self): return self.array

spec = make_request("x", mode="vary", image=Tensor(numpy.full((3, 8, 16), 0.5))).images[0]
assert (spec.image.width, spec.image.height, spec.image.path) == (16, 8, "<torch tensor>")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
