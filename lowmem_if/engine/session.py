"""The engine: measures the machine, plans, opens run folders, and owns the worker that draws."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from lowmem_if.cascade.modes import INPAINT, UPSCALE, VARY
from lowmem_if.engine.announcements.request_notices import budget_notices, request_notices
from lowmem_if.engine.announcements.run_summary import announce
from lowmem_if.engine.batch_source import Source, batch_request
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.events import Notice, RunOpened, ignore
from lowmem_if.engine.options import (
    DrawOptions,
    EnlargeOptions,
    GenerateOptions,
    InpaintOptions,
    MachineOptions,
    PlanOptions,
    RequestOptions,
    ResumeOptions,
    RunOptions,
    SessionOptions,
    check_options,
    checked_pins,
    part_of,
)
from lowmem_if.engine.results import BatchResult, RunResult
from lowmem_if.engine.run_folder import out_folder
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.runner import continue_run
from lowmem_if.engine.worker_answers import LoadedComponent
from lowmem_if.engine.worker_process import WorkerProcess
from lowmem_if.errors import SessionError
from lowmem_if.hardware.machine import Machine, with_budget
from lowmem_if.hardware.profiles import choose_machine, load_profile
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.pictures.picture_objects import PictureLike
from lowmem_if.request.request import Request
from lowmem_if.request.seeds import is_drawn
from lowmem_if.units import parse_bytes


class Session:
    """Draws again and again with one worker: a context manager, or `close()` it.

    The package's functions of the same names are its methods, called once in a session of their own.
    A call uses the session's options unless it gives its own. The worker starts with the first call;
    the machine is measured before that, and again whenever there is no worker. A component remains
    loaded until a step needs its memory. Every step keeps the strategy of its plan, which is made for
    the whole budget; only what the step's predicted peak leaves free holds other components. A
    component that ran out of memory next to others runs alone from then on.

    A call that is interrupted or fails unexpectedly ends the worker; the next call starts another.
    """

    def __init__(self, **options: Unpack[SessionOptions]) -> None:
        """Begin a session; nothing is measured or loaded yet.

        Args:
            options: see `SessionOptions`.

        Raises:
            RequestError: an unknown option.
        """
        check_options("Session", options, SessionOptions)
        self._options: dict[str, Any] = {"prefer": None, "report": ignore, "preview_every": 0}
        self._options |= part_of(options, GenerateOptions)
        if self._options.get("cascade") is None:
            self._options.pop("cascade", None)
        self._make_plan = options.get("planner") or make_plan
        self._worker = WorkerProcess(keeps=options.get("keep_loaded", True))
        self._measured: dict[str, Machine] = {}
        self._busy = threading.Lock()
        # A notebook that begins another session in place of this one must not have two workers.
        self._ending = weakref.finalize(self, self._worker.end)

    def generate(
        self, prompts: str | Sequence[str], **options: Unpack[GenerateOptions]
    ) -> RunResult:
        """Draw pictures from text; see `lowmem_if.generate`."""
        with self._call("generate", options, GenerateOptions) as given:
            return self._draw(make_request(prompts, **_request_options(given)), given)

    def vary(
        self, image: PictureLike, prompts: str | Sequence[str] = "", **options: Unpack[DrawOptions]
    ) -> RunResult:
        """Draw a picture again; see `lowmem_if.vary`."""
        with self._call("vary", options, DrawOptions) as given:
            given |= {"mode": VARY, "image": image}
            return self._draw(make_request(prompts, **_request_options(given)), given)

    def inpaint(
        self,
        image: PictureLike,
        mask: PictureLike,
        prompts: str | Sequence[str],
        **options: Unpack[InpaintOptions],
    ) -> RunResult:
        """Draw a part of a picture again; see `lowmem_if.inpaint`."""
        with self._call("inpaint", options, InpaintOptions) as given:
            given |= {"mode": INPAINT, "image": image, "mask": mask}
            return self._draw(make_request(prompts, **_request_options(given)), given)

    def upscale(
        self, image: PictureLike, prompts: str | Sequence[str] = "", **options: Unpack[DrawOptions]
    ) -> RunResult:
        """Enlarge a picture; see `lowmem_if.upscale`."""
        with self._call("upscale", options, DrawOptions) as given:
            given |= {"mode": UPSCALE, "image": image}
            return self._draw(make_request(prompts, **_request_options(given)), given)

    def batch(self, source: Source, **options: Unpack[GenerateOptions]) -> BatchResult:
        """Draw the pictures of many rows in one run; see `lowmem_if.batch`."""
        with self._call("batch", options, GenerateOptions) as given:
            values = _request_options(given)
            request, bad_lines = batch_request(source, values, given["report"])
            return BatchResult(self._draw(request, given), bad_lines)

    def enlarge(
        self, source: str | Path, numbers: Sequence[int], **options: Unpack[EnlargeOptions]
    ) -> RunResult:
        """Enlarge chosen pictures of a finished run; see `lowmem_if.enlarge`."""
        with self._call("enlarge", options, EnlargeOptions) as given:
            folder = RunFolder.open(out_folder.run_path(source))
            machine, out = self._machine(given), given.get("out")
            path = None if out is None else out_folder.run_path(out)
            folder = continued(
                folder, numbers, given.get("size", 1024), machine, path,
                other_versions=given.get("other_versions", False), report=given["report"],
            )  # fmt: skip
            self._report_unused(machine, given)
            return self._continue(folder, given)

    def run(self, plan: Plan, out: str | Path, **options: Unpack[RunOptions]) -> RunResult:
        """Run a plan, whose machine is the budget; see `lowmem_if.run`."""
        with self._call("run", options, RunOptions) as given:
            return self._continue(self._begin(plan, out_folder.run_path(out), given), given)

    def resume(self, out: str | Path, **options: Unpack[ResumeOptions]) -> RunResult:
        """Resume a run within the budget that it was begun for; see `lowmem_if.resume`."""
        with self._call("resume", options, ResumeOptions) as given:
            folder = RunFolder.open(out_folder.run_path(out))
            announce(folder.plan, folder.path, given["report"])
            return self._continue(folder, given)

    def measure(self, **options: Unpack[MachineOptions]) -> Machine:
        """The machine to plan for: as measured without a worker or from a profile, within the budgets.

        Raises:
            ProfileError, DeviceError, RequestError: no such profile or device, or not a size.
        """
        with self._call("measure", options, MachineOptions) as given:
            return self._machine(given)

    def plan(
        self, request: Request, machine: Machine | None = None, **options: Unpack[PlanOptions]
    ) -> Plan:
        """How a request would run; nothing is run.

        Args:
            machine: as `measure` returned it; None: it is measured now.

        Raises:
            DoesNotFit: nothing fits the budgets.
            LowmemError: as `measure`, or weights that cannot be used.
        """
        with self._call("plan", options, PlanOptions) as given:
            return self._plan(request, machine or self._machine(given), given)

    @property
    def loaded(self) -> tuple[LoadedComponent, ...]:
        """The components that are loaded now."""
        return self._worker.loaded if self._worker.is_open else ()

    @property
    def warm(self) -> tuple[LoadedComponent, ...]:
        """The name that `loaded` had in version 0.1."""
        return self.loaded

    def release(self) -> dict[str, dict[str, Any]]:
        """Unload all components; the worker and its imported libraries remain.

        Returns:
            component -> the proof that it has been freed: `alive` (classes that still have instances),
            `ram_left_bytes`, `vram_left_bytes`, `allowed_bytes`. More than allowed is a `notice`.
        """
        with self._call("release", {}, RunOptions) as given:
            return self._worker.release(given["report"])

    def close(self) -> None:
        """End the worker, which frees everything; the session cannot be used any more."""
        with self._alone():
            self._ending()

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _draw(self, request: Request, given: Mapping[str, Any]) -> RunResult:
        """From a request to its pictures."""
        for text in request_notices(request):
            given["report"](Notice(text))
        path = out_folder.folder_for(request, given.get("out"))
        if is_drawn(given.get("seed")):
            request = out_folder.with_begun_seeds(path, request)
        folder = self._begin(self._plan(request, self._machine(given), given), path, given)
        given["report"](RunOpened(str(path)))
        return self._continue(folder, given)

    def _begin(self, plan: Plan, path: Path, given: Mapping[str, Any]) -> RunFolder:
        announce(plan, path, given["report"])
        folder = RunFolder.for_plan(path, plan)
        self._report_unused(plan.machine, given)
        if folder.plan.loosened:
            given["report"](Notice(folder.plan.loosened))
        return folder

    def _report_unused(self, machine: Machine, given: Mapping[str, Any]) -> None:
        """Report each card that torch cannot use: the plan would be another one with it."""
        for card in machine.unused:
            given["report"](Notice(card))

    def _continue(self, folder: RunFolder, given: Mapping[str, Any]) -> RunResult:
        result = continue_run(
            folder, self._worker, report=given["report"], preview_every=given["preview_every"],
            other_versions=given.get("other_versions", False),
        )  # fmt: skip
        return replace(result, images=out_folder.place_pictures(folder.path, result.images))

    def _plan(self, request: Request, machine: Machine, given: Mapping[str, Any]) -> Plan:
        profile = given.get("profile")
        pins = load_profile(profile).pins if profile is not None else {}
        return self._make_plan(
            machine, request, prefer=given["prefer"], pins=pins | checked_pins(given.get("pins"))
        )

    def _machine(self, given: Mapping[str, Any]) -> Machine:
        """The machine as it was before the worker took memory, which would count as taken."""
        profile, device = given.get("profile"), given.get("device", "auto")
        ram, vram = given.get("ram"), given.get("vram")
        for text in budget_notices(given):
            given["report"](Notice(text))
        if profile is not None:
            return choose_machine(profile, device=device, ram=ram, vram=vram)[0]
        budgets = {
            "ram_bytes": None if ram is None else parse_bytes(str(ram)),
            "vram_bytes": None if vram is None else parse_bytes(str(vram)),
        }
        if not self._worker.is_open:
            self._measured.clear()
        if device not in self._measured:
            self._worker.end()
            self._measured[device] = choose_machine(device=device)[0]
        return with_budget(self._measured[device], **budgets)

    @contextmanager
    def _call(
        self, function: str, options: Mapping[str, Any], known: type[Any]
    ) -> Iterator[dict[str, Any]]:
        """The options of a call, over those of the session, while no other call can begin."""
        check_options(function, options, known)
        with self._alone():
            self._check_open()
            yield {**self._options, **options}

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


def _request_options(given: Mapping[str, Any]) -> RequestOptions:
    return part_of(given, RequestOptions)  # type: ignore[return-value]  # the keys are checked
