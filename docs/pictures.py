"""Draw the documents' pictures again with the bundled cascade: `make pictures`.

It uses the commands of docs/how-to/pictures.md. Run it after the weights have changed; it takes minutes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image

import lowmem_if as lm
from training.evaluate import held_out_scenes
from training.pictures import draw
from training.scenes import plain_caption
from training.sheets import save_sheet

DOCS = Path(__file__).parent
CIRCLE = "a red circle on a blue background"
SHOWN, SMALL, CELL = 512, 256, 160
GRID, COLUMNS = 24, 6


def first_picture(scratch: Path) -> None:
    """What `make demo` draws, at half its side, and small enough to be enlarged."""
    pins = {"text_encoder": "resident:int8"}
    (file,) = lm.generate(CIRCLE, seed=1, out=scratch / "demo", pins=pins).images
    picture = Image.open(file).convert("RGB")
    picture.resize((SHOWN, SHOWN), Image.Resampling.LANCZOS).save(DOCS / "demo.png")
    picture.resize((SMALL, SMALL), Image.Resampling.LANCZOS).save(DOCS / "small.png")


def modes(scratch: Path) -> None:
    """`vary`, `inpaint`, a style, and a part of what `upscale` makes beside interpolation."""
    own, mask = DOCS / "demo.png", DOCS / "mask.png"
    varied = lm.vary(
        own, "a green star on a yellow background", strength=0.9, size=SMALL, seed=1,
        out=scratch / "vary",
    )  # fmt: skip
    inpainted = lm.inpaint(
        own, mask, "a yellow star on a blue background", size=SMALL, seed=2, out=scratch / "inpaint"
    )
    styled = lm.vary(
        own, CIRCLE, strength=0.8, style_prompt="a yellow star on a green background", size=SMALL,
        seed=1, out=scratch / "style",
    )  # fmt: skip
    for name, run in (("vary", varied), ("inpaint", inpainted), ("style", styled)):
        Image.open(run.images[0]).convert("RGB").save(DOCS / f"{name}.jpg", quality=92)
    enlarged = lm.upscale(DOCS / "small.png", CIRCLE, seed=1, out=scratch / "upscale").images[0]
    _beside_interpolation(Image.open(enlarged).convert("RGB")).save(
        DOCS / "upscale.jpg", quality=92
    )


def _beside_interpolation(enlarged: Image.Image) -> Image.Image:
    """A piece of the circle's upper edge: its left half interpolated, its right half drawn."""
    plain = Image.open(DOCS / "small.png").resize(enlarged.size, Image.Resampling.BICUBIC)
    top = _first_red_row(enlarged)
    box = (enlarged.width // 2 - SMALL // 2, max(0, top - SMALL // 3))
    piece = (*box, box[0] + SMALL, box[1] + SMALL)
    shown, left = enlarged.crop(piece), plain.crop(piece)
    shown.paste(left.crop((0, 0, SMALL // 2, SMALL)), (0, 0))
    return shown


def _first_red_row(picture: Image.Image) -> int:
    """The row in which the middle column turns from blue to red."""
    middle = picture.width // 2
    pixels = [picture.getpixel((middle, row)) for row in range(picture.height)]
    return next((row for row, (red, _, blue) in enumerate(pixels) if red > blue), 0)


def grid(scratch: Path) -> None:
    """The first pictures of held-out prompts, by the whole cascade."""
    captions = [plain_caption(scene) for scene in held_out_scenes(GRID)]
    pictures = draw("demo", captions, 1024, scratch / "grid")
    small = torch.nn.functional.interpolate(pictures, (CELL, CELL), mode="area")
    save_sheet(small, DOCS / "demo_grid.png", COLUMNS)


def main() -> None:
    """All of them."""
    with tempfile.TemporaryDirectory() as folder:
        for part in (first_picture, modes, grid):
            part(Path(folder))


if __name__ == "__main__":
    main()
