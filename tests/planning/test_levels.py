"""What looser levels would save, compared with a plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from machines import ask, card

from lowmem_if.cascade.catalog import IMAGE_STAGES
from lowmem_if.planning.levels import savings
from lowmem_if.planning.plan import Plan, make_plan

pytestmark = pytest.mark.usefixtures("nothing_downloaded")


def test_each_looser_level_is_compared_with_the_plan() -> None:
    """Its plan is made for the same machine, request and pins; the loosest level has none after it."""
    machine, request = card(5, 32), ask(size=256, images=4)
    exact = make_plan(machine, request, prefer="exact")
    found = savings(exact)
    assert [saving.level for saving in found] == ["faithful", "balanced", "fast"]
    for saving in found:
        other = make_plan(machine, request, prefer=saving.level)
        assert saving.seconds == exact.seconds - other.seconds
        ram = [max(each.estimate.ram_bytes for each in plan.steps) for plan in (exact, other)]
        assert saving.ram_bytes == ram[0] - ram[1]
    assert found[0].seconds > 0
    assert savings(make_plan(machine, request, prefer="fast")) == ()


def test_the_levels_below_an_automatic_one_are_left_out() -> None:
    """A plan that had to be balanced is compared with what is looser still."""
    plan = replace(make_plan(card(3.5, 32), ask("if-m")), prefer="balanced")
    assert [saving.level for saving in savings(plan)] == ["fast"]


def test_fast_leaves_work_out_of_every_image_stage() -> None:
    """A quarter of the UNet inputs; the steps that the user sets stay as they are."""
    machine = card(15, 12)
    plans = {
        level: make_plan(machine, ask("if-xl"), prefer=level) for level in ("balanced", "fast")
    }
    for component in IMAGE_STAGES:
        usual, fast = (plan.step(component) for plan in plans.values())
        assert usual.sampling is not None
        assert not usual.sampling.shortened
        assert fast.sampling is not None
        assert fast.sampling.shortened.startswith(f"{fast.sampling.count} steps")
        assert 4 * sum(fast.sampling.passes) <= sum(usual.sampling.passes)
        assert fast.estimate.seconds < usual.estimate.seconds / 2
    own = make_plan(machine, ask("if-xl", steps=50), prefer="fast").step("stage_1").sampling
    assert own is not None
    assert own.count == 50


def test_only_a_user_who_asks_for_it_gets_fast() -> None:
    """It saves no memory, so the planner never goes there by itself."""
    assert not make_plan(card(15, 12), ask("if-xl")).request.sampling.fast
    assert not make_plan(card(15, 12), ask("if-xl"), prefer="balanced").request.sampling.fast


def test_a_fast_plan_is_read_back_as_it_was() -> None:
    """With what it leaves out, so that a resumed run plans the same work again."""
    plan = make_plan(card(15, 12), ask("if-xl"), prefer="fast")
    read = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert read == plan
    assert read.request.sampling.fast


def test_fast_compiles_nothing() -> None:
    """Passes that are left out would have to be compiled for two shapes; the plan says why not."""
    plan = make_plan(card(15, 12), ask("if-xl", compile=True), prefer="fast")
    assert all(step.config.speedup == 1 for step in plan.steps)
    assert "not compiled: passes are left out instead" in plan.step("stage_1").reason
