"""What commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from lowmem_if.engine.announcements.planned_event import RunPlanned
from lowmem_if.engine.events import Event, Report, RunOpened, ignore
from lowmem_if.engine.results import RunResult
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.folder_layout import RECORD
from lowmem_if.engine.session import Session
from lowmem_if.errors import DoesNotFit
from lowmem_if.hardware.machine import Machine
from lowmem_if.planning.plan import Plan
from lowmem_if.report.progress import RunProgress
from lowmem_if.report.tables import console
from lowmem_if.request.request import Request
from lowmem_if.request.request_json import request_to_json
from lowmem_if.system.paths import quoted


class Interrupted(Exception):
    """Ctrl-C ended a command; its text says what to do."""


def _how_to_resume(folder: Path | None) -> str:
    if folder is None or not (folder / RECORD).is_file():
        return "no run was begun"
    return f"what is done is kept; continue with `lowmem-if resume {quoted(folder)}`"


def say(text: str) -> None:
    """Print one line on standard error, whatever characters a text holds."""
    sys.stderr.write(text.replace("\r", " ").replace("\n", " ").strip() + "\n")


def note(text: str) -> None:
    """Print one note on standard error."""
    say(f"note: {text}")


def note_unused(machine: Machine) -> None:
    """Print a note for each card that torch cannot use."""
    for card in machine.unused:
        note(card)


@contextmanager
def engine(
    *,
    quiet: bool,
    ask: Report = ignore,
    notices: tuple[str, ...] = (),
    simulate: bool = False,
) -> Iterator[Session]:
    """A session for one command, whose progress is shown; after Ctrl-C it names the run's folder.

    Args:
        ask: called with each event after it is shown; may raise to stop.
        notices: printed when the run begins, unless `quiet`.
        simulate: whether plans are made with dry runs.
    """
    begun: list[str] = []
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:

        def report(event: Event) -> None:
            if isinstance(event, RunOpened) and not quiet:
                for text in notices:
                    say(text)
            progress(event)
            ask(event)
            if isinstance(event, RunPlanned):
                begun.append(event.folder)

        try:
            with Session(
                keep_loaded=False, report=report, planner=planner(simulate=simulate)
            ) as session:
                yield session
        except KeyboardInterrupt:
            raise Interrupted(_how_to_resume(Path(begun[-1]) if begun else None)) from None


def planner(*, simulate: bool) -> Any:
    """What makes the plans: None for the engine's own, or one that runs steps dry."""
    if not simulate:
        return None
    from lowmem_if.simulate.simulated_plan import simulated_plan

    return partial(simulated_plan, report=say)


def notices_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """What it means to disable the safety check or the watermark."""
    notices = []
    if not options["safety_checker"]:
        notices.append(
            "Safety checker off: IF's licence asks you to keep harmful pictures from others."
        )
    if not options["watermark"]:
        notices.append("Watermark off: please disclose that these pictures are AI-generated.")
    return tuple(notices)


JSON_PRINTED = ContextVar("JSON_PRINTED", default=False)
"""Whether this command has printed its JSON object: a failure after it prints no second one."""


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object; in ASCII where standard output has no Unicode."""
    JSON_PRINTED.set(True)
    plain = "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()
    click.echo(json.dumps(data, ensure_ascii=plain, indent=1))


def print_result(result: RunResult, *, as_json: bool, **more: Any) -> None:
    """Print the paths of a run's pictures, or its JSON object with more keys."""
    if as_json:
        images = [str(image) for image in result.images]
        print_json(run_json(RunFolder.open(result.folder)) | {"images": images} | more)
        return
    for image in result.images:
        click.echo(image)


def run_json(folder: RunFolder) -> dict[str, Any]:
    """A run as a JSON object: its pictures, steps, notices and log."""
    return {
        "run": str(folder.path),
        "complete": folder.complete,
        "images": [str(image) for image in folder.images],
        "steps": steps_json(folder),
        "notices": list(folder.notices),
        "log": list(folder.log),
    }


def steps_json(folder: RunFolder) -> list[dict[str, Any]]:
    """The steps of a run's plan, each with what was measured and the proof of its release."""
    steps = []
    for step in folder.plan.to_json()["steps"]:
        measured, released = (
            value.to_json() if value else None
            for value in (folder.measured(step["component"]), folder.released(step["component"]))
        )
        steps.append(step | {"measured": measured, "released": released})
    return steps


def total_json(plan: Plan) -> dict[str, Any]:
    """The whole of a plan: seconds with the worker's start, pictures, and the largest peaks."""
    estimates = [step.estimate for step in plan.steps]
    pictures = len(plan.request.pictures)
    return {
        "seconds": round(plan.seconds, 1),
        "pictures": pictures,
        "seconds_a_picture": round(plan.seconds / max(1, pictures), 1),
        "vram_bytes": max(estimate.vram_bytes for estimate in estimates),
        "ram_bytes": max(estimate.ram_bytes for estimate in estimates),
        "read_bytes": sum(estimate.read_bytes for estimate in estimates),
    }


def unfit_json(request: Request, machine: Machine, error: DoesNotFit) -> dict[str, Any]:
    """A plan that does not exist as a JSON object: what does not fit, and what would."""
    return {
        "fits": False,
        "machine": asdict(machine),
        "request": request_to_json(request),
        "steps": [],
        "does_not_fit": {
            "component": error.component,
            "resource": error.resource,
            "needed_bytes": error.needed_bytes,
            "available_bytes": error.available_bytes,
            "nearest": error.nearest,
        },
    }
