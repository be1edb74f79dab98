"""The protocol of every stage: load it, run it on typed inputs, close it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from PIL import Image

from lowmem_if.cascade.parts import Place
from lowmem_if.planning.plan import Step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.sampling import Sampling
from lowmem_if.stages.previews import Watching
from lowmem_if.weights.source import FILES, WeightSource

OnStep = Callable[[int, int], None]
"""Called with how much is done, and of how much: denoising steps, prompts, or blocks of the encoder."""

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


@dataclass(frozen=True, slots=True)
class StageConfig:
    """What a stage is loaded with.

    Attributes:
        root: the folder of its networks.
        elsewhere: its folders that are not in `root`: name of the folder -> where it is.
        step: the plan's step: strategy, number types, device, sampling.
        source: where its weights come from.
        checks: whether the safety checker is loaded (postprocessing only).
        marks: whether the watermark is loaded (postprocessing only).
    """

    root: Path
    step: Step
    source: WeightSource = FILES
    checks: bool = True
    marks: bool = True
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """The path of one of its folders, like `unet`; `.` is the place of `model_index.json`."""
        return Place(self.root, self.elsewhere).folder(name)


class Stage(Protocol[In, Out]):
    """A component in memory, under its step's strategy.

    Attributes:
        modules: its networks, whose release is proved.
    """

    modules: list[torch.nn.Module]

    @classmethod
    def load(cls, config: StageConfig) -> Self:
        """Load the networks.

        Raises:
            CheckpointError: a file is missing or broken, or does not match its configuration.
            MissingPackage: an optional package is needed.
        """

    def run(self, inputs: In, on_step: OnStep) -> Out:
        """Compute the outputs of some inputs.

        Raises:
            NotFinite: a number is NaN or infinite.
        """

    def close(self) -> None:
        """Remove all hooks and drop every reference to the networks."""


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Prompts to encode, and how many of them share a pass over weights that stream."""

    prompts: Sequence[str]
    together: int


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Images that one call of a pipeline draws: of one mode, one strength and one shape.

    Attributes:
        images, masks: the user's own, upright RGB and grey; empty in modes without them.
        pictures: the output of the stage before, (n, 3, height, width); None for the first stage.
        embeds, negative_embeds: of the prompts, (n, 77, width); None for a stage that reads none of T5,
            and the negative ones without guidance.
        style: embeddings (n, 77, width) of the styles to draw in, None for none.
        tile: side of the tiles that the user's own images are enlarged in, 0: whole.
        watching: what receives previews; None for none.
    """

    tasks: Sequence[ImageSpec]
    sampling: Sampling
    images: Sequence[Image.Image] = ()
    masks: Sequence[Image.Image] = ()
    pictures: torch.Tensor | None = None
    embeds: torch.Tensor | None = None
    negative_embeds: torch.Tensor | None = None
    style: torch.Tensor | None = None
    tile: int = 0
    watching: Watching | None = None

    @property
    def mode(self) -> str:
        return self.tasks[0].mode

    @property
    def seeds(self) -> list[int]:
        return [task.seed for task in self.tasks]

    @property
    def total_steps(self) -> int:
        """Denoising steps of all tiles."""
        return self.sampling.count * self.tasks[0].parts(self.tile)


class InputSource(Protocol):
    """Where the inputs of an image stage are taken from: a run folder, or made-up tensors."""

    def images(self, tasks: Sequence[ImageSpec], kind: str) -> Sequence[Image.Image]:
        """The user's own images of the tasks that have any; `kind`: `image` or `mask`."""

    def pictures(self, stage: str, tasks: Sequence[ImageSpec]) -> torch.Tensor:
        """The output of a stage for the tasks, (n, 3, height, width)."""

    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts, (n, 77, width)."""
