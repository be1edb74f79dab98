"""Pipelines that are built from each other's networks send them back to RAM as the first one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import (
    IFImg2ImgPipeline,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
)
from runs import plan_of

from lowmem_if.cascade.catalog import STAGE_1, STAGE_2
from lowmem_if.cascade.strategies import MODEL_OFFLOAD, RESIDENT
from lowmem_if.stages.stage import StageConfig
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.stages.stage_2 import Stage2

STAGES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    STAGE_1: (Stage1, (IFPipeline, IFImg2ImgPipeline, IFInpaintingPipeline)),
    STAGE_2: (
        Stage2,
        (
            IFSuperResolutionPipeline,
            IFImg2ImgSuperResolutionPipeline,
            IFInpaintingSuperResolutionPipeline,
        ),
    ),
}


def placed(tiny: Path, component: str, strategy: str, device: str) -> Any:
    step = plan_of(tiny, size=256).step(component)
    step = step.with_config(strategy=strategy, device=device)
    return STAGES[component][0].load(StageConfig(tiny / component, step))


@pytest.mark.parametrize("component", STAGES)
def test_model_offload_ends_every_call_with_the_unet_in_ram(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, component: str
) -> None:
    """Whatever mode comes after which: what a pipeline does at its end moves the UNet."""
    stage = placed(tiny, component, MODEL_OFFLOAD, "cpu")
    (unet,) = stage.modules
    moves: list[Any] = []
    move = type(unet).to
    monkeypatch.setattr(
        type(unet), "to", lambda self, *to, **more: (moves.append(to), move(self, *to, **more))[1]
    )
    kinds = STAGES[component][1]
    for kind in (*kinds, *reversed(kinds)):
        pipeline = stage._as(kind)
        moves.clear()
        pipeline.maybe_free_model_hooks()
        assert ("cpu",) in moves, kind
        assert hasattr(unet, "_hf_hook"), kind
    stage.close()
    assert not hasattr(unet, "_hf_hook")


def test_resident_networks_get_no_hooks(tiny: Path) -> None:
    """They stay where they are."""
    stage = placed(tiny, STAGE_1, RESIDENT, "cpu")
    stage._as(IFImg2ImgPipeline).maybe_free_model_hooks()
    assert not hasattr(stage.modules[0], "_hf_hook")
    stage.close()


@pytest.mark.cuda
@pytest.mark.parametrize("component", STAGES)
def test_on_a_card_the_unet_leaves_after_every_mode(tiny: Path, component: str) -> None:
    """Its weights are in RAM again."""
    stage = placed(tiny, component, MODEL_OFFLOAD, "cuda:0")
    (unet,) = stage.modules
    for kind in STAGES[component][1]:
        pipeline = stage._as(kind)
        unet.to("cuda:0")
        pipeline.maybe_free_model_hooks()
        assert unet.device.type == "cpu", kind
    stage.close()
