"""`faithful`, the default: the pictures of `exact` but for rounding, on every component."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import plan_of, run_here
from safetensors.torch import load_file

PROMPTS = ("a red circle on white", "a blue star")
STAGES = ("stage_1", "stage_2", "stage_3")


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Every stage's pictures and every embedding of a run."""
    files = [
        file for folder in (*STAGES, "embeds") for file in (run / folder).glob("*.safetensors")
    ]
    return {
        f"{file.parent.name}/{file.name}/{name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("pins", [(), ("stage_1=stream", "stage_2=stream", "upscaler=stream")])
def test_faithful_differs_by_rounding_alone(
    tiny: Path, tmp_path: Path, pins: tuple[str, ...]
) -> None:
    """In float32 at most 1e-4 of the range of values from `exact`, in batches and in another layout."""
    runs = {
        prefer: run_here(plan_of(tiny, PROMPTS, pins=pins, prefer=prefer), tmp_path / prefer)
        for prefer in ("exact", "faithful")
    }
    steps = {prefer: run.plan.steps for prefer, run in runs.items()}
    assert {step.config.layout for step in steps["exact"]} == {"contiguous"}
    faithful = {step.component: step.config for step in steps["faithful"]}
    assert [faithful[stage].layout for stage in ("stage_1", "stage_2", "upscaler")] == [
        "channels_last"
    ] * 3
    assert faithful["stage_1"].batch == 2
    exact, ours = (tensors(runs[prefer].path) for prefer in ("exact", "faithful"))
    assert exact.keys() == ours.keys()
    assert {name.split("/")[0] for name in exact} == {*STAGES, "embeds"}
    for name, expected in exact.items():
        spread = (expected.max() - expected.min()).item()
        assert (ours[name] - expected).abs().max().item() <= 1e-4 * spread, name
