"""The folder in which a request runs, where its pictures are wanted, and the seeds of a begun run.

A picture's name as `out`, like `fox.png`, stands for the run folder `fox.png.run`. One picture is copied
to `fox.png`, several to `fox-0.png`, `fox-1.png` and so on. The folder's name says all of this, so a
resumed run does the same.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from pathlib import Path

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.writing import writing
from lowmem_if.errors import RunFolderError
from lowmem_if.request.request import Request
from lowmem_if.weights.files.atomic import write_bytes

RUNS = Path("runs")
"""Where run folders without a name of the user's own are made."""

WRITTEN = (".png", ".jpg", ".jpeg", ".webp")
_NOT_WRITTEN = (".avif", ".bmp", ".gif", ".heic", ".jp2", ".tif", ".tiff")
_RUN = ".run"
_QUALITY = 95


def folder_for(request: Request, out: str | Path | None) -> Path:
    """The run folder for `out`; None: a new one."""
    return new_folder(request) if out is None else run_path(out)


def new_folder(request: Request) -> Path:
    """A run folder that does not exist yet, named by the time and the first words of the prompt."""
    first = request.images[0]
    words = "-".join(re.findall(r"\w+", first.words)[:6])[:40] or first.mode
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
    folder = RUNS / stem
    number = 1
    while folder.exists():
        number += 1
        folder = RUNS / f"{stem}-{number}"
    return folder


def with_begun_seeds(path: Path, request: Request) -> Request:
    """The request with the seeds that were drawn when a run was begun in `path`, if one was."""
    if not RunFolder.begun(path):
        return request
    begun = RunFolder.open(path).plan.request
    return request.with_seed(begun.seed)


def run_path(out: str | Path) -> Path:
    """The run folder for `out`, which is a folder or a picture's name.

    Raises:
        RunFolderError: it is the name of a picture of a kind that is not written.
    """
    path = Path(out)
    suffix = path.suffix.lower()
    if suffix not in (*WRITTEN, *_NOT_WRITTEN) or path.is_dir():
        return path
    if suffix in _NOT_WRITTEN:
        raise RunFolderError(
            f"{path}: pictures are not written as {suffix}: use {', '.join(WRITTEN)}, or a folder"
        )
    return path.with_name(path.name + _RUN)


def check_nothing_lost(folder: Path, count: int) -> None:
    """Raise `RunFolderError` if a new run would write its pictures over other files."""
    taken = [file for file in _files(folder, count) if file.exists()]
    if taken and not RunFolder.begun(folder):
        raise RunFolderError(f"{taken[0]} exists already: give --out another name")


def place_pictures(folder: Path, images: Sequence[Path]) -> tuple[Path, ...]:
    """Write the finished pictures under the name that was given as `out`.

    A file that is newer than its picture in the run folder is kept.

    Returns:
        The files; `images` unchanged if `out` was a folder.
    """
    files = _files(folder, len(images))
    for image, file in zip(images, files, strict=False):
        if not file.exists() or file.stat().st_mtime_ns < image.stat().st_mtime_ns:
            with writing(file.parent):
                write_bytes(file, _content(image, file.suffix.lower()))
    return files or tuple(images)


def _files(folder: Path, count: int) -> tuple[Path, ...]:
    """Where the pictures of a run are written; empty if it was begun with a folder's name."""
    target = folder.with_suffix("") if folder.suffix == _RUN else folder
    if target == folder or target.suffix.lower() not in WRITTEN:
        return ()
    if count == 1:
        return (target,)
    digits = len(str(max(0, count - 1)))
    return tuple(
        target.with_name(f"{target.stem}-{n:0{digits}}{target.suffix}") for n in range(count)
    )


def _content(image: Path, suffix: str) -> bytes:
    if suffix == ".png":
        return image.read_bytes()  # with its metadata
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(image) as picture:
        kind = "WEBP" if suffix == ".webp" else "JPEG"
        picture.convert("RGB").save(stream, kind, quality=_QUALITY)
    return stream.getvalue()
