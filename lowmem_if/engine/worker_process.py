"""A worker process from its start to its end, and what the process that owns it knows of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lowmem_if.cascade.strategies import STREAM
from lowmem_if.engine.events import Event, Evicted, Notice, Report, StepStarted, WorkerStarting
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.writing import writing
from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.engine.worker_answers import (
    Answer,
    CacheState,
    CommandDone,
    CommandFailed,
    LoadedComponent,
    MemoryRanOut,
    MemoryShortage,
    SegmentsRefused,
    read_event,
    reader,
)
from lowmem_if.engine.worker_commands import Command, CommandChannel
from lowmem_if.errors import DeviceError, NotFinite, WorkerDied
from lowmem_if.planning.fallback import RAM, VRAM
from lowmem_if.system.exit_codes import ending
from lowmem_if.system.paths import quoted
from lowmem_if.weights.out_of_memory import find_wording, last_words

WORKER = ("-P", "-m", "lowmem_if.engine.worker")
"""Arguments of the interpreter; -P: nothing is imported from the current folder."""


class WorkerCrashed(Exception):
    """The worker ended with a traceback that is no known error."""


class WorkerProcess:
    """At most one worker process, which never outlives this one; a context manager, or `end()` it.

    Attributes:
        loaded: the components that are loaded in it.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        """Begin without a worker.

        Args:
            keeps: whether components remain loaded from one step to the next.
        """
        self.loaded: tuple[LoadedComponent, ...] = ()
        self._keeps = keeps
        self._alone: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._channel: CommandChannel | None = None
        self._log = Path()
        self._log_start = 0  # where this worker's own output begins
        self._streams = False
        self._segments = True  # whether expandable segments may be used

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def is_open(self) -> bool:
        """Whether there is a worker, alive."""
        return self._process is not None and self._process.poll() is None

    def work(
        self, folder: RunFolder, lock: int, *, report: Report, preview_every: int
    ) -> MemoryShortage | None:
        """Let a worker do the remaining steps of a locked run folder; None if all is done.

        Raises:
            LowmemError: the worker's own, or the worker died of something other than memory.
            WorkerCrashed: a bug.
        """
        is_new = self._ensure_started(folder, report)
        command = Command(
            str(folder.path), _current_folder(), preview_every, self._keeps,
            tuple(sorted(self._alone)),
        )  # fmt: skip
        answer, component = self._send(command, report, lock)
        match answer:
            case CommandDone():
                return None
            case SegmentsRefused():
                self._give_up_segments(folder, component, answer.text, report)
                return self.work(folder, lock, report=report, preview_every=preview_every)
            case CommandFailed():
                error = answer.to_error()
                if isinstance(error, NotFinite):
                    error.component = component
                raise error
            case MemoryRanOut():
                return self._shortage(folder, component, answer, is_new=is_new)

    def _shortage(
        self, folder: RunFolder, component: str, answer: MemoryRanOut, *, is_new: bool
    ) -> MemoryShortage:
        """What ran out, and next to what; the worker ends, which frees everything."""
        others = tuple(one.component for one in self.loaded if one.component != component)
        if others and component:
            self._alone.add(component)
        self.end()
        return MemoryShortage(
            component, _resource(folder, component, answer), answer.text, others, is_new,
            answer.available_bytes,
        )  # fmt: skip

    def _give_up_segments(
        self, folder: RunFolder, component: str, text: str, report: Report
    ) -> None:
        """End the worker; the next one uses torch's allocator with its own settings.

        Raises:
            DeviceError: the user's own setting asks for expandable segments.
        """
        self.end()
        if not self._segments or "PYTORCH_ALLOC_CONF" in os.environ:
            raise DeviceError(
                f"the driver refuses torch's expandable segments ({text}): take them out of "
                "PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF"
            )
        self._segments = False
        notice = f"this driver refuses torch's expandable segments ({text}): they are not used"
        if folder.note(notice):
            report(Notice(notice, component))

    def release(self, report: Report) -> dict[str, dict[str, Any]]:
        """Unload all components; component -> the proof that it was freed."""
        proofs: dict[str, dict[str, Any]] = {}

        def note(event: Event) -> None:
            if isinstance(event, Evicted):
                proofs[event.component] = event.proof.to_json()
            report(event)

        if self.is_open:
            answer, _component = self._send(Command(), note)
            if isinstance(answer, CommandFailed):
                raise answer.to_error()
            if isinstance(answer, MemoryRanOut):
                self.end()  # which frees everything
        else:
            self.end()
        return proofs

    def end(self) -> None:
        """End the worker, which frees all its memory."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        self.loaded = ()
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if channel is not None:
            channel.close()

    def _ensure_started(self, folder: RunFolder, report: Report) -> bool:
        """Start a worker for this plan unless one runs that will do; whether it is a new one."""
        streams = any(step.config.strategy == STREAM for step in folder.plan.steps)
        # Only a plan that streams needs its settings; other plans lose nothing but some time by them.
        if self.is_open and (self._streams or not streams):
            return False
        self.end()
        report(WorkerStarting())
        self._streams, self._log = streams, folder.log_file
        self._start()
        return True

    def _start(self) -> None:
        with writing(self._log.parent):
            log = self._log.open("ab")
        with log:
            self._log_start = log.tell()
            self._channel = CommandChannel()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *WORKER],
                    stdin=self._channel.far_end,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    env=worker_environment(
                        os.environ, streams=self._streams, segments=self._segments
                    ),
                )
            finally:
                os.close(self._channel.far_end)
        reader()  # made while the worker imports its libraries

    def _send(
        self, command: Command, report: Report, lock: int | None = None
    ) -> tuple[Answer, str]:
        """(the answer, the component whose step it was); an interruption ends the worker."""
        assert self._channel is not None
        if command.folder:
            self._follow_log(Path(command.folder) / self._log.name)
        component, answer = "", None
        with ExitStack() as undo:
            undo.callback(self.end)
            self._channel.send(command, lock)
            for event in self._events():
                if isinstance(event, Answer):
                    answer = event
                    break
                component = event.component if isinstance(event, StepStarted) else component
                report(event)
            if answer is None:
                answer = self._explain_exit(component)
            undo.pop_all()
        return answer, component

    def _follow_log(self, log: Path) -> None:
        """From this command on the worker writes into another log, or still into the same."""
        if log != self._log:
            self._log, self._log_start = log, log.stat().st_size if log.exists() else 0

    def _log_end(self) -> str:
        """The end of what this worker has written into its log."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", errors="replace")[-8000:]

    def _events(self) -> Iterator[Event]:
        """The worker's events; the state of its cache is noted here."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = read_event(line)
            if isinstance(event, CacheState):
                self.loaded = event.loaded
            else:
                yield event

    def _explain_exit(self, component: str) -> MemoryRanOut:
        """Why a worker ended without an answer, if memory was the reason.

        Raises:
            WorkerCrashed: by a traceback that is no known error.
            WorkerDied: by something else.
        """
        assert self._process is not None
        end = ending(self._process.wait())
        if end is None:
            if words := last_words(self._log_end()):
                return MemoryRanOut(words)
            raise WorkerCrashed(self._log.read_text(encoding="utf-8", errors="replace")[-8000:])
        if end.of_memory:
            return MemoryRanOut(end.of_memory, RAM)
        if end.words == "SIGABRT" and (wording := find_wording(self._log_end())):
            # An exception that no code of ours could catch: thrown on a thread of a library.
            text = f"the worker was ended by SIGABRT after {wording.words!r}"
            return MemoryRanOut(text, RAM if wording.host else "")
        why = " (a weight file became shorter while it was in use)" if end.of_lost_file else ""
        raise WorkerDied(
            f"the worker was ended by {end.words} in {component or 'its start'}{why}: "
            f"continue with `lowmem-if resume {quoted(self._log.parent)}`; "
            f"its {self._log.name} may say more"
        )


def _resource(folder: RunFolder, component: str, answer: MemoryRanOut) -> str:
    """Which memory ran out: RAM on a CPU and where only RAM can be meant, otherwise VRAM."""
    device = folder.plan.step(component).config.device if component else "cpu"
    return RAM if device == "cpu" or answer.resource == RAM else VRAM


def _current_folder() -> str:
    """The folder that relative paths begin in; empty if it does not exist any more."""
    with suppress(OSError):
        return str(Path.cwd())
    return ""
