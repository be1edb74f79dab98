"""bfloat16 and 8-bit copies of networks' weights in our own cache, for streaming them at every step.

The name of a copy depends on the weight files that it is made from: on their fingerprint, and on their
dates, which show a change between the samples. So changed files have no copy, never a stale one; the old
one remains until it is replaced or removed. A copy is written under another name and renamed when it is
complete. The next conversion removes what a killed one left. torch is imported when a copy is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lowmem_if.cascade import catalog
from lowmem_if.cascade.cache_dir import cache_folder
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.locating.hub_folders import storage_folder
from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.cascade.quantised_layers import INT8
from lowmem_if.cascade.safetensors_header import are_bfloat16, read_headers, unreadable
from lowmem_if.errors import CacheError, CascadeError, CheckpointError
from lowmem_if.units import format_bytes
from lowmem_if.weights.files.atomic import (
    remove_folder,
    remove_partial_folders,
    whole_folder,
    write_bytes,
)
from lowmem_if.weights.files.fingerprint import fingerprint
from lowmem_if.weights.files.safetensors_writer import (
    file_bytes,
    free_bytes,
    index_file,
    weight_file_names,
)

BFLOAT16 = "bfloat16"
_VARIANTS = {BFLOAT16: "bf16", INT8: ""}

_RECORD = "made_from.json"
"""The name of the last file that is written into a copy."""

_CONTIGUOUS, _CHANNELS_LAST = 1, 2
"""The layouts of copies, part of their names. Version 0.2 wrote contiguous ones; they are still read."""

_ELSEWHERE = "or set LOWMEM_IF_CACHE to a folder on a larger disk"

Report = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class _Record:
    """The record inside a copy: the module folder that it was made from, its own files' names, their
    fingerprint, and its number type, which records of version 0.2 lack."""

    folder: str
    files: tuple[str, ...]
    digest: str
    dtype: str = BFLOAT16


def converted_folder(
    module_folder: Path, *, dtype: str = BFLOAT16, contiguous: bool = False
) -> Path:
    """The folder of a copy of a module folder's weights as they are now, whether it exists or not.

    Args:
        dtype: `bfloat16` or `int8`.
        contiguous: whether convolutions' weights are contiguous there; else they have channels last.

    Raises:
        CheckpointError: a weight file is missing or cannot be read.
        CacheError: there is no cache folder.
    """
    files = _sources(module_folder)
    layout = _CONTIGUOUS if contiguous else _CHANNELS_LAST
    key = [layout, dtype, fingerprint(module_folder, files), [_date(file) for file in files]]
    return _cache() / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def find_converted(
    module_folder: Path, *, dtype: str = BFLOAT16, contiguous: bool = False
) -> Path | None:
    """The sound copy of a module folder's weights as they are now; None if there is none.

    It holds the same tensors; the files of a bfloat16 copy are named like the libraries' bf16 variant.
    Some megabytes of both are read to check it.

    Raises:
        CheckpointError: a weight file of the module folder is missing or cannot be read.
    """
    try:
        copy = converted_folder(module_folder, dtype=dtype, contiguous=contiguous)
    except CacheError:
        return None
    record = _record(copy)
    return copy if record and _is_sound(copy, record) else None


def convert(
    module_folder: Path,
    *,
    dtype: str = BFLOAT16,
    report: Report = lambda _name, _done, _total: None,
) -> Path:
    """Write the copy of a module folder's weights if there is none; returns its folder.

    For `bfloat16` every floating tensor is rounded as torch does; for `int8` the matrices of a UNet
    become 8-bit numbers with scales. Others are not changed. Stale copies of the same folder are
    removed first. Only tens of megabytes are in memory at a time.

    Raises:
        CheckpointError: the weights are missing or broken, or change meanwhile.
        CascadeError: the disk is too small, or the cache cannot be written.
    """
    copy = find_converted(module_folder, dtype=dtype)
    if copy:
        return copy
    with _alone():
        # The process that held the lock before may have made it.
        return find_converted(module_folder, dtype=dtype) or _make(module_folder, dtype, report)


def remove_converted(module_folder: Path) -> int:
    """Remove all copies of a module folder, stale ones too; returns their bytes.

    The folder itself need not exist. For a snapshot in the Hugging Face cache, the copies of the
    repository's other revisions are removed, too.

    Raises:
        CascadeError: a copy cannot be removed.
    """
    if not _cache().is_dir():
        return 0
    origin = _origin(module_folder)
    with _alone():
        copies = {copy for copy, record in _copies() if _origin(Path(record.folder)) == origin}
        with suppress(CheckpointError):
            # Made from another folder's equal files, or too damaged to say from which.
            own = {converted_folder(module_folder, dtype=dtype) for dtype in _VARIANTS}
            own.add(converted_folder(module_folder, contiguous=True))
            copies |= {copy for copy in own if copy.exists()}
        freed = sum(map(copy_bytes, copies))
        for copy in copies:
            remove_folder(copy)
    return freed


def copy_bytes(copy: Path) -> int:
    """The length of all files of a copy."""
    return sum(file.stat().st_size for file in copy.iterdir())


def needs_conversion(module_folder: Path) -> bool:
    """Whether a copy would hold other numbers than the files; not if they are bfloat16 already.

    Raises:
        CheckpointError: a weight file is missing or broken.
    """
    return not are_bfloat16(read_headers(_sources(module_folder)).values())


def streamed_networks(location: Location) -> dict[str, Path]:
    """Component -> module folder of the network that a CPU may stream at every step: the UNets.

    The text encoder is none of them: it runs once a prompt. Of a local cascade only what is there is
    listed; of a published one everything, so that copies of weights that are gone can be removed.
    """
    found = {}
    for component in catalog.IMAGE_STAGES:
        part, place = location.cascade.parts.get(component), location.places.get(component)
        if place:
            found[component] = place.folder("unet")
        elif part and part.repository:
            # Copies are looked up by repository, whatever the commit.
            found[component] = storage_folder(part.repository) / "snapshots" / "none" / "unet"
    return found


def _cache() -> Path:
    return cache_folder("converted")


def _sources(module_folder: Path) -> list[Path]:
    return [module_folder / name for name in weight_variant(module_folder).files]


def _date(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError as error:
        raise unreadable(file, error) from error


def _make(module_folder: Path, dtype: str, report: Report) -> Path:
    """Write the copy; the caller holds the lock of the cache."""
    from lowmem_if.weights.files.convert_dtype import cast_file, cast_tensors
    from lowmem_if.weights.files.quantise_file import quantise_file, quantised_tensors

    writers = {BFLOAT16: (cast_tensors, cast_file), INT8: (quantised_tensors, quantise_file)}
    tensors_of, write = writers[dtype]
    target, sources = converted_folder(module_folder, dtype=dtype), _sources(module_folder)
    stem, variant = sources[0].name.partition(".")[0].partition("-")[0], _VARIANTS[dtype]
    names = weight_file_names(stem, variant, len(sources))
    shards = dict(zip(names, map(tensors_of, sources), strict=True))
    total, done = sum(map(file_bytes, shards.values())), 0
    _make_room(module_folder, dtype, target, total)
    with whole_folder(target) as partial:
        for source, name in zip(sources, names, strict=True):
            for count in write(source, partial / name):
                done += count
                report(f"{module_folder.name}/{name}", done, total)
        if len(names) > 1:
            index, content = index_file(stem, variant, shards)
            write_bytes(partial / index, content.encode())
            names += (index,)
        if converted_folder(module_folder, dtype=dtype) != target:
            raise CheckpointError(
                f"{module_folder}: its weights were changed while they were converted; run again"
            )
        _write_record(partial, module_folder, dtype, names)
    return target


def _make_room(module_folder: Path, dtype: str, target: Path, needed: int) -> None:
    """Remove what this folder's new copy takes the place of; raise if the disk is still too small."""
    old = (str(module_folder.resolve()), dtype)
    replaced = {copy for copy, record in _copies() if (record.folder, record.dtype) == old}
    if target.exists():  # or it would have been found: it is damaged
        replaced.add(target)
    for copy in replaced:
        remove_folder(copy)
    free = free_bytes(_cache())
    if needed > free:
        raise CascadeError(
            f"{_cache()}: {format_bytes(needed)} are needed and {format_bytes(free)} are free on "
            f"this disk: free some, {_ELSEWHERE}"
        )


@contextmanager
def _alone() -> Iterator[None]:
    """Lock the cache; partial folders in it then belong to no process, and are removed."""
    from huggingface_hub.utils import WeakFileLock

    cache = _cache()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(cache / ".lock"):
            remove_partial_folders(cache)
            yield
    except OSError as error:
        raise CascadeError(
            f"{cache} cannot be written ({error.strerror or error}): make it writable and free some "
            f"disk, {_ELSEWHERE}"
        ) from error


def _write_record(copy: Path, module_folder: Path, dtype: str, names: tuple[str, ...]) -> None:
    digest = fingerprint(copy, [copy / name for name in names])
    record = _Record(str(module_folder.resolve()), names, digest, dtype)
    write_bytes(copy / _RECORD, json.dumps(asdict(record), indent=1).encode())


def _record(copy: Path) -> _Record | None:
    """The record of a copy; None if there is none, or it makes no sense."""
    try:
        said = json.loads((copy / _RECORD).read_bytes())
        folder, files, digest = said["folder"], said["files"], said["digest"]
        dtype = said.get("dtype", BFLOAT16)
        return _Record(str(folder), tuple(map(str, files)), str(digest), str(dtype))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _is_sound(copy: Path, record: _Record) -> bool:
    try:
        return fingerprint(copy, [copy / name for name in record.files]) == record.digest
    except CheckpointError:
        return False


def _copies() -> list[tuple[Path, _Record]]:
    found = ((copy, _record(copy)) for copy in _cache().iterdir())
    return [(copy, record) for copy, record in found if record]


def _origin(module_folder: Path) -> tuple[str, ...]:
    """What a module folder is a version of: itself, or in the Hub's cache its folder of any commit."""
    parts = module_folder.resolve().parts
    is_snapshot = parts[-3:-2] == ("snapshots",) and parts[-4].startswith("models--")
    return (parts[-4], parts[-1]) if is_snapshot else parts
