"""A cascade of exactly the sizes of a published one with made-up weights, to rehearse a machine with.

Folders, file names, shards, tensor names, shapes and number types are those of the repositories' fp16
files; the images mean nothing. Only one block of numbers is held in memory. Zeros are not even written:
such files are sparse and take no disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import prod
from pathlib import Path
from typing import IO, Any

import diffusers
import numpy

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.cascade.locating.cascade_names import canonical_name
from lowmem_if.cascade.safetensors_header import ITEM_BYTES
from lowmem_if.errors import CascadeError, RequestError
from lowmem_if.system.file_operations import replace
from lowmem_if.units import format_bytes
from lowmem_if.weights.files.safetensors_writer import (
    NewTensor,
    file_bytes,
    free_bytes,
    header_bytes,
    index_file,
    weight_file_names,
)
from lowmem_if.weights.synthetic.architectures import Network, networks
from lowmem_if.weights.synthetic.target_folder import check_target

NOISE, ZEROS = "noise", "zeros"
FILLS = (NOISE, ZEROS)

SHARD_BYTES = 9_990_000_000
"""The published text encoder's first shard is 9.96 GB long; the libraries cut at 10 GB then."""

_VARIANT = "fp16"

_BLOCK = 4 * 2**20
"""Numbers that are made at once."""

_NUMPY = {"F16": numpy.float16, "F32": numpy.float32}

Report = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes in all."""


@dataclass(frozen=True, slots=True)
class _File:
    """One safetensors file to write."""

    path: Path
    tensors: tuple[NewTensor, ...]

    @property
    def size_bytes(self) -> int:
        return file_bytes(self.tensors)


def synthesize(
    cascade: str,
    folder: Path,
    *,
    fill: str = NOISE,
    components: Collection[str] = catalog.COMPONENTS,
    report: Report = lambda _name, _done, _total: None,
) -> int:
    """Write `components` of a catalogued cascade into `folder`; returns the bytes of their weights.

    A file of full length is kept, so that an interrupted run can be repeated.

    Args:
        fill: `noise` (unit variance passes through every layer) or `zeros` (sparse files).
        report: called after every write.

    Raises:
        CascadeError: the cascade has no published sizes, or the folder cannot take it or holds
            something else.
        RequestError: an unknown fill or component.
    """
    name = canonical_name(cascade)
    if name not in catalog.ON_HUB:
        raise CascadeError(
            f"{cascade!r} has no published sizes: use {', '.join(catalog.PUBLISHED)}, or two stages "
            "like I-L+II-L"
        )
    if fill not in FILLS:
        raise RequestError(f"unknown fill {fill!r}: use {' or '.join(FILLS)}")
    for component in components:
        if component not in catalog.COMPONENTS:
            known = ", ".join(catalog.COMPONENTS)
            raise RequestError(f"unknown component {component!r}: use {known}")
    wanted = [network for component in components for network in networks(name)[component]]
    try:
        check_target(folder, name, chain.from_iterable(networks(name).values()))
        return _write_all(wanted, folder, fill, report)
    except OSError as error:
        raise CascadeError(f"{folder} cannot be written ({error.strerror or error})") from error


def _write_all(wanted: list[Network], folder: Path, fill: str, report: Report) -> int:
    files = [file for network in wanted for file in _plan_files(network, folder)]
    total = sum(file.size_bytes for file in files)
    missing = [file for file in files if not _is_whole(file)]
    _check_disk(folder, sum(file.size_bytes for file in missing) if fill == NOISE else 0)
    _small_folders(folder, {network.folder.partition("/")[0] for network in wanted})
    for network in wanted:
        _write_config(network, folder)
    done = total - sum(file.size_bytes for file in missing)
    for file in missing:
        for count in _write(file, fill):
            done += count
            report(f"{file.path.parent.name}/{file.path.name}", done, total)
    return total


def _plan_files(network: Network, folder: Path) -> Iterator[_File]:
    """The safetensors files of a network, as the repositories cut and name them."""
    variant = "" if network.folder.endswith("watermarker") else _VARIANT
    shards = list(_shards(_tensors(network)))
    for name, tensors in zip(
        weight_file_names(_stem(network), variant, len(shards)), shards, strict=True
    ):
        yield _File(folder / network.folder / name, tuple(tensors))


def _stem(network: Network) -> str:
    """The stem of the weight files' names, which differs between diffusers and transformers."""
    is_diffusers = issubclass(network.cls, diffusers.ModelMixin)
    return "diffusion_pytorch_model" if is_diffusers else "model"


def _tensors(network: Network) -> Iterator[NewTensor]:
    """The tensors that the network stores, tied ones once, in the repositories' number types."""
    seen: set[int] = set()
    for name, tensor in network.skeleton().state_dict(keep_vars=True).items():
        if id(tensor) in seen or not tensor.is_floating_point():
            continue
        seen.add(id(tensor))
        # The fp16 text encoder was saved with transformers' own exception from fp16.
        single = name.endswith(".wo.weight") or network.folder.endswith("watermarker")
        yield NewTensor(name, "F32" if single else "F16", tuple(tensor.shape))


def _shards(tensors: Iterator[NewTensor]) -> Iterator[list[NewTensor]]:
    shard: list[NewTensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.size_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.size_bytes
    yield shard


def _is_whole(file: _File) -> bool:
    return file.path.is_file() and file.path.stat().st_size == file.size_bytes


def _check_disk(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if needed > free:
        raise CascadeError(
            f"{folder}: {format_bytes(needed)} are needed and {format_bytes(free)} are free on this "
            "disk: --fill zeros takes none, --only one component takes less"
        )


def _write_config(network: Network, folder: Path) -> None:
    """Write config.json, and the index if there are shards."""
    place = folder / network.folder
    place.mkdir(parents=True, exist_ok=True)
    skeleton: Any = network.skeleton()
    if _stem(network) != "model":
        skeleton.save_config(place)
    else:
        skeleton.config.architectures = [network.cls.__name__]
        skeleton.config.save_pretrained(place)
    files = list(_plan_files(network, folder))
    if len(files) > 1:
        shards = {file.path.name: file.tensors for file in files}
        name, index = index_file(_stem(network), _VARIANT, shards)
        (place / name).write_text(index, encoding="utf-8")


def _small_folders(folder: Path, roots: set[str]) -> None:
    """Copy tokenizers and schedulers from the bundled cascade, which has the published settings."""
    for root in sorted(roots):
        for source in sorted((DEMO_FOLDER / root).iterdir()):
            if source.is_dir() and not any(source.glob("*.safetensors")):
                shutil.copytree(source, folder / root / source.name, dirs_exist_ok=True)
        (folder / root).mkdir(parents=True, exist_ok=True)
        shutil.copy(DEMO_FOLDER / root / "model_index.json", folder / root)
    (folder / "stage_1" / "tokenizer" / "known_words.json").unlink(missing_ok=True)
    extractor = folder / "stage_1" / "feature_extractor" / "preprocessor_config.json"
    if extractor.is_file():
        config = json.loads(extractor.read_text(encoding="utf-8"))
        side = {"height": 224, "width": 224}
        config |= {"crop_size": side, "size": {"shortest_edge": 224}}
        extractor.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write(file: _File, fill: str) -> Iterator[int]:
    """Write a partial file and rename it; yields the number of bytes after each write."""
    partial = file.path.with_name(f".{file.path.name}.partial")
    with partial.open("wb") as stream:
        yield stream.write(header_bytes(file.tensors))
        for tensor in file.tensors:
            if fill == NOISE:
                yield from _write_noise(stream, tensor)
            else:
                stream.truncate(stream.seek(tensor.size_bytes, 1))
                yield tensor.size_bytes
    replace(partial, file.path)


def _write_noise(stream: IO[bytes], tensor: NewTensor) -> Iterator[int]:
    """Write numbers that keep the variance of signals: 1 / fan-in, gains of one, biases of zero."""
    left = prod(tensor.shape)
    spread = prod(tensor.shape[1:]) ** -0.5 if len(tensor.shape) > 1 else 0.0
    centre = 1.0 if len(tensor.shape) == 1 and tensor.name.endswith("weight") else 0.0
    block = _block(tensor.dtype, spread, centre)
    while left:
        count = min(left, _BLOCK)
        yield stream.write(block[: count * ITEM_BYTES[tensor.dtype]])
        left -= count


@lru_cache(maxsize=8)
def _block(dtype: str, spread: float, centre: float) -> memoryview:
    """One block of numbers, the same at every call; tensors with the same fan-in share it."""
    noise = numpy.random.default_rng(0).standard_normal(_BLOCK, dtype=numpy.float32)
    return memoryview((noise * spread + centre).astype(_NUMPY[dtype]).tobytes())
