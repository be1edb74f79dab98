"""Measure how fast weights are read: with a weight file of our own, by our own reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lowmem_if.calibrate.clock import Clock, rate_of
from lowmem_if.hardware.weights_disk import scratch_folder
from lowmem_if.system.file_operations import drop_cached
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes

_FILE_BYTES = 256 * 2**20
_PIECES = 16


@contextmanager
def weight_file() -> Iterator[Path]:
    """A float16 weight file of noise in the folder of the weights; it is deleted afterwards."""
    with scratch_folder() as folder:
        file = Path(folder) / "model.safetensors"
        tensors = [NewTensor(str(n), "F16", (_FILE_BYTES // _PIECES // 2,)) for n in range(_PIECES)]
        with file.open("wb") as stream:
            stream.write(header_bytes(tensors))
            for _ in tensors:  # noise: a disk may compress, and denormal numbers are slow to cast
                stream.write(torch.randn(_FILE_BYTES // _PIECES // 2).half().numpy().tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        yield file


def reading_speeds(file: Path, dtype: torch.dtype, clock: Clock) -> tuple[float, float, float]:
    """Bytes a second of (the file cold, the file cached, the result in fresh memory from the cache)."""
    with Checkpoint((file,)) as checkpoint:
        names = [str(number) for number in range(_PIECES)]
        reader, count = checkpoint.reader(), _FILE_BYTES // _PIECES // 2
        again, fresh = torch.empty(count, dtype=dtype), []

        def cold(name: str) -> None:
            reader.read(checkpoint.stored(name), raw)

        def cast(name: str) -> None:
            reader.read(checkpoint.stored(name), again)

        def fill(name: str) -> None:
            fresh.append(torch.empty(count, dtype=dtype))
            reader.read(checkpoint.stored(name), fresh[-1])

        raw = torch.empty(count, dtype=torch.float16)
        _drop_cached(file)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as our loaders' threads read
        try:
            disk, cached = (count * 2 * rate_of(names, work, clock) for work in (cold, cast))
            filled = count * dtype.itemsize * rate_of(names, fill, clock)
            fresh.clear()
            # A virtual machine gets memory that is new to it slowly: the faster of two counts.
            filled = max(filled, count * dtype.itemsize * rate_of(names, fill, clock))
        finally:
            torch.set_num_threads(threads)
        return disk, cached, filled


def _drop_cached(file: Path) -> None:
    """Ask the system to drop the file from its cache; where it cannot, the disk seems to be fast."""
    with file.open("rb") as opened:
        drop_cached(opened.fileno())
