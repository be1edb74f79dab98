"""A module folder's weight files, opened once: tensor names to bytes in files, nothing copied.

There are two ways to a tensor. `checkpoint[name]` is a view of the mapped file: pages are loaded when
they are touched, and the system can drop them at any time. A `reader` copies bytes by `pread`. That
maps no page, so the resident set does not grow, and a file that has shrunk is an error instead of a
SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.cascade.safetensors_header import read_header, unreadable
from lowmem_if.errors import CheckpointError
from lowmem_if.system.file_operations import drop_cached, open_status, read_at
from lowmem_if.weights.files.stored import (
    CHANNELS_LAST,
    CODES,
    CONVOLUTION_AXES,
    SCALES,
    TORCH_DTYPES,
    Stored,
)
from lowmem_if.weights.files.tensor_reader import BLOCK_BESIDE_COMPUTING, Reader

_AGAIN = "remove the copy with `lowmem-if fetch CASCADE --convert none`, and make it again"


class _File:
    """One open weight file, and its identity when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers = read_header(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unreadable(path, error) from error
        self._opened = _identity(open_status(self._descriptor, path))
        self._map: mmap.mmap | None = None

    def map(self) -> mmap.mmap:
        """The whole file, mapped for reading once."""
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        return self._map

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on."""
        done = 0
        while done < len(target):
            try:
                count = read_at(self._descriptor, target[done:], offset + done)
            except OSError as error:
                raise unreadable(self.path, error) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: it has become shorter while it was read; fetch or copy it again"
                )
            done += count

    def check(self) -> None:
        """Raise `CheckpointError` if the file at the path is another one now, or has changed."""
        try:
            there = _identity(self.path.stat())
        except OSError as error:
            raise unreadable(self.path, error) from error
        if there != self._opened:
            raise CheckpointError(
                f"{self.path}: it was changed or replaced while it was in use; "
                "run again with the file as it is now, or fetch or copy it again"
            )

    def drop_cache(self, offset: int, size: int) -> None:
        """Tell the system that these pages will not be read again soon."""
        drop_cached(self._descriptor, offset, size)

    def close(self) -> None:
        """Close the file; the mapping is freed with the last tensor that views it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._map = None  # not closed: that would take the memory from under views still alive


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of one module folder, by name, as views of their mapped files.

    The files remain open until `close()` or the end of a `with`, mappings as long as there is a view.
    """

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files: list[_File] = []
        self._stored: dict[str, Stored] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for number, path in enumerate(files):
                self._files.append(_File(path))
                for name, header in self._files[-1].headers.items():
                    if header.dtype not in TORCH_DTYPES:
                        raise CheckpointError(
                            f"{path}: {name!r} is {header.dtype}, which torch cannot compute with"
                        )
                    self._stored[name.removesuffix(CHANNELS_LAST)] = Stored(
                        number, header, name.endswith(CHANNELS_LAST)
                    )
            self._join_scales()
            undo.pop_all()

    def _join_scales(self) -> None:
        """Give each weight of an 8-bit copy its own name, and its scales."""
        for name in [name for name in self._stored if name.endswith(CODES)]:
            codes, plain = self._stored.pop(name), name.removesuffix(CODES)
            scales = self._stored.pop(plain + SCALES, None)
            if scales is None:
                raise CheckpointError(f"{self.paths[codes.file]}: {name!r} has no scales; {_AGAIN}")
            last = len(codes.header.shape) == CONVOLUTION_AXES
            self._stored[plain] = replace(codes, channels_last=last, scales=scales)

    @classmethod
    def of_folder(cls, folder: Path, *, eight_bit: bool = False) -> Checkpoint:
        """The weights that a run loads from a module folder: one variant, all its shards.

        Raises:
            CheckpointError: a file is missing, truncated, or its header makes no sense.
        """
        return cls(weight_files(folder, eight_bit=eight_bit))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor as a view of the mapped file: read-only, and not a byte has been read yet."""
        return self.view(self._stored[name])

    def view(self, stored: Stored) -> torch.Tensor:
        """The same for a tensor whose place in the files is known."""
        if not stored.size_bytes:
            return torch.empty(stored.shape, dtype=stored.dtype)
        with warnings.catch_warnings():
            # torch has no read-only tensors; nothing here writes to weights.
            warnings.filterwarnings("ignore", message=".*not writable.*")
            flat = torch.frombuffer(
                self._files[stored.file].map(),
                dtype=torch.uint8,
                count=stored.size_bytes,
                offset=stored.header.offset,
            )
        return _typed(flat, stored)

    def stored(self, name: str) -> Stored:
        """Where a tensor is stored, and what its numbers are."""
        return self._stored[name]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._files)

    def read_into(self, target: memoryview, stored: Stored, start: int = 0) -> None:
        """Copy bytes of the tensor, from its byte `start` on, into `target` by pread.

        Raises:
            CheckpointError: the file cannot be read or has become shorter.
        """
        self._files[stored.file].read_into(target, stored.header.offset + start)

    def reader(
        self, between: Callable[[], None] = lambda: None, block: int = BLOCK_BESIDE_COMPUTING
    ) -> Reader:
        """A new reader of these files, for one thread; its arguments are those of `Reader`."""
        return Reader(self, between, block)

    def drop_cache(self, stored: Stored) -> None:
        """Let the system drop a tensor's cached pages (not those that are mapped and in use)."""
        self._files[stored.file].drop_cache(stored.header.offset, stored.size_bytes)

    def check(self) -> None:
        """Check that all files are still the ones that were opened.

        Raises:
            CheckpointError: one was changed, replaced or removed.
        """
        for file in self._files:
            file.check()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._stored = {}


def weight_files(folder: Path, *, eight_bit: bool = False) -> tuple[Path, ...]:
    """The weight files that a run loads from a module folder: one variant, all its shards."""
    variant = weight_variant(folder, eight_bit=eight_bit)
    return tuple(folder / name for name in variant.files)


def _typed(flat: torch.Tensor, stored: Stored) -> torch.Tensor:
    """Bytes as numbers; an unaligned beginning, which the format allows, costs a copy."""
    if stored.header.offset % stored.dtype.itemsize:
        flat = flat.clone()
    tensor = flat.view(stored.dtype).reshape(stored.header.shape)
    return tensor.permute(0, 3, 1, 2) if stored.channels_last else tensor


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
