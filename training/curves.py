"""Draw the trainings' curves as one picture, from the tables that the loop leaves.

python -m training.curves --folder build/demo curves.png
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

from PIL import Image, ImageDraw

# part, figure, whether its axis is logarithmic
PANELS = (
    ("text", "right words", False),
    ("stage_1", "mse", True),
    ("vae", "psnr", False),
    ("stage_2", "mse", True),
    ("upscaler", "error of v", True),
)
WIDTH, HEIGHT, RIM = 300, 200, 26
INK, PAPER, PALE = (30, 30, 30), (255, 255, 255), (210, 210, 210)

Points = list[tuple[float, float]]


def read_curve(table: Path, figure: str) -> Points:
    """Minutes of training and the figure's value, in order."""
    with table.open() as lines:
        rows = [row for row in csv.reader(lines) if row[2] == figure]
    return [(float(seconds) / 60, float(value)) for _step, seconds, _name, value in rows]


def draw_curves(folder: Path) -> Image.Image:
    """One panel for each part that has a table."""
    panels = [panel for panel in PANELS if (folder / f"{panel[0]}.csv").exists()]
    sheet = Image.new("RGB", (WIDTH * len(panels), HEIGHT), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (part, figure, logarithmic) in enumerate(panels):
        points = read_curve(folder / f"{part}.csv", figure)
        if len(points) > 1:
            _draw_panel(pen, place * WIDTH, f"{part}: {figure}", points, logarithmic)
    return sheet


def _draw_panel(
    pen: ImageDraw.ImageDraw, left: int, title: str, points: Points, logarithmic: bool
) -> None:
    scale = math.log10 if logarithmic else float
    heights = [scale(max(value, 1e-9)) for _, value in points]
    low, high, end = min(heights), max(heights), points[-1][0]
    span = (high - low) or 1.0
    wide, tall = WIDTH - 2 * RIM, HEIGHT - 2 * RIM
    box = (left + RIM, RIM, left + RIM + wide, RIM + tall)
    pen.rectangle(box, outline=PALE)
    line = [
        (box[0] + minutes / end * wide, box[3] - (height - low) / span * tall)
        for (minutes, _), height in zip(points, heights, strict=True)
    ]
    pen.line(line, fill=INK, width=2)
    values = [value for _, value in points]
    note = f"{min(values):.3g} to {max(values):.3g}{', log' if logarithmic else ''}"
    pen.text((box[0], 6), f"{title} ({note})", fill=INK)
    pen.text((box[0], box[3] + 6), f"0 to {end:.0f} minutes", fill=INK)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="checkpoints")
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    draw_curves(chosen.folder).save(chosen.out)


if __name__ == "__main__":
    main()
