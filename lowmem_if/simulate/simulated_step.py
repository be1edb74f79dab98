"""A plan's step as a dry run: the stage itself, its pipeline and hooks, from loading to release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image

from lowmem_if.cascade import catalog
from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.parts import Place
from lowmem_if.errors import SimulationError
from lowmem_if.planning.estimates.memory_table import FUSED
from lowmem_if.planning.plan import Step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.simulate.dry_source import dry_source
from lowmem_if.simulate.eight_bit import spelled_out
from lowmem_if.simulate.fake_device import DEVICE, dry_run
from lowmem_if.simulate.memory_tracker import ANONYMOUS, MAPPED, PINNED
from lowmem_if.simulate.tracing import Trace
from lowmem_if.stages.components import STAGES, image_inputs
from lowmem_if.stages.lifetime import alive
from lowmem_if.stages.stage import ImageInputs, Stage, StageConfig, TextInputs
from lowmem_if.weights.memory_readings import Release

LEAST_STEPS = 2
"""Prefetching shows from the second pass on; later passes are like the second."""

LOADING, DRAWING, DECODING = "loading", "drawing", "decoding"


@dataclass(frozen=True, slots=True)
class Phase:
    """Peaks of one phase, and what was copied in it; all in bytes.

    Attributes:
        name: `loading`, `drawing` (or encoding; one for each step), `decoding`.
        tensors: on the accelerator, as they are; `allocated`: as torch's allocator counts them;
            `reserved`: what it holds from the driver.
        anonymous, pinned, mapped: on the host, weights and activations, without the process itself.
        to_device, from_device, from_file: bytes copied and read.
        flops: of products and convolutions; a multiplication and an addition count as two.
    """

    name: str
    tensors: int
    allocated: int
    reserved: int
    anonymous: int
    pinned: int
    mapped: int
    to_device: int
    from_device: int
    from_file: int
    flops: int


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulated step, and the values that were assumed for it: who asked, and the answer."""

    phases: tuple[Phase, ...]
    assumed: tuple[str, ...]
    left_allocated: int

    def peak(self, of: str, name: str | None = None) -> int:
        """The largest value of a field of bytes, in all phases or in those with a name."""
        phases = [phase for phase in self.phases if name in (None, phase.name)]
        return max((getattr(phase, of) for phase in phases), default=0)


def simulate_step(
    step: Step,
    root: Path,
    *,
    attention: str = FUSED,
    texts: tuple[str, ...] = ("a red circle", ""),
    elsewhere: Mapping[str, Path] = MappingProxyType({}),
) -> Simulated:
    """The memory of a step of a plan, with the weights in `root` (only headers are read).

    Args:
        attention: the accelerator's kernel, `fused` or `math`.
        texts: what the text encoder encodes.
        elsewhere: folders of the component that are not in `root`, by name.

    Raises:
        SimulationError: the simulator does not support this torch, or an unknown number is needed.
        CheckpointError: the files do not match the configuration.
    """
    samplings = {
        mode: replace(sampling, steps=LEAST_STEPS, timesteps=None)
        for mode, sampling in step.samplings.items()
    }
    device = step.config.device if step.config.device == "cpu" else DEVICE
    # LoRAs are numbers, which a dry run does not have; the plan adds the memory for them.
    step = replace(step, samplings=samplings, lora=()).with_config(device=device, speedup=1.0)
    with ExitStack() as undo:
        trace = undo.enter_context(dry_run(kernel=attention))
        undo.enter_context(spelled_out(trace))
        return _Run(step, Place(root, elsewhere), trace, texts).take()


class _Run:
    """One simulated step of a component, cut into phases."""

    def __init__(self, step: Step, place: Place, trace: Trace, texts: tuple[str, ...]) -> None:
        self._step, self._place, self._trace, self._texts = step, place, trace, texts
        self._phases: list[Phase] = []
        self._releases: list[Release] = []

    def take(self) -> Simulated:
        config = StageConfig(
            self._place.root, self._step, dry_source(self._trace), elsewhere=self._place.elsewhere
        )
        with alive(
            partial(STAGES[self._step.component].load, config),
            device=self._step.config.device,
            weight_bytes=0,
            on_release=self._releases.append,
        ) as stage:
            self._end_phase(LOADING)
            if self._step.config.facts.encodes:
                self._encode(stage)
            else:
                self._draw(stage)
        (release,) = self._releases
        if release.alive or release.vram_left_bytes:
            raise SimulationError(
                f"{self._step.component} left {release.vram_left_bytes} bytes behind; "
                "this is a bug of lowmem-if"
            )
        values = self._trace.values
        assert values is not None
        assumed = tuple(f"{i.module}.{i.function}: {i.answer!r}, {i.why}" for i in values.assumed)
        return Simulated(tuple(self._phases), assumed, release.vram_left_bytes)

    def _encode(self, stage: Stage[TextInputs, Iterator[torch.Tensor]]) -> None:
        inputs = TextInputs(self._texts, len(self._texts))
        for embedding in stage.run(inputs, lambda _done, _total: None):
            del embedding
            self._end_phase(DRAWING)

    def _draw(self, stage: Stage[ImageInputs, torch.Tensor]) -> None:
        tasks = [
            ImageSpec(number, "a red circle", number) for number in range(self._step.config.batch)
        ]
        source = _DryInputs(
            self._place.folder("unet"), getattr(torch, self._step.config.compute_dtype)
        )
        stage.run(
            image_inputs(self._step, tasks, source),
            lambda _done, _total: self._end_phase(DRAWING),
        )
        self._end_phase(DECODING)

    def _end_phase(self, name: str) -> None:
        trace, tracker = self._trace, self._trace.tracker
        allocator = tracker.allocator(DEVICE)
        self._phases.append(
            Phase(
                name,
                tracker.usage(DEVICE).most,
                allocator.most_allocated,
                allocator.most_reserved,
                tracker.usage(ANONYMOUS).most,
                tracker.usage(PINNED).most,
                tracker.usage(MAPPED).most,
                trace.moved["cpu", "cuda"],
                trace.moved["cuda", "cpu"],
                trace.moved["file", "cpu"],
                trace.flops,
            )
        )
        tracker.begin_phase()
        trace.moved.clear()
        trace.flops = 0


class _DryInputs:
    """Inputs of the sizes that the pipelines get."""

    def __init__(self, unet: Path, dtype: torch.dtype) -> None:
        self._unet, self._dtype = unet, dtype

    def images(self, _tasks: Sequence[ImageSpec], _kind: str) -> list[Image.Image]:
        """The user has none: images are drawn from text."""
        return []

    def pictures(self, stage: str, tasks: Sequence[ImageSpec]) -> torch.Tensor:
        """The output of a stage, (n, 3, side, side)."""
        side = _SIDES[stage]
        return torch.randn(len(tasks), 3, side, side, dtype=self._dtype)

    def embeddings(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings, (n, 77, width)."""
        config = read_config(self._unet / "config.json")
        width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
        return torch.randn(len(texts), catalog.MAX_TOKENS, width, dtype=self._dtype)


_SIDES = {catalog.STAGE_1: 64, catalog.STAGE_2: 256}
"""Pixels on a side of the images that a stage hands on."""
