"""Several calls with one worker, in which stays loaded what the memory allows."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from lowmem_if.api import batch, generate
from lowmem_if.api.batch import BatchResult
from lowmem_if.cascade.strategies import EXACT
from lowmem_if.engine import runner
from lowmem_if.engine.events import Report, ignore
from lowmem_if.engine.runner import RunResult
from lowmem_if.engine.worker_process import LoadedComponent, WorkerProcess
from lowmem_if.errors import SessionError
from lowmem_if.planning.plan import Plan


class Session:
    """Draw again and again without loading again: a context manager, or `close()` it.

    Its methods are the functions of the same names, with their arguments, results, errors and pictures;
    what a call does not say itself is as the session was begun with. The worker starts with the first
    call, and the machine is measured before it, again whenever there is no worker. A component stays
    loaded until a step needs its room: every step has the strategy that its plan, made for the whole
    budget, gives it, and what its predicted peak leaves over is kept. One that ran out of memory beside
    others has nothing beside it from then on.

    A call that is interrupted or fails unexpectedly ends the worker; the next one starts another.
    """

    def __init__(
        self,
        *,
        cascade: str | Path | None = None,
        profile: str | None = None,
        device: str = "auto",
        ram: str | None = None,
        vram: str | None = None,
        pins: Mapping[str, str] | None = None,
        prefer: str = EXACT,
        report: Report = ignore,
        preview_every: int = 0,
    ) -> None:
        """Begin a session; nothing is measured or loaded yet.

        Args:
            cascade: as in `Request`; None: its default.
            profile, device, ram, vram, pins, prefer, report, preview_every: see `generate`.
        """
        self._workshop = WorkerProcess(keeps=True)
        self._shown: dict[str, Any] = {"report": report, "preview_every": preview_every}
        self._machine = {"profile": profile, "device": device, "ram": ram, "vram": vram}
        self._asked: dict[str, Any] = {"pins": pins, "prefer": prefer}
        if cascade is not None:
            self._asked["cascade"] = cascade
        self._busy = threading.Lock()
        # A notebook that begins another session in place of this one must not have two workers.
        self._ending = weakref.finalize(self, self._workshop.end)

    def generate(self, prompts: str | Sequence[str], **options: Any) -> RunResult:
        """As `lowmem_if.generate`."""
        with self._call(self._machine, self._asked, options) as given:
            return generate.generate(prompts, **given)

    def vary(
        self, image: str | Path, prompts: str | Sequence[str] = "", **options: Any
    ) -> RunResult:
        """As `lowmem_if.vary`."""
        with self._call(self._machine, self._asked, options) as given:
            return generate.vary(image, prompts, **given)

    def inpaint(
        self, image: str | Path, mask: str | Path, prompts: str | Sequence[str], **options: Any
    ) -> RunResult:
        """As `lowmem_if.inpaint`."""
        with self._call(self._machine, self._asked, options) as given:
            return generate.inpaint(image, mask, prompts, **given)

    def upscale(
        self, image: str | Path, prompts: str | Sequence[str] = "", **options: Any
    ) -> RunResult:
        """As `lowmem_if.upscale`."""
        with self._call(self._machine, self._asked, options) as given:
            return generate.upscale(image, prompts, **given)

    def batch(
        self, source: str | Path | Iterable[str | Mapping[str, Any]], **options: Any
    ) -> BatchResult:
        """As `lowmem_if.batch`."""
        with self._call(self._machine, self._asked, options) as given:
            return batch.batch(source, **given)

    def enlarge(self, source: str | Path, numbers: Sequence[int], **options: Any) -> RunResult:
        """As `lowmem_if.enlarge`."""
        with self._call(self._machine, options) as given:
            return batch.enlarge(source, numbers, **given)

    def run(self, plan: Plan, out: str | Path, **options: Any) -> RunResult:
        """As `lowmem_if.run`: the plan's machine is the budget."""
        with self._call(options) as given:
            return runner.run(plan, out, **given)

    def resume(self, out: str | Path, **options: Any) -> RunResult:
        """As `lowmem_if.resume`: the machine that the run was begun for is the budget."""
        with self._call(options) as given:
            return runner.resume(out, **given)

    @property
    def warm(self) -> tuple[LoadedComponent, ...]:
        """What is loaded now: each component, how its weights live, and how many bytes they take."""
        return self._workshop.warm if self._workshop.is_open else ()

    def release(self) -> dict[str, dict[str, Any]]:
        """Let go of all that is loaded; the worker stays, and with it the imported libraries.

        Returns:
            Of each component the proof that it is gone: `alive` (classes of which something still is),
            `ram_left_bytes`, `vram_left_bytes`, `allowed_bytes`. What is left beyond that is a `notice`.
        """
        with self._call({}) as given:
            return self._workshop.release(given["report"])

    def close(self) -> None:
        """End the worker, which frees everything; the session cannot be used any more."""
        with self._alone():
            self._ending()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _call(self, *options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The arguments of a call, later options before earlier ones, while it lasts."""
        with self._alone():
            self._check_open()
            given = dict(self._shown)
            for each in options:
                given |= each
            yield given | {"workshop": self._workshop}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise SessionError("the session is busy with another call: wait for it to end")
        try:
            yield
        finally:
            self._busy.release()

    def _check_open(self) -> None:
        if not self._ending.alive:
            raise SessionError("the session is closed: begin another one")
