"""Whether a request fits: the answers of the planner itself, with each cascade located once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from machines import GB, ask, card, cpu, drawn_plans, try_plan

from lowmem_if.cascade.catalog import STAGE_1, TEXT_ENCODER
from lowmem_if.cascade.locating.weights_choice import WeightsChoice
from lowmem_if.cascade.strategies import RESIDENT, Pin
from lowmem_if.planning import fitting
from lowmem_if.planning.fitting import Fitting

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


@pytest.mark.slow
def test_it_says_what_planning_would_say() -> None:
    """Of every machine and request, also of one after another that differ in memory alone."""
    for drawn in drawn_plans()[:100]:
        fits = Fitting()
        for more in (0, 2 * GB, 40 * GB, -(10**8)):
            machine = replace(drawn.machine, ram_bytes=max(0, drawn.machine.ram_bytes + more))
            plan = try_plan(machine, drawn.request, prefer=drawn.prefer)
            assert fits(machine, drawn.request, drawn.prefer, {}) == (plan is not None)


def test_a_cascade_is_located_once_for_all_sizes_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search asks for many sizes; the files on the disk are the same for all of them."""
    found: list[str] = []
    locate = fitting.locate

    def counted(weights: WeightsChoice, **options: Any) -> Any:
        found.append(weights.cascade)
        return locate(weights, **options)

    monkeypatch.setattr(fitting, "locate", counted)
    fits = Fitting()
    answers = [fits(card(vram, 16), ask(), "exact", {}) for vram in (1, 2, 4, 8, 16)]
    assert answers == sorted(answers)
    assert (answers[0], answers[-1]) == (False, True)
    assert found == ["if-xl"]


def test_pins_and_preferences_are_told_apart() -> None:
    """An answer for one is not given for another."""
    fits, machine = Fitting(), cpu(9.5)
    large = {STAGE_1: Pin(RESIDENT, "float32")}
    assert fits(machine, ask(size=64), "exact", {})
    assert not fits(machine, ask(size=64), "exact", large)
    assert fits(machine, ask(size=64), "exact", {})
    assert not fits(cpu(64), ask(), "exact", {STAGE_1: Pin("model_offload")})


def test_a_cascade_that_is_not_there_does_not_fit() -> None:
    """The search passes over it."""
    assert not Fitting()(cpu(64), ask("if-xxl"), "exact", {TEXT_ENCODER: Pin(RESIDENT)})
