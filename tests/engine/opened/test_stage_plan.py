"""The plan of an opened stage as a text."""

from __future__ import annotations

from dataclasses import replace

from machines import ask, card, cpu

from lowmem_if.cascade.catalog import STAGE_1
from lowmem_if.engine.opened.stage_plan import StagePlan
from lowmem_if.planning.component_plan import plan_component


def test_it_says_what_why_and_how_much() -> None:
    """On a card: strategy, reason, runner-up, peaks, what is left, open stages, number type."""
    machine = replace(card(15, 12), unused=("the old card is too old",))
    step, _location = plan_component(machine, ask(size=64), STAGE_1)
    text = str(StagePlan("stage 1 of if-xl", step, machine, ("stage 2 of if-xl",)))
    lines = dict(line.split(": ", 1) for line in text.splitlines() if not line.startswith(" "))
    assert lines["stage 1 of if-xl on cuda:0 (made up)"] == "resident float16"
    assert "of VRAM to spare" in lines["why"]
    assert lines["instead of"].startswith("stream float16")
    assert lines["predicted peak"] == "8.9 GB of VRAM, 1.2 GB of RAM"
    assert lines["left for it"] == "15.0 GB of VRAM, 12.0 GB of RAM"
    assert lines["open already"] == "stage 2 of if-xl"
    assert lines["number type"] == "the published weights' own type"
    assert lines["note"] == "the old card is too old"
    assert max(map(len, text.splitlines())) <= 100


def test_a_small_network_gives_no_reason_of_the_machines() -> None:
    """Its number type is float32 because it is small, whatever the machine prefers."""
    machine = cpu(8)
    step, _location = plan_component(machine, ask("demo", size=64), STAGE_1)
    text = repr(StagePlan("stage 1 of demo", step, machine))
    assert "small, so float32" in text
    assert "number type" not in text
    assert "VRAM" not in text
