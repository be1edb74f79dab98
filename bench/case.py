"""One measurement in a process of its own: `python -m bench.case CASE`; the result is one JSON line.

What is measured: loading, until the network can be called, and then some steps of it. Neither the
imports count nor what a way prepares beforehand; memory is that of the whole process all the same.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import mmap
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.cases import Case
from bench.networks import steps
from bench.ways import BY_NAME, PIECE_BYTES, read_piece, weight_bytes, weight_files
from lowmem_if.engine.worker.command_loop import quiet_libraries
from lowmem_if.weights.memory_readings import MemoryReading, Sampler, read_memory, wake
from lowmem_if.weights.out_of_memory import is_shortage

INTERVAL_S = 0.02
FREE_RESERVE_BYTES = 10**9


def measure(case: Case) -> dict[str, Any]:
    """The figures of one case; what fails is told in `failed` instead."""
    record: dict[str, Any] = {"threads": torch.get_num_threads()}
    try:
        _measure(case, record)
    except Exception as error:  # noqa: BLE001  a way that fails is a result
        traceback.print_exc()
        record["failed"] = _told(error, case)
    return record


def _measure(case: Case, record: dict[str, Any]) -> None:
    way = BY_NAME[case.way]
    wake(case.device)
    files = way.prepare(case)
    record["file_bytes"] = sum(file.stat().st_size for file in weight_files(case))
    record["weight_bytes"] = weight_bytes(case)
    touch_memory(record["file_bytes"] + record["weight_bytes"])
    (drop_from_cache if case.cold else bring_into_cache)(files)
    step, written = steps(case), _written(case)
    gc.collect()
    record["start"] = _bytes(read_memory(case.device))
    with contextlib.ExitStack() as stack, torch.no_grad():
        with _watched(case.device) as record["load"]:
            network = stack.enter_context(way.open(case))
        record["written_bytes"] = _written(case) - written
        if network is None:
            return
        outputs, seconds = [], []
        with _watched(case.device) as record["steps"]:
            for number in range(case.steps):
                begun = time.perf_counter()
                outputs.append(step(network, number).cpu())
                seconds.append(time.perf_counter() - begun)
        record["steps"]["seconds"] = seconds
        record["output"] = fingerprint(outputs)


@contextmanager
def _watched(device: str) -> Iterator[dict[str, Any]]:
    """Seconds and peaks of what happens inside; they are in the dictionary in the end."""
    found: dict[str, Any] = {}
    readings = [read_memory(device)]
    times = [time.perf_counter()]

    def record(reading: MemoryReading) -> None:
        readings.append(reading)
        times.append(time.perf_counter())

    exact = _forget_peak()
    sampler = Sampler(device, record, INTERVAL_S)
    sampler.start()
    try:
        yield found
        if device != "cpu":
            torch.accelerator.synchronize(device)
    finally:
        seconds = time.perf_counter() - times[0]
        sampler.stop()
        record(read_memory(device))
        found |= _peaks(readings) | {"seconds": seconds}
        if exact:
            found["rss"] = max(found["rss"], _peak_rss())
        # How long the sampler was kept from looking: a peak of anonymous memory could hide there.
        gaps = [later - earlier for earlier, later in pairwise(times)]
        found["longest_gap"] = max(gaps)


def _peaks(readings: Iterable[MemoryReading]) -> dict[str, int]:
    each = [_bytes(reading) for reading in readings]
    return {name: max(reading[name] for reading in each) for name in each[0]}


def _bytes(reading: MemoryReading) -> dict[str, int]:
    rss = reading.ram_anon + reading.ram_file
    return {"anon": reading.ram_anon, "rss": rss, "vram": reading.vram_allocated}


def _forget_peak() -> bool:
    """Let the kernel's own peak of the resident set begin again; whether it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def touch_memory(size_bytes: int) -> None:
    """Use memory once and give it back: a virtual machine gets some of its own at the first touch only.

    Only memory that is free, so that no file is pushed out of the cache.
    """
    most = psutil.virtual_memory().free - FREE_RESERVE_BYTES
    torch.empty(max(0, min(size_bytes, most)), dtype=torch.uint8)[:: mmap.PAGESIZE].fill_(1)


def bring_into_cache(files: Iterable[Path]) -> None:
    """Read the files, so that the disk, which is never the same, does not count."""
    piece = memoryview(bytearray(PIECE_BYTES))
    for file in files:
        size = file.stat().st_size
        for start in range(0, size, PIECE_BYTES):
            read_piece(file, piece[: min(PIECE_BYTES, size - start)], start)


def drop_from_cache(files: Iterable[Path]) -> None:
    """Ask the system to forget the files' pages; they have to be on the disk for that."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fingerprint(outputs: Iterable[torch.Tensor]) -> dict[str, Any]:
    """The same for two ways if and only if all their outputs have the same bits."""
    digest, total, finite = hashlib.sha256(), 0.0, True
    for output in outputs:
        total += output.double().sum().item()
        finite &= bool(output.isfinite().all())
        digest.update(output.contiguous().view(torch.uint8).numpy().data)
    return {"hash": digest.hexdigest()[:16], "sum": total, "finite": finite}


def _written(case: Case) -> int:
    """The bytes of what ways leave on the disk: copies in their own form."""
    folders = [case.scratch]
    if "LOWMEM_IF_CACHE" in os.environ:
        folders.append(Path(os.environ["LOWMEM_IF_CACHE"]))
    files = (file for folder in folders for file in folder.rglob("*"))
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def _told(error: Exception, case: Case) -> dict[str, str]:
    """In a line; where things lie on this machine is nobody's business."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    for place in (case.scratch, case.folder, Path.cwd()):
        line = line.replace(f"{place}/", "").replace(str(place), place.name)
    return {"kind": "memory" if is_shortage(error) else "error", "text": line}


def main() -> None:
    """Measure what the command line says; what libraries print goes to standard error."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # If memory runs out, this process is to be killed and not who measures, nor anybody else.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    quiet_libraries()
    results.write(json.dumps(measure(Case.from_json(sys.argv[1]))) + "\n")
    results.flush()


if __name__ == "__main__":
    main()
