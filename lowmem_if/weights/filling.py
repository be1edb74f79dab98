"""A skeleton becomes a module: one tensor a thread on its way, cast or quantised as it comes.

Nothing above the finished module is ever held but three megabytes of scratch a thread; quantised weights
pass as one whole tensor on an accelerator, and row by row on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import local
from typing import Any

import bitsandbytes
import torch

from lowmem_if.errors import CheckpointError
from lowmem_if.system.hardware import usable_cpus
from lowmem_if.weights.checkpoint import Checkpoint
from lowmem_if.weights.merging import NOTHING, Merges, reader_of
from lowmem_if.weights.reading import BLOCK
from lowmem_if.weights.skeletons import Slot, owner_of, place
from lowmem_if.weights.staging import Staging

_MOST_THREADS = 4
"""More read no faster: the page cache gives 5 GB/s to one thread, fresh memory about 1 GB/s to each."""


def fill(
    module: torch.nn.Module,
    checkpoint: Checkpoint,
    wanted: Iterable[Slot],
    device: str,
    merges: Merges = NOTHING,
) -> None:
    """Read every wanted tensor to `device`, with what is merged into it, and put it in its place.

    Raises:
        CheckpointError: a file cannot be read or has become shorter.
    """
    threads = local()

    def reader() -> Any:
        if not hasattr(threads, "reader"):
            reader = reader_of(checkpoint, merges, block=BLOCK)
            threads.reader = reader if device == "cpu" else Staging(reader, device)
        return threads.reader

    def load(slot: Slot) -> None:
        make = _maker(module, slot)
        place(module, slot.names, make(slot, reader(), device))

    # Each loader for itself: sharing its small copies costs more than it gains.
    with torch_threads(1):
        _in_parallel(load, list(wanted), 1 if device != "cpu" else _threads())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on so many threads of the CPU when this thread asks it to."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads() -> int:
    return min(_MOST_THREADS, usable_cpus())


def _in_parallel(act: Callable[[Slot], None], todo: list[Slot], threads: int) -> None:
    """Do it all, in order of the list; the first error ends it and is raised.

    One thread is the calling one: torch crashes when a second thread uses an Apple GPU (pytorch 197805).
    """
    if threads == 1:
        for slot in todo:
            act(slot)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        futures = [pool.submit(act, slot) for slot in todo]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            pool.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()


def _maker(module: torch.nn.Module, slot: Slot) -> Callable[..., torch.Tensor]:
    parameter = getattr(*owner_of(module, slot.names[0]))
    if isinstance(parameter, bitsandbytes.nn.Int8Params):
        return _stored_int8 if slot.stored.dtype == torch.int8 else _int8
    if isinstance(parameter, bitsandbytes.nn.Params4bit):
        settings = dict(parameter.__dict__)
        return lambda *args: _nf4(*args, settings=settings)
    return _plain


def _plain(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    tensor = torch.empty(slot.stored.shape, dtype=slot.dtype, device=device)
    reader.read(slot.stored, tensor)
    return tensor


def _int8(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    """bitsandbytes' row-wise int8, bit for bit, of the weight in the compute type.

    On an accelerator by its own kernel; on a CPU by its formula, a block of rows at a time, where its
    own code takes float16 numbers, which CPUs are slow with, and several copies of the tensor.
    """
    if device != "cpu":
        numbers = _plain(slot, reader, device).to(torch.float16)
        codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(numbers)
        return _int8_parameter(codes, scales)
    rows, width = slot.stored.shape
    codes = torch.empty((rows, width), dtype=torch.int8)
    scales = torch.empty(rows, dtype=torch.float32)
    step = max(1, BLOCK // width)
    block = torch.empty((step, width), dtype=slot.dtype)
    for row in range(0, rows, step):
        part = block[: min(step, rows - row)]
        reader.read(slot.stored, part, first=row * width)
        numbers = part.to(torch.float16).float()
        scales[row : row + step] = numbers.abs().amax(1)
        numbers *= (127.0 / scales[row : row + step])[:, None]
        codes[row : row + step] = numbers.round_()
    return _int8_parameter(codes, scales)


def _stored_int8(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    codes = _plain(slot, reader, device)
    if slot.scales is None:
        raise CheckpointError(f"{slot.names[0]} is 8-bit without scales; fetch the folder again")
    scales = torch.empty(slot.scales.shape, dtype=torch.float32, device=device)
    reader.read(slot.scales, scales)
    return _int8_parameter(codes, scales)


def _int8_parameter(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    parameter: torch.Tensor = bitsandbytes.nn.Int8Params(
        codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales
    )
    return parameter


def _nf4(slot: Slot, reader: Any, device: str, *, settings: dict[str, Any]) -> torch.Tensor:
    host = torch.empty(slot.stored.shape, dtype=slot.dtype)
    (reader if device == "cpu" else reader.reader).read(slot.stored, host)
    parameter: torch.Tensor = bitsandbytes.nn.Params4bit(host, requires_grad=False, **settings).to(
        device
    )
    return parameter
