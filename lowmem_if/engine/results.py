"""What a run returns: its folder, its pictures, what its steps took. Pictures are opened when read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, overload

from lowmem_if.engine.run_folder.run_record import Measured
from lowmem_if.planning.plan import Step
from lowmem_if.request.batch_file import BadLine
from lowmem_if.units import counted, format_seconds

if TYPE_CHECKING:
    from PIL import Image

_SHOWN, _SHOWN_WIDTH = 8, 192
"""How many pictures a notebook shows of a result, and their width in the browser's pixels."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step, its measured peaks and its seconds."""

    step: Step
    measured: Measured | None


class Pictures(Sequence["Image.Image"]):
    """Finished pictures as PIL images. Each is read from its file when it is asked for, every time."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Pictures:
        if isinstance(index, slice):
            return Pictures(self._files[index])
        from PIL import Image

        with Image.open(self._files[index]) as image:
            image.load()
        return image

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'picture')}, read when asked for>"


@dataclass(frozen=True, slots=True, repr=False)
class RunResult:
    """A finished run. Notebooks show its first pictures.

    Attributes:
        folder: the run folder.
        images: the files of its pictures in the order of the request, where `out` asked for them.
        steps: its steps, each with what was measured.
        notices: what the user should know about the pictures.
    """

    folder: Path
    images: tuple[Path, ...]
    steps: tuple[StepResult, ...]
    notices: tuple[str, ...]

    @property
    def pictures(self) -> Pictures:
        """The pictures as PIL images, each read from its file when it is asked for."""
        return Pictures(self.images)

    @property
    def seconds(self) -> float:
        """Seconds that the measured steps took."""
        return sum(step.measured.seconds for step in self.steps if step.measured)

    def __repr__(self) -> str:
        about = [str(self.folder), counted(len(self.images), "picture")]
        if self.seconds:
            about.append(format_seconds(self.seconds))
        if self.notices:
            about.append(f"{len(self.notices)} notice(s)")
        return f"<RunResult: {', '.join(about)}>"

    def _repr_html_(self) -> str:
        shown = [file for file in self.images[:_SHOWN] if file.is_file()]
        pictures = "".join(
            f'<img width={_SHOWN_WIDTH} style="margin:4px" title="{escape(file.name)}" '
            f'src="{data_address(file, _SHOWN_WIDTH)}">'
            for file in shown
        )
        row = f'<div style="display:flex;flex-wrap:wrap">{pictures}</div>'
        return f"<div>{escape(repr(self))}</div>{row}"


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A finished batch: its run, and the lines that could not be used, for which nothing was drawn."""

    run: RunResult
    bad_lines: tuple[BadLine, ...]


def data_address(file: Path, width: int) -> str:
    """A picture as a `data:` address, no larger than it is shown `width` wide on a dense screen."""
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB")
        small.thumbnail((2 * width, 2 * width))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
