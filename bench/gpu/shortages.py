"""Out of memory on purpose: what the libraries say, and how a run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from bench.gpu.ballast import holding
from bench.gpu.provoke import KINDS, ON_CPU
from bench.gpu.rows import SECONDS, Row, figure, first_line, row
from bench.gpu.setup import ROOT, Setup, fresh_folder, real_cascade
from lowmem_if.api.run import run
from lowmem_if.cascade.catalog import STAGE_1, UPSCALER
from lowmem_if.cascade.strategies import BALANCED, parse_pins
from lowmem_if.engine.events import Event
from lowmem_if.engine.results import RunResult
from lowmem_if.errors import LowmemError
from lowmem_if.hardware.machine import probe
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.request.request import Request
from lowmem_if.weights.out_of_memory import last_words

MISSING_BYTES = 0.75e9
_SECONDS = 20
_ON_HOST = {"pinned memory"}


def rows(setup: Setup) -> Iterator[Row]:
    """Each library's words; then two runs that lack 0.75 GB, in stage 1 and in the upscaler."""
    for kind in KINDS if setup.on_card else ON_CPU:
        yield _provoked(setup, kind)
    cascade = str(real_cascade(setup))
    text_encoder = "text_encoder=stream" + (":float16" if setup.on_card else "")
    request = make_request(("a fox",), cascade=cascade, seed=(1,), size=64, steps=(2,))
    yield _run(setup, _Short("stage 1", request, STAGE_1, (text_encoder,)))
    picture = setup.out / "picture.png"
    side = 96 if setup.quick else 256  # above 64 pixels the upscaler works alone
    Image.new("RGB", (side, side), "red").save(picture)
    request = make_request(
        ("a fox",), cascade=cascade, seed=(1,), steps=(2,), mode="upscale", image=picture
    )
    yield _run(setup, _Short("upscaler", request, UPSCALER))


def _provoked(setup: Setup, kind: str) -> Row:
    """What comes out of one kind of shortage in a process of its own, and whether we know it."""
    command = [sys.executable, "-m", "bench.gpu.provoke", kind, setup.device]
    name = f"no room: {kind}"
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return row(name, ok=False, text=f"hung for {_SECONDS} s")
    sys.stdout.write(done.stderr)  # into the part's log
    if done.returncode:
        said = last_words(done.stderr)
        end = f"ended with code {done.returncode}"
        return row(name, ok=bool(said), text=f"{end}: {said or done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["raised"]:
        return row(name, ok=None, text="nothing failed: the library had its memory before")
    on_host = not setup.on_card or kind in _ON_HOST
    right = found["shortage"] and (kind in _ON_HOST or found["host"] == on_host)
    return row(name, ok=right, text=found["raised"])


@dataclass(frozen=True, slots=True)
class _Short:
    """A run that is to lack memory in one component."""

    name: str
    request: Request
    component: str
    pins: tuple[str, ...] = ()


def _run(setup: Setup, short: _Short) -> Row:
    """Plan with all memory, then run with less; on a CPU nothing is missing."""
    machine = probe(setup.device, ram_bytes=setup.ram_bytes)
    plan = make_plan(machine, short.request, prefer=BALANCED, pins=parse_pins(short.pins))
    planned = plan.step(short.component)
    leave = planned.estimate.vram_bytes - MISSING_BYTES
    events: list[Event] = []
    name = f"a run short of memory: {short.name}"
    folder = fresh_folder(setup, f"short-{short.component}")
    try:
        with holding(setup.device, leave):
            done = run(plan, folder, report=events.append)
    except LowmemError as error:
        return row(name, ok=False, text="; ".join([*_retries(events), first_line(error)]))
    return _went_on(setup, name, short.component, done, _retries(events))


def _went_on(setup: Setup, name: str, component: str, done: RunResult, retries: list[str]) -> Row:
    """A run that ended well: on a card it must have changed its plan on the way."""
    last = next(each for each in done.steps if each.step.component == component)
    assert last.measured is not None
    figures = [
        figure("turn in the end", last.measured.seconds, last.step.estimate.seconds, SECONDS)
    ]
    if setup.on_card:
        vram = last.measured.vram_bytes
        figures.append(figure("VRAM, allocated", vram, last.step.estimate.vram_bytes))
    text = "; ".join(retries) or "no shortage: it ran as planned"
    ok = True if retries else None
    return row(name, *figures, ok=ok, text=f"{text}; in the end {last.step.config}")


def _retries(events: list[Event]) -> list[str]:
    return [event.text for event in events if event.kind == "retry"]
