"""The runs on this disk: which there are, how far they are, and what can be removed of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.out_folder import RUNS
from lowmem_if.engine.run_folder.tensors_left import tensor_files
from lowmem_if.engine.run_folder.writing import in_use, writing
from lowmem_if.errors import RunFolderError
from lowmem_if.system.file_operations import remove
from lowmem_if.system.paths import quoted

State = Literal["complete", "unfinished", "in use", "unreadable"]


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run folder as it is now.

    Attributes:
        changed_s: when its record was last written, in seconds since the epoch.
        prompt: the first prompt; empty if there is none.
        images_done, images: how many pictures are finished, and how many there will be.
        state: `complete`, `unfinished`, `in use` or `unreadable`.
        size_bytes: all its files.
        tensor_bytes: the part that `clean` would remove; 0 unless it is complete.
    """

    folder: Path
    changed_s: float
    prompt: str
    images_done: int
    images: int
    state: State
    size_bytes: int
    tensor_bytes: int


def list_runs(folders: Iterable[str | Path] = (RUNS,)) -> tuple[PastRun, ...]:
    """The run folders among `folders` and directly inside them, the last changed first.

    Raises:
        RunFolderError: there is no such folder, or it cannot be read.
    """
    found = dict.fromkeys(run for folder in folders for run in _runs_in(Path(folder)))
    return tuple(sorted(map(_past_run, found), key=lambda run: -run.changed_s))


def clean(run: str | Path) -> int:
    """Remove the intermediate tensors of a finished run; returns the bytes that were freed.

    Pictures, previews, gallery and record are kept. Pictures of a cleaned run can still be enlarged
    into a new folder, where they are drawn again.

    Raises:
        RunFolderError: it is no run folder, is not finished, or is in use.
    """
    folder = RunFolder.open(Path(run))
    _check_finished(folder)
    with folder.locked():
        folder = folder.reload()
        _check_finished(folder)
        files = [(file, file.stat().st_size) for file in tensor_files(folder)]
        with writing(folder.path):
            for file, _size in files:
                remove(file)
    return sum(size for _file, size in files)


def _check_finished(folder: RunFolder) -> None:
    if in_use(folder.lock_file):
        return  # the lock says it better
    if not folder.complete:
        raise RunFolderError(
            f"{folder.path} is not finished and needs its tensors: "
            f"`lowmem-if resume {quoted(folder.path)}` first"
        )


def _runs_in(folder: Path) -> Iterator[Path]:
    """The folder, if it is a run folder; else the run folders directly in it."""
    if RunFolder.begun(folder):
        yield folder
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be listed ({error.strerror})") from None
    yield from (entry for entry in entries if entry.is_dir() and RunFolder.begun(entry))


def _past_run(path: Path) -> PastRun:
    size = sum(_size(file) for file in path.rglob("*"))
    try:
        folder = RunFolder.open(path)
    except RunFolderError:
        return PastRun(path, path.stat().st_mtime, "", 0, 0, "unreadable", size, 0)
    request = folder.plan.request
    state: State = "complete" if folder.complete else "unfinished"
    tensors = sum(map(_size, tensor_files(folder))) if folder.complete else 0
    if in_use(folder.lock_file):
        state, tensors = "in use", 0
    prompt = next((spec.prompt for spec in request.images if spec.prompt.strip()), "")
    done, images = len(folder.images), len(request.pictures)
    return PastRun(path, folder.changed_ns / 1e9, prompt, done, images, state, size, tensors)


def _size(file: Path) -> int:
    """The bytes of a file; 0 for a folder, and for a file that was removed meanwhile."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0
