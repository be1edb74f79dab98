"""Real sizes on a card that is as full as a small one: predicted against measured, by strategy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from bench.gpu.ballast import Ballast, holding
from bench.gpu.rows import SECONDS, Row, figure, first_line, row
from bench.gpu.setup import Setup, real_cascade
from lowmem_if.api.rehearse import Rehearsed, rehearse
from lowmem_if.cascade import catalog
from lowmem_if.cascade.strategies import (
    BALANCED,
    MODEL_OFFLOAD,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
    parse_pins,
)
from lowmem_if.engine.worker.command_loop import quiet_libraries
from lowmem_if.errors import LowmemError
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.hardware.speeds import Speeds
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request

STEPS = 3
STAGES = (catalog.STAGE_1, catalog.STAGE_2, catalog.UPSCALER)
LARGE, SMALL = 15e9, 6e9


@dataclass(frozen=True, slots=True)
class Round:
    """One rehearsal: bytes that the ballast leaves free, and the strategy of all components.

    Offloading keeps weights in RAM, where T5-XXL alone is as large as free Colab's: there the text
    encoder streams.
    """

    leave_bytes: float
    strategy: str = ""

    @property
    def name(self) -> str:
        return f"{self.leave_bytes / 1e9:.0f} GB free, {self.strategy or 'as planned'}"

    def pins(self, machine: Machine, cascade: str) -> dict[str, Pin]:
        """A pin of each network; without a strategy those that a user's own plan would choose."""
        if self.strategy:
            text = STREAM if self.strategy in (MODEL_OFFLOAD, SEQUENTIAL_OFFLOAD) else self.strategy
            stages = [f"{stage}={self.strategy}" for stage in STAGES]
            return parse_pins([f"{catalog.TEXT_ENCODER}={text}", *stages])
        plan = make_plan(
            machine, make_request(("a fox",), cascade=cascade, seed=(1,)), prefer=BALANCED
        )
        steps = [step for step in plan.steps if step.component != catalog.POSTPROCESS]
        kinds = {
            step.component: f"{step.config.strategy}:{step.config.storage_dtype}" for step in steps
        }
        return parse_pins(f"{component}={kind}" for component, kind in kinds.items())


ROUNDS = (
    Round(LARGE),
    Round(SMALL),
    Round(LARGE, STREAM),
    Round(LARGE, RESIDENT),
    Round(SMALL, STREAM),
    Round(LARGE, MODEL_OFFLOAD),
    Round(LARGE, SEQUENTIAL_OFFLOAD),
    Round(SMALL, SEQUENTIAL_OFFLOAD),
)
"""The most valuable first: what people will run, then each strategy by itself."""
QUICK_ROUNDS = (Round(LARGE), Round(LARGE, STREAM))


def rows(setup: Setup) -> Iterator[Row]:
    """Rows of every component in every round; a round that an earlier run has ended is left out."""
    quiet_libraries()
    cascade = str(real_cascade(setup))
    for each in QUICK_ROUNDS if setup.quick else ROUNDS:
        if each.name not in setup.have:
            yield from _round(setup, each, cascade)


def _round(setup: Setup, round_: Round, cascade: str) -> Iterator[Row]:
    """Rows of one round; the one with its own name comes last and says that it ended."""
    with holding(setup.device, round_.leave_bytes) as ballast:
        machine = probe(setup.device, ram_bytes=setup.ram_bytes)
        before = ballast.used_bytes()
        try:
            done = rehearse(
                make_request(("a fox",), cascade=cascade, seed=(1,), steps=(STEPS,)),
                _without_disk(machine),
                prefer=BALANCED,
                pins=round_.pins(machine, cascade),
                steps=STEPS,
            )
        except LowmemError as error:
            yield row(round_.name, ok=None, text=first_line(error))
            return
        for component in done.components:
            yield _compared(round_, component, before)
        rates = done.plan.machine.rates
        measured = TypeAdapter(Speeds).dump_python(rates, mode="json") if rates else {}
        yield row(round_.name, text=_told(ballast, machine), constants=_paces(measured))


def _without_disk(machine: Machine) -> Machine:
    """The machine as it is for files of zeros, which are read from no disk."""
    return replace(machine, rates=replace(machine.speeds, disk_bytes=1e15))


def _paces(rates: dict[str, Any]) -> dict[str, Any]:
    """The paces that this rehearsal measured; those that were assumed are of any component."""
    return {"paces": [pace for pace in rates.get("paces", ()) if pace["component"] != "any"]}


def _compared(round_: Round, measured: Rehearsed, used_before: int) -> Row:
    step, predicted = measured.step, measured.step.estimate
    figures = []
    if step.config.device != "cpu":
        figures += [
            figure("VRAM, allocated", measured.vram_bytes, predicted.vram_bytes),
            figure("VRAM, reserved", measured.reserved_bytes, predicted.vram_bytes),
            figure("VRAM, driver", measured.used_bytes - used_before, predicted.vram_bytes),
        ]
    figures += [
        figure("RAM", measured.ram_bytes, predicted.ram_bytes),
        figure("turn", measured.turn_s, predicted.seconds, SECONDS),
        figure("loading", measured.load_s, unit=SECONDS),
    ]
    if measured.step_s is not None:
        figures.append(figure("a step", measured.step_s, unit=SECONDS))
    setting = f"{step.config} on {step.config.device}"
    return row(f"{round_.name}: {step.component.replace('_', ' ')}", *figures, text=setting)


def _told(ballast: Ballast, machine: Machine) -> str:
    taken = f"the ballast took {ballast.taken_bytes / 1e9:.1f} GB; " if ballast.taken_bytes else ""
    return f"{taken}plans could use {machine.vram_bytes / 1e9:.1f} GB of VRAM"
