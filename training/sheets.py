"""Sheets of pictures, to be looked at."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

GAP = 2
GREY = 128


def save_sheet(pictures: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Write [n, 3, side, side] in [-1, 1] as rows of `columns` pictures with grey gaps."""
    count, _, side, _ = pictures.shape
    rows = -(-count // columns)
    cell = side + GAP
    sheet = torch.full((rows * cell, columns * cell, 3), GREY, dtype=torch.uint8)
    for index, picture in enumerate(to_bytes(pictures)):
        top, left = index // columns * cell, index % columns * cell
        sheet[top : top + side, left : left + side] = picture
    Image.fromarray(sheet.numpy()).save(path)


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """[n, 3, side, side] in [-1, 1] to [n, side, side, 3] of 0 to 255."""
    levels = (pictures.float() / 2 + 0.5).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1)
