"""What looser levels would save, compared with a plan."""

from __future__ import annotations

import pytest
from machines import ask, card

from lowmem_if.planning.levels import savings
from lowmem_if.planning.plan import make_plan

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
    plan = make_plan(card(3.5, 32), ask("if-m"))
    assert plan.prefer == "balanced"
    assert [saving.level for saving in savings(plan)] == ["fast"]
