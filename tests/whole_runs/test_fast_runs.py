"""Runs that leave work out: fewer calls of the UNets, the same bits after a kill, streamed or not."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from killing import work_until
from runs import CPU, results, run_here

from lowmem_if.cascade.strategies import parse_pins
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request

STEPS = 8


def fast_plan(tiny: Path, *pins: str) -> Plan:
    """Two pictures of the tiny cascade, with guidance and without a checker."""
    request = make_request(
        "a red circle", seed=1, images=2, steps=STEPS, guidance_scale=4.0, cascade=str(tiny)
    )
    return make_plan(CPU, request, prefer="fast", pins=parse_pins(pins))


def test_a_fast_run_calls_its_unets_as_often_as_planned(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many passes, with so many inputs for the two pictures that are drawn together."""
    plan, inputs = fast_plan(tiny), list[int]()
    forward = UNet2DConditionModel.forward

    def counted(self, sample, *args, **given):
        inputs.append(len(sample))
        return forward(self, sample, *args, **given)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    folder = run_here(plan, tmp_path / "run")
    assert folder.complete
    planned = [
        plan.step(component).config.batch * each
        for component in ("stage_1", "stage_2", "upscaler")
        for _batch in range(2 // plan.step(component).config.batch)
        for each in plan.step(component).sampling.passes  # type: ignore[union-attr]
    ]
    assert inputs == planned
    assert len(planned) < 3 * 2 * STEPS


def test_a_streamed_fast_run_draws_the_same(tiny: Path, tmp_path: Path) -> None:
    """A pass that is left out loads nothing; the next one finds its weights."""
    pins = [f"{name}=stream" for name in ("stage_1", "stage_2", "upscaler")]
    resident, streamed = fast_plan(tiny), fast_plan(tiny, *pins)
    steps = tuple(
        other.with_config(batch=own.config.batch)
        for own, other in zip(resident.steps, streamed.steps, strict=True)
    )
    run_here(resident, tmp_path / "resident")
    run_here(replace(streamed, steps=steps), tmp_path / "streamed")
    drawn = [
        {name: content for name, content in results(path).items() if name.endswith("safetensors")}
        for path in (tmp_path / "resident", tmp_path / "streamed")
    ]  # the pictures' metadata name the strategy
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) >= 6


def test_a_killed_fast_run_goes_on_to_the_same_bits(tiny: Path, tmp_path: Path) -> None:
    """What was forecast is of the picture that is drawn, so that it starts again with it."""
    plan = fast_plan(tiny)
    expected = run_here(plan, tmp_path / "whole")
    folder = RunFolder.for_plan(tmp_path / "killed", plan)
    assert work_until(folder.path, 5)[0] == -signal.SIGKILL
    run_here(plan, folder.path)
    assert results(folder.path) == results(expected.path)
