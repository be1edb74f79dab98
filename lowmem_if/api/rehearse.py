"""Run a few denoising steps of every component under the real plan, and predict the real run from them.

The weights are made up and have the sizes of the published ones, so a rehearsal needs no licence and no
download. Its memory peaks are those of whole pictures. Its seconds per step become constants of the
machine for every later plan.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.strategies import RESIDENT, STREAM, Pin
from lowmem_if.engine.announcements.planned_event import RunPlanned
from lowmem_if.engine.events import Event, Loading, Report, ignore
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.session import Session
from lowmem_if.errors import CascadeError
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.speeds import ACCELERATOR, CPU, Speeds, Throughput
from lowmem_if.hardware.weights_disk import scratch_folder
from lowmem_if.planning.estimates.flops import pass_flops
from lowmem_if.planning.estimates.memory_layout import time_share
from lowmem_if.planning.estimates.runtime import cast_bytes_per_s
from lowmem_if.planning.estimates.weight_bytes import bytes_a_pass
from lowmem_if.planning.estimates.workload import Workload
from lowmem_if.planning.plan import Plan, Step, make_plan
from lowmem_if.planning.plan_json import flat_step
from lowmem_if.request.request import Request
from lowmem_if.weights.synthetic.checkpoints import NOISE, synthesize

STEPS = 3
"""Denoising steps of each stage: the first includes what is done once, the others are measured."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One component: its step of the plan, the peaks that were measured, and its times.

    Attributes:
        vram_bytes, ram_bytes: peaks, as high as the real run's.
        load_s: time until the weights were loaded.
        step_s: time of one denoising step, or of one text; None where nothing was timed.
        picture_s: time from the last step until a picture was on disk; the upscaler decodes in it.
        turn_s: time of the whole step of the plan.
        reserved_bytes: peak of the memory that torch held from the driver.
        used_bytes: peak of the memory that all processes held on the accelerator.
    """

    step: Step
    vram_bytes: int
    ram_bytes: int
    load_s: float
    step_s: float | None
    picture_s: float | None
    turn_s: float = 0.0
    reserved_bytes: int = 0
    used_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The component as plain JSON data."""
        data = asdict(self)
        return data | {"step": flat_step(data["step"])}


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What was measured, and the plan for the real run by these measurements."""

    plan: Plan
    components: tuple[Rehearsed, ...]

    def to_json(self) -> dict[str, Any]:
        """Plan and figures as plain JSON data."""
        plan = {name: value for name, value in self.plan.to_json().items() if name != "fits"}
        return {"plan": plan, "components": [each.to_json() for each in self.components]}

    @property
    def ram_bytes(self) -> int:
        return max(each.ram_bytes for each in self.components)

    @property
    def vram_bytes(self) -> int:
        return max(each.vram_bytes for each in self.components)


def rehearse(
    request: Request,
    machine: Machine,
    *,
    prefer: str | None = None,
    pins: Mapping[str, Pin] | None = None,
    folder: Path | None = None,
    steps: int = STEPS,
    report: Report = ignore,
) -> Rehearsal:
    """Rehearse a request; its prompts do not matter.

    Args:
        folder: where the made-up weights are kept for the next time; None: a temporary folder.
        steps: denoising steps of each stage.

    Raises:
        LowmemError: no plan fits, the disk is too small, or a component cannot be run.
    """
    plan = make_plan(machine, request, prefer=prefer, pins=pins)
    _check_parts(request)
    with _weights(request, folder, report) as weights, _scratch() as scratch:
        short = _shortened(plan, weights, steps)
        clock = _Clock(report)
        with Session(keep_loaded=False) as session:
            run = RunFolder.open(session.run(short, scratch / "run", report=clock).folder)
        parts = run.plan.request.locate().cascade.parts
        done = tuple(_rehearsed(step, run, clock) for step in run.plan.steps)
    speeds = machine.speeds
    paces = tuple(
        pace for each in done for pace in _paces(each, parts[each.step.component], speeds)
    )
    rates = speeds.with_paces(paces, _origin(speeds))
    calibrated = replace(machine, rates=rates)
    return Rehearsal(make_plan(calibrated, request, prefer=prefer, pins=pins), done)


def _origin(speeds: Speeds) -> str:
    """The origin of the constants now; a rehearsal does not measure disk and bus."""
    rest = speeds.origin.partition("; disk and bus ")[2] or speeds.origin
    return f"rehearsed here on {time.strftime('%Y-%m-%d')}; disk and bus {rest}"


@contextmanager
def _weights(request: Request, folder: Path | None, report: Report) -> Iterator[str]:
    """A cascade on this disk: the requested one if it is local, else made-up weights of its sizes."""
    if request.cascade not in catalog.ON_HUB:
        yield request.cascade
        return
    if folder is not None:
        _synthesize(request, folder, report)
        yield str(folder.resolve())
        return
    with _scratch() as temporary:
        _synthesize(request, temporary / "weights", report)
        yield str(temporary / "weights")


def _check_parts(request: Request) -> None:
    """Raise `CascadeError` for a part of the user's own that is not on this disk."""
    location = request.locate()
    for own in request.weights.parts:
        if own.component in request.components and location.place(own.component) is None:
            raise CascadeError(
                f"--part {own} is not on this disk, and a rehearsal needs its weights: "
                f"`lowmem-if fetch {request.weights.options}`, or leave it out"
            )


def _synthesize(request: Request, folder: Path, report: Report) -> None:
    def forward(_file: str, done: int, total: int) -> None:
        report(Loading("weights to rehearse with", done, total))

    synthesize(request.cascade, folder, fill=NOISE, components=request.components, report=forward)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder on the disk of the weights, or where temporary files are kept."""
    try:
        temporary = scratch_folder()
    except OSError as error:
        raise CascadeError(
            "no folder for made-up weights can be written: give one with --folder"
        ) from error
    with temporary as folder:
        yield Path(folder)


def _shortened(plan: Plan, cascade: str, steps: int) -> Plan:
    """The same plan with a few steps of one picture, whose text no cache can hold."""
    text = f"a rehearsal, {secrets.token_hex(4)}"
    first = replace(plan.request.images[0], prompt=text, seed=1)
    sampling = replace(
        plan.request.sampling, steps=(steps,) * len(catalog.IMAGE_STAGES), timesteps=None
    )
    request = replace(plan.request.alone(first).with_cascade(cascade), sampling=sampling)
    short = tuple(
        replace(
            step,
            samplings={
                mode: replace(sampling, steps=steps, timesteps=None)
                for mode, sampling in step.samplings.items()
            },
        )
        for step in plan.steps
    )
    return replace(plan, request=request, steps=short, download_bytes=0)


class _Clock:
    """Notes the time of each event, and passes it on."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._events: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        self._events.append((time.monotonic(), event))
        if not isinstance(event, RunPlanned):  # its few steps in a scratch folder concern nobody
            self._report(event)

    def times(self, component: str, kind: str) -> list[float]:
        """The times of a component's events of one kind; for loading, only the ends."""
        return [
            when
            for when, event in self._events
            if (event.component, event.kind) == (component, kind)
            and (kind != "loading" or event.done == event.total)
        ]


def _rehearsed(step: Step, run: RunFolder, clock: _Clock) -> Rehearsed:
    name, measured = step.component, run.measured(step.component)
    assert measured is not None
    started, loaded = clock.times(name, "started")[-1], clock.times(name, "loading")
    drawn, saved = clock.times(name, "drawing"), clock.times(name, "saved")
    begun = loaded[-1] if loaded else started
    gaps = [later - earlier for earlier, later in pairwise(drawn)]
    picture = saved[-1] - (drawn[-1] if drawn else begun) if saved else None
    return Rehearsed(
        step, measured.vram_bytes, measured.ram_bytes, begun - started,
        median(gaps) if gaps else None, picture, measured.seconds,
        *(_peak(run, name, kind) for kind in ("vram_reserved", "vram_used")),
    )  # fmt: skip


def _peak(run: RunFolder, component: str, kind: str) -> int:
    """The highest sample of one kind of memory during a component's step."""
    samples = map(json.loads, run.memory_file.read_text(encoding="utf-8").splitlines())
    return max((int(s[kind]) for s in samples if s["step"] == component), default=0)


def _paces(each: Rehearsed, part: Part, rates: Speeds) -> Iterator[Throughput]:
    """The throughput that a component's times show; nothing where moving weights hides it."""
    config = each.step.config
    place = CPU if config.device == "cpu" else ACCELERATOR
    large = part.largest
    vae = next((module for module in part.modules if module.is_vae), None)
    if each.step_s and not config.facts.postprocesses:
        flops = pass_flops(config.component, large) * Workload(1, 1, each.step.sampling).guided
        # A pace is that of contiguous tensors.
        flops *= time_share(config.component, config.layout, config.compute_dtype)
        computing = each.step_s
        if config.strategy == STREAM and place == CPU:
            computing -= bytes_a_pass(part, config) / cast_bytes_per_s(large, config, rates)
        one_by_one = not config.facts.encodes or config.strategy == RESIDENT
        hidden = config.strategy != RESIDENT and place == ACCELERATOR
        if one_by_one and not hidden and computing > 0 and not config.quantises_unet:
            yield Throughput(place, config.compute_dtype, config.component, flops / computing)
    if vae and each.picture_s:
        flops = pass_flops(config.component, vae)
        yield Throughput(place, "float32", "vae", flops / each.picture_s)
