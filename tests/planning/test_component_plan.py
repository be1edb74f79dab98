"""A plan of one component: the step that a whole plan has for it, from its own files alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from machines import ask, card, cpu, step

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2, UPSCALER
from lowmem_if.cascade.strategies import Pin
from lowmem_if.errors import DoesNotFit, RequestError
from lowmem_if.planning.candidates import pins_of
from lowmem_if.planning.component_plan import plan_component
from lowmem_if.planning.plan import make_plan


@pytest.mark.parametrize("machine", [card(15, 12), card(6, 16), cpu(16), card(16, 16, "mps")])
@pytest.mark.parametrize("component", [STAGE_1, STAGE_2, UPSCALER])
def test_it_is_the_step_of_the_whole_plan(machine: object, component: str) -> None:
    """Strategy, types, estimate and reason do not depend on how the others run."""
    request = ask()
    whole = make_plan(machine, request, prefer="balanced")  # type: ignore[arg-type]
    alone, location = plan_component(machine, request, component, prefer="balanced")  # type: ignore[arg-type]
    assert alone == step(whole, component)
    assert location.cascade.name == "if-xl"


def test_only_its_own_files_are_examined(tiny: Path, tmp_path: Path) -> None:
    """A folder with a UNet and its scheduler is enough; no text encoder is looked for."""
    for name in ("unet", "scheduler"):
        shutil.copytree(tiny / "stage_1" / name, tmp_path / "stage_1" / name)
    planned, location = plan_component(cpu(8), ask(str(tmp_path), size=64), STAGE_1)
    assert planned.component == STAGE_1
    assert location.folder(STAGE_1) == tmp_path / "stage_1"


def test_a_batch_needs_more_memory_and_may_change_the_strategy() -> None:
    """Memory is planned for so many pictures at once."""
    machine, request = card(8, 12), ask("if-xl", size=256)
    estimates = [
        plan_component(machine, request, STAGE_2, batch=batch)[0].estimate.vram_bytes
        for batch in (1, 2, 4)
    ]
    assert estimates == sorted(set(estimates))
    many = plan_component(machine, request, STAGE_2, batch=12)[0]
    assert many.config.batch == 12
    assert many.config.strategy != "resident"


def test_a_number_type_leaves_the_strategy_to_the_planner() -> None:
    """The pins of one type are every way to keep such weights, and the best that fits is taken."""
    machine = cpu(4)
    pins = pins_of(machine, STAGE_1, "float32", "exact")
    assert pins == [Pin("resident", "float32"), Pin("stream", "float32")]
    small = plan_component(machine, ask("if-xl"), STAGE_1, pins=pins)[0]
    large = plan_component(
        replace(machine, ram_bytes=64 * 10**9), ask("if-xl"), STAGE_1, pins=pins
    )[0]
    assert (small.config.strategy, large.config.strategy) == ("stream", "resident")


def test_what_does_not_fit_has_figures_and_no_advice() -> None:
    """The caller knows what could be closed."""
    with pytest.raises(DoesNotFit) as caught:
        plan_component(cpu(0.5), ask("if-xl"), STAGE_1)
    assert caught.value.component == STAGE_1
    assert caught.value.nearest == ""
    with pytest.raises(RequestError, match="unknown preference"):
        plan_component(cpu(8), ask(), STAGE_1, prefer="best")
