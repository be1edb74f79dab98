"""The networks of an opened stage: guarded while they are in use, without weights afterwards."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Self

import torch

from lowmem_if.cascade.catalog import UPSCALER
from lowmem_if.cascade.parts import Place
from lowmem_if.cascade.strategies import RESIDENT, STREAM
from lowmem_if.errors import CheckpointError
from lowmem_if.stages.components import STAGES
from lowmem_if.stages.opened.gradients import Guard, guard
from lowmem_if.stages.opened.open_pipeline import PIPELINES, OpenPipeline, open_class
from lowmem_if.stages.pipelines import DrawingStage
from lowmem_if.stages.stage import StageConfig
from lowmem_if.weights.small_parts import load_tokenizer, load_watermarker


class OpenedNetworks:
    """A stage in memory whose networks are guarded; it can be the component of a `Lifetime`.

    It does not refer to the pipeline that a user gets, so that one can be collected.

    Attributes:
        modules: the networks, whose release is proved.
    """

    def __init__(self, stage: DrawingStage, config: StageConfig, name: str) -> None:
        self.modules = list(stage.modules)
        self._stage, self._name = stage, name
        self._guards: list[Guard] = [
            guard(
                network,
                _refusal(network, config.step.config.strategy, name),
                movable=config.step.config.strategy != STREAM
                and not config.step.config.quantises_unet,
            )
            for network in self.modules
        ]

    @classmethod
    def load(cls, config: StageConfig, name: str) -> Self:
        """Load the stage of a step.

        Args:
            name: the stage in words, for messages.

        Raises:
            CheckpointError: a file is missing or broken, or does not match its configuration.
        """
        stage: Any = STAGES[config.step.component].load(config)
        return cls(stage, config, name)

    def pipeline(self, component: str, mode: str, place: Place) -> OpenPipeline:
        """diffusers' pipeline for a mode, over these networks.

        A stage of IF gets its watermark and its tokenizer if their files are here, as `from_pretrained`
        loads them. It has no text encoder and no safety checker.
        """
        own = self._stage.pipeline
        kind, parts = open_class(PIPELINES[component, mode]), dict(own.components)
        settings: dict[str, Any] = {"requires_safety_checker": False}
        if component == UPSCALER:
            settings = {"max_noise_level": own.config.max_noise_level}
        else:
            parts |= _small_parts(place)
        made: OpenPipeline = kind(**parts, **settings)
        return made

    def close(self) -> None:
        """Remove hooks and close files; take the weights off the networks, which a variable may hold."""
        for one in self._guards:
            one.close(f"{self._name} is closed: open it again with open_stage")
        self._stage.close()
        for network in self.modules:
            _take_weights(network)
        self.modules, self._guards = [], []


def _small_parts(place: Place) -> dict[str, Any]:
    """The watermark and the tokenizer, if they are here: a download of the UNet alone lacks them."""
    loaders = {"watermarker": load_watermarker, "tokenizer": load_tokenizer}
    parts = {}
    for name, load in loaders.items():
        if place.folder(name).is_dir():
            with suppress(CheckpointError):
                parts[name] = load(place.folder(name))
    return parts


def _refusal(network: Any, strategy: str, name: str) -> str:
    """Why gradients through a network would be wrong; empty if they are right."""
    if strategy in (RESIDENT, STREAM) and getattr(network, "weights_remain", True):
        return ""
    overwritten = "its weights are read into memory that the next layers overwrite"
    why = {STREAM: overwritten, RESIDENT: overwritten}.get(
        strategy, "its weights are moved to the accelerator and back"
    )
    return (
        f"no gradient can be computed through the {type(network).__name__} of {name}: {why}. "
        "Open it with pin='resident', call it under torch.no_grad(), or detach its inputs"
    )


def _take_weights(network: torch.nn.Module) -> None:
    """Leave a network without numbers: a user's variable may keep its modules, but not its memory."""
    for part in network.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                bare = torch.empty_like(weight, device="meta")
                part._parameters[name] = torch.nn.Parameter(bare, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="meta")
