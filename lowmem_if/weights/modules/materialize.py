"""Fill a network on the meta device with its weights, cast or quantised while they are read.

Each thread reads one tensor at a time and needs three megabytes of scratch memory in addition to the
finished module. Quantising needs a whole weight on an accelerator, and some rows of it on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import local
from typing import Any

import torch

from lowmem_if.cascade.transfer_sizes import LOADER_THREADS
from lowmem_if.system.host import usable_cpus
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.staging import Staging
from lowmem_if.weights.files.tensor_reader import BLOCK, read_in_layout
from lowmem_if.weights.modules.lora_merge import NOTHING, Merges, reader_of
from lowmem_if.weights.modules.meta_init import Slot, owner_of, place
from lowmem_if.weights.modules.quantization import Maker, quantised_maker


def fill(
    module: torch.nn.Module,
    checkpoint: Checkpoint,
    wanted: Iterable[Slot],
    device: str,
    merges: Merges = NOTHING,
    most_threads: int | None = None,
) -> None:
    """Read every wanted tensor to `device`, merge LoRAs into it, and place it in the module.

    Args:
        most_threads: the most threads that read; None: as many as read fastest.

    Raises:
        CheckpointError: a file cannot be read, or is shorter than before.
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

    # Each loader computes with one thread: dividing its small copies costs more than it gains.
    with torch_threads(1):
        in_parallel(load, list(wanted), 1 if device != "cpu" else thread_count(most_threads))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` CPU threads when this thread calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_count(most: int | None) -> int:
    """How many threads read weights: as many as read fastest, or `most`."""
    return min(most or LOADER_THREADS, usable_cpus())


def in_parallel(act: Callable[[Slot], None], todo: list[Slot], threads: int) -> None:
    """Call `act` with each slot, in order; the first error cancels the rest and is raised.

    One thread means the calling thread: torch crashes when a second thread uses an Apple GPU
    (pytorch 197805).
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


def _maker(module: torch.nn.Module, slot: Slot) -> Maker:
    parameter = getattr(*owner_of(module, slot.names[0]))
    return quantised_maker(parameter, slot) or _plain


def _plain(slot: Slot, reader: Any, device: str) -> torch.Tensor:
    tensor = slot.empty(device)
    read_in_layout(reader, slot.stored, tensor)
    return tensor
