"""The process that does the work and may be killed.

    python -m lowmem_if.engine.worker

Orders come through standard input (`orders.py`); when it closes, the process ends. Events go to standard
output, one JSON object a line, the answer to an order last; what libraries print goes to standard error,
and from there into the log of the run at hand.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import warnings
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

from lowmem_if.engine.commands import Command, received
from lowmem_if.engine.events import Event, Report
from lowmem_if.engine.executor import work
from lowmem_if.engine.model_cache import ModelCache, left_behind
from lowmem_if.engine.run_folder import RunFolder, writing
from lowmem_if.errors import LowmemError
from lowmem_if.planning.fallback import RAM
from lowmem_if.system.channel import take_input
from lowmem_if.weights.allocator import SegmentsFail
from lowmem_if.weights.memory_readings import VramTaken
from lowmem_if.weights.out_of_memory import is_of_host, is_shortage

Orders = SimpleQueue[tuple[Command, int | None]]


def quiet_libraries() -> None:
    """Keep what the libraries say to what went wrong; the rest we say ourselves."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore", FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main() -> NoReturn:
    """Do what is ordered, one after the other, until nobody gives orders any more."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders: Orders = SimpleQueue()
    threading.Thread(target=_take_orders, args=(take_input(), orders), daemon=True).start()
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            events.write(event.to_line() + "\n")

    quiet_libraries()
    # The libraries' own objects stay to the end: collecting among them takes a second a component.
    gc.freeze()
    shelf = ModelCache(report)
    while True:
        order, folder_lock = orders.get()
        report(_answer(order, folder_lock, shelf, report))


def _answer(order: Command, folder_lock: int | None, shelf: ModelCache, report: Report) -> Event:
    """Do what is ordered; what is no known error ends this process with its traceback."""
    try:
        try:
            _obey(order, shelf, report)
        finally:
            if folder_lock is not None:
                os.close(folder_lock)  # before the answer: the folder is free then
    except LowmemError as error:
        return Event("error", text=str(error), name=type(error).__name__)
    except VramTaken as error:
        return Event("out_of_memory", text=str(error), total=error.available_bytes)
    except SegmentsFail as error:
        return Event("segments_fail", text=str(error))
    except Exception as error:
        if not is_shortage(error):
            raise
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return Event("out_of_memory", text=text, name=RAM if is_of_host(error) else "")
    return Event("done")


def _obey(order: Command, shelf: ModelCache, report: Report) -> None:
    if order.directory:
        os.chdir(order.directory)
    shelf.keeps, shelf.alone = order.keeps, frozenset(order.alone)
    if order.folder:
        folder = RunFolder.open(Path(order.folder))
        _log_into(folder)
        work(folder, report, preview_every=order.preview_every, shelf=shelf)
        return
    for component, release in shelf.empty():
        if not release.complete:
            report(Event("notice", component, text=left_behind(component, release)))


def _log_into(folder: RunFolder) -> None:
    """From now on what the libraries print goes to this run's log."""
    with writing(folder.path), folder.log_file.open("ab") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)


def _take_orders(line: int, orders: Orders) -> NoReturn:
    """What was our standard input closes when the parent is gone, however it went."""
    for order in received(line):
        orders.put(order)
    os._exit(LowmemError.exit_code)


if __name__ == "__main__":
    main()
