"""The process that does the work and may be killed.

    python -m lowmem_if.engine.worker

Commands arrive on standard input (`worker_commands.py`); when it closes, the process ends. Events go to
standard output, one JSON object a line, the answer to a command last. What libraries print goes to
standard error, and from there into the log of the current run.
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

from lowmem_if.engine.events import Event, Notice, Report
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.writing import writing
from lowmem_if.engine.worker.executor import work
from lowmem_if.engine.worker.model_cache import ModelCache, left_behind
from lowmem_if.engine.worker_answers import (
    Answer,
    CommandDone,
    CommandFailed,
    MemoryRanOut,
    SegmentsRefused,
)
from lowmem_if.engine.worker_commands import Command, read_commands
from lowmem_if.errors import LowmemError
from lowmem_if.planning.fallback import RAM
from lowmem_if.system.channel import take_input
from lowmem_if.weights.allocator import SegmentsFail
from lowmem_if.weights.memory_readings import VramTaken
from lowmem_if.weights.out_of_memory import is_of_host, is_shortage

Commands = SimpleQueue[tuple[Command, int | None]]


def quiet_libraries() -> None:
    """Let the libraries print errors only; this package reports everything else itself."""
    import diffusers
    import transformers

    warnings.simplefilter("ignore", FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main() -> NoReturn:
    """Handle commands one after the other until the channel closes."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    commands: Commands = SimpleQueue()
    threading.Thread(target=_read_commands, args=(take_input(), commands), daemon=True).start()
    lock = threading.Lock()

    def report(event: Event) -> None:
        with lock:
            events.write(event.to_line() + "\n")

    quiet_libraries()
    # The libraries' own objects exist to the end: collecting among them takes a second a component.
    gc.freeze()
    cache = ModelCache(report)
    while True:
        command, folder_lock = commands.get()
        report(_answer(command, folder_lock, cache, report))


def _answer(command: Command, folder_lock: int | None, cache: ModelCache, report: Report) -> Answer:
    """Handle a command; an error that is not known ends this process with its traceback."""
    try:
        try:
            _handle(command, cache, report)
        finally:
            if folder_lock is not None:
                os.close(folder_lock)  # before the answer: the folder is free then
    except LowmemError as error:
        return CommandFailed(type(error).__name__, str(error))
    except VramTaken as error:
        return MemoryRanOut(str(error), available_bytes=error.available_bytes)
    except SegmentsFail as error:
        return SegmentsRefused(str(error))
    except Exception as error:
        if not is_shortage(error):
            raise
        text = next(iter(str(error).splitlines()), type(error).__name__)
        return MemoryRanOut(text, RAM if is_of_host(error) else "")
    return CommandDone()


def _handle(command: Command, cache: ModelCache, report: Report) -> None:
    if command.directory:
        os.chdir(command.directory)
    cache.keeps, cache.alone = command.keeps, frozenset(command.alone)
    if command.folder:
        folder = RunFolder.open(Path(command.folder))
        _log_into(folder)
        work(folder, report, preview_every=command.preview_every, cache=cache)
        return
    for component, release in cache.empty():
        if not release.complete:
            report(Notice(left_behind(component, release), component))


def _log_into(folder: RunFolder) -> None:
    """From now on what the libraries print goes to this run's log."""
    with writing(folder.path), folder.log_file.open("ab") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(log.fileno(), 1)


def _read_commands(descriptor: int, commands: Commands) -> NoReturn:
    """Queue commands; the channel closes when the parent process ends, whatever ended it."""
    for command in read_commands(descriptor):
        commands.put(command)
    os._exit(LowmemError.exit_code)
