"""A worker process, from its start to its end, and what is known of it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lowmem_if import errors
from lowmem_if.cascade.strategies import STREAM
from lowmem_if.engine.commands import Command, CommandChannel
from lowmem_if.engine.events import Event, Report
from lowmem_if.engine.run_folder import RunFolder, writing
from lowmem_if.errors import DeviceError, NotFinite, WorkerDied
from lowmem_if.hardware.machine import Machine, probe, with_budget
from lowmem_if.planning.fallback import RAM, VRAM
from lowmem_if.system.exit_codes import ending
from lowmem_if.system.host import segments_expand
from lowmem_if.system.paths import quoted
from lowmem_if.weights.out_of_memory import find_wording, last_words

WORKER = ("-P", "-m", "lowmem_if.engine.worker")
"""Arguments of the interpreter; -P: the folder one stands in is no place to import from."""

_ANSWERS = {"done", "error", "out_of_memory", "segments_fail"}


class WorkerCrashed(Exception):
    """The worker ended with a traceback that is no known error."""


@dataclass(frozen=True, slots=True)
class LoadedComponent:
    """A component that stays loaded: how its weights live, and what they take where they are."""

    component: str
    strategy: str
    storage_dtype: str
    device: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Short:
    """Memory ran out.

    Attributes:
        component: in whose turn; empty: before any.
        resource, text: what ran out, and what was said of it.
        beside: components that stayed loaded beside it.
        is_new: whether the worker had done nothing before this run.
        available_bytes: of VRAM, where it was seen before loading that it would not do; else 0.
    """

    component: str
    resource: str
    text: str
    beside: tuple[str, ...]
    is_new: bool
    available_bytes: int = 0


class WorkerProcess:
    """At most one worker process, which never outlives this one; a context manager, or `end()` it.

    Attributes:
        warm: what stays loaded in it.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        """Begin without a worker.

        Args:
            keeps: whether components stay loaded from one run to the next.
        """
        self.warm: tuple[LoadedComponent, ...] = ()
        self._keeps = keeps
        self._alone: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._line: CommandChannel | None = None
        self._log = Path()
        self._log_start = 0  # where this worker's own words begin
        self._streams = False
        self._segments = True  # whether they may be set to expand
        self._measured: dict[str, Machine] = {}

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

    def measure(
        self, device: str, *, ram_bytes: int | None = None, vram_bytes: int | None = None
    ) -> Machine:
        """The machine as `probe()` found it without a worker, whose memory would count as taken."""
        if not self.is_open:
            self._measured.clear()
        if device not in self._measured:
            self.end()
            self._measured[device] = probe(device)
        return with_budget(self._measured[device], ram_bytes=ram_bytes, vram_bytes=vram_bytes)

    def work(
        self, folder: RunFolder, lock: int, *, report: Report, preview_every: int
    ) -> Short | None:
        """Let a worker do what is to be done in a locked run folder; None if all is done.

        Raises:
            LowmemError: the worker's own, or it died of something that is not memory.
            WorkerCrashed: of a bug.
        """
        is_new = self._make_ready(folder, report)
        order = Command(
            str(folder.path), _here(), preview_every, self._keeps, tuple(sorted(self._alone))
        )
        answer, component = self._ordered(order, report, lock)
        if answer.kind == "segments_fail":
            self._do_without_segments(folder, component, answer.text, report)
            return self.work(folder, lock, report=report, preview_every=preview_every)
        if answer.kind == "error":
            error = _error(answer)
            if isinstance(error, NotFinite):
                error.component = component
            raise error
        if answer.kind == "done":
            return None
        resource = _resource(folder, component, answer)
        beside = tuple(warm.component for warm in self.warm if warm.component != component)
        if beside and component:
            self._alone.add(component)
        self.end()
        return Short(component, resource, answer.text, beside, is_new, answer.total)

    def _do_without_segments(
        self, folder: RunFolder, component: str, text: str, report: Report
    ) -> None:
        """End the worker; the next one gets torch's allocator as it comes.

        Raises:
            DeviceError: it is the user's own setting that fails.
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
            report(Event("notice", component, text=notice))

    def release(self, report: Report) -> dict[str, dict[str, Any]]:
        """Let the worker go of all that stays loaded: of each component what is left of it."""
        proofs: dict[str, dict[str, Any]] = {}

        def note(event: Event) -> None:
            if event.kind == "evicted":
                proofs[event.component] = json.loads(event.text)
            report(event)

        if self.is_open:
            answer, _component = self._ordered(Command(), note)
            if answer.kind == "error":
                raise _error(answer)
            if answer.kind == "out_of_memory":
                self.end()  # which frees everything
        else:
            self.end()
        return proofs

    def end(self) -> None:
        """End the worker, and with it all that it holds."""
        process, line = self._process, self._line
        self._process = self._line = None
        self.warm = ()
        if process is not None:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if line is not None:
            line.close()

    def _make_ready(self, folder: RunFolder, report: Report) -> bool:
        """See to it that there is a worker for this plan; whether it is a new one."""
        streams = any(step.config.strategy == STREAM for step in folder.plan.steps)
        # Only a plan that streams needs its settings; to others they do no harm but for some time.
        if self.is_open and (self._streams or not streams):
            return False
        self.end()
        report(Event("starting"))
        self._streams, self._log = streams, folder.log_file
        self._start()
        return True

    def _start(self) -> None:
        with writing(self._log.parent):
            log = self._log.open("ab")
        with log:
            self._log_start = log.tell()
            self._line = CommandChannel()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *WORKER],
                    stdin=self._line.far_end,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    env=worker_environment(
                        os.environ, streams=self._streams, segments=self._segments
                    ),
                )
            finally:
                os.close(self._line.far_end)

    def _ordered(
        self, order: Command, report: Report, lock: int | None = None
    ) -> tuple[Event, str]:
        """(the answer to an order, the component whose turn it was); cut short, it ends the worker."""
        assert self._line is not None
        if order.folder:
            self._note_log(Path(order.folder) / self._log.name)
        component, answer = "", None
        try:
            self._line.give(order, lock)
            for event in self._events():
                if event.kind in _ANSWERS:
                    answer = event
                    break
                component = event.component if event.kind == "started" else component
                report(event)
            if answer is None:
                answer = self._silence(component)
        except BaseException:
            self.end()
            raise
        return answer, component

    def _note_log(self, log: Path) -> None:
        """From this order on the worker writes into another log, or goes on in the same."""
        if log != self._log:
            self._log, self._log_start = log, log.stat().st_size if log.exists() else 0

    def _said(self) -> str:
        """The end of what this worker has written into its log."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", errors="replace")[-8000:]

    def _events(self) -> Iterator[Event]:
        """What the worker says; what it says of its shelf is noted here."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = Event.from_line(line)
            if event.kind == "shelf":
                self.warm = tuple(LoadedComponent(**each) for each in json.loads(event.text))
            else:
                yield event

    def _silence(self, component: str) -> Event:
        """What it means that a worker ended without an answer."""
        assert self._process is not None
        end = ending(self._process.wait())
        if end is None:
            if said := last_words(self._said()):
                return Event("out_of_memory", text=said)
            raise WorkerCrashed(self._log.read_text(encoding="utf-8", errors="replace")[-8000:])
        if end.of_memory:
            return Event("out_of_memory", text=end.of_memory, name=RAM)
        if end.words == "SIGABRT" and (wording := find_wording(self._said())):
            # An exception that no code of ours could catch: thrown on a thread of a library.
            text = f"the worker was ended by SIGABRT after {wording.words!r}"
            return Event("out_of_memory", text=text, name=RAM if wording.host else "")
        why = " (a weight file became shorter while it was in use)" if end.of_lost_file else ""
        raise WorkerDied(
            f"the worker was ended by {end.words} in {component or 'its start'}{why}: "
            f"continue with `lowmem-if resume {quoted(self._log.parent)}`; "
            f"its {self._log.name} may say more"
        )


def _resource(folder: RunFolder, component: str, answer: Event) -> str:
    """Which memory ran out: RAM on a CPU and where only RAM can be meant, otherwise VRAM."""
    device = folder.plan.step(component).config.device if component else "cpu"
    return RAM if device == "cpu" or answer.name == RAM else VRAM


def worker_environment(
    outer: Mapping[str, str],
    *,
    streams: bool = False,
    segments: bool = True,
    root: Path = Path("/"),
) -> dict[str, str]:
    """The worker's environment: nothing goes to the network; the user's own settings win.

    Args:
        streams: whether memory is so short that weights stay in their files.
        segments: whether torch's segments may be set to expand, where they usually can.
        root: of the file system in which the drivers are looked for.
    """
    ours = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
        # The loaders' threads would each get a heap of their own, which glibc does not trim: 80 MB of
        # a 200 MB encoder stayed behind, with one heap 0.3 MB (docs/log.md).
        "MALLOC_ARENA_MAX": "1",
        # Two OpenMP threads of which one shares its core with another process: stage 1 of the demo took
        # 64 s, with less spinning 1.4 s; idle 0.7 and 0.8 s. (Linux wheels of torch carry libgomp.)
        "GOMP_SPINCOUNT": "1000",
        # Fresh memory in pages of 2 MB: reading weights into it was twice as fast (docs/log.md).
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    if streams:
        # A freed activation leaves the heap at once (250 MB of an upscaler's), for 6 % of the time.
        ours |= {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    older_name = "PYTORCH_CUDA_ALLOC_CONF"
    if segments and segments_expand(root) and older_name not in outer:
        ours["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if sys.platform == "darwin":
        # What Metal has no kernel for is computed on the CPU, instead of ending the run.
        ours["PYTORCH_ENABLE_MPS_FALLBACK"] = "1"
    return ours | dict(outer) | {"HF_HUB_OFFLINE": "1"}


def _error(event: Event) -> errors.LowmemError:
    """The worker's error as this process's own."""
    cls = getattr(errors, event.name, errors.LowmemError)
    error: errors.LowmemError = cls.__new__(cls)
    Exception.__init__(error, event.text)
    return error


def _here() -> str:
    """Where relative paths begin, for a worker that began elsewhere; empty if that place is gone."""
    with suppress(OSError):
        return str(Path.cwd())
    return ""
