"""A plan's step as a dry run: the stage itself, its pipeline and hooks, from loading to leaving."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowmem_if.cascade import catalog
from lowmem_if.cascade.configs import read_config
from lowmem_if.errors import SimulationError
from lowmem_if.planning.memory_table import FUSED
from lowmem_if.planning.plan import Step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.simulate.eight_bit import spelled_out
from lowmem_if.simulate.fake_device import DEVICE, dry_run
from lowmem_if.simulate.memory_tracker import ANONYMOUS, MAPPED, PINNED
from lowmem_if.simulate.tracing import Trace
from lowmem_if.simulate.unread_files import unread_files
from lowmem_if.stages.lifetime import alive
from lowmem_if.stages.pipelines import Batch
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.stages.stage_2 import Stage2
from lowmem_if.stages.text_encoder import TextEncoder
from lowmem_if.stages.upscaler import Upscaler
from lowmem_if.weights.memory_readings import Release

LEAST_STEPS = 2
"""What is fetched ahead shows from the second pass on; later ones are as that."""

LOADING, DRAWING, DECODING = "loading", "drawing", "decoding"


@dataclass(frozen=True, slots=True)
class Phase:
    """Peaks of one phase, and what was moved in it; all in bytes.

    Attributes:
        name: `loading`, `drawing` (or encoding) number so and so, `decoding`.
        tensors: on the accelerator, as they are; `allocated`: as torch's allocator counts them;
            `reserved`: what it holds from the driver.
        anonymous, pinned, mapped: on the host, weights and activations; the process comes on top.
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
    """A step as it was simulated, and whatever had to be invented for that: who asked, what was said."""

    phases: tuple[Phase, ...]
    invented: tuple[str, ...]
    left_allocated: int

    def peak(self, of: str, name: str | None = None) -> int:
        """The largest of all phases, or those of a name, of a field that counts bytes at a moment."""
        phases = [phase for phase in self.phases if name in (None, phase.name)]
        return max((getattr(phase, of) for phase in phases), default=0)


def simulate_step(
    step: Step, root: Path, *, attention: str = FUSED, texts: tuple[str, ...] = ("a red circle", "")
) -> Simulated:
    """What a step of a plan takes, with weights that are in `root` (only headers are read).

    Args:
        attention: the accelerator's kernel, `fused` or `math`.
        texts: what the text encoder reads.

    Raises:
        SimulationError: the simulator does not support this torch, or a number was asked for that nobody
            knows.
        CheckpointError: the files do not match the configuration.
    """
    samplings = {
        mode: replace(sampling, steps=LEAST_STEPS, timesteps=None)
        for mode, sampling in step.samplings.items()
    }
    device = step.config.device if step.config.device == "cpu" else DEVICE
    # What is merged are numbers, which a dry run has none of; the plan adds the memory for it.
    step = replace(step, samplings=samplings, lora=()).with_config(device=device, speedup=1.0)
    with ExitStack() as undo:
        trace = undo.enter_context(dry_run(kernel=attention))
        undo.enter_context(unread_files(trace))
        undo.enter_context(spelled_out(trace))
        return _Run(step, root, trace, texts).take()


class _Run:
    """One simulated turn of a component, cut into phases."""

    def __init__(self, step: Step, root: Path, trace: Trace, texts: tuple[str, ...]) -> None:
        self._step, self._root, self._trace, self._texts = step, root, trace, texts
        self._phases: list[Phase] = []
        self._releases: list[Release] = []

    def take(self) -> Simulated:
        stage, act = _STAGES[self._step.component]
        with alive(
            partial(stage, self._root, self._step),
            device=self._step.config.device,
            weight_bytes=0,
            on_release=self._releases.append,
        ) as component:
            self._end_phase(LOADING)
            act(self, component)
        (release,) = self._releases
        if release.alive or release.vram_left_bytes:
            raise SimulationError(
                f"{self._step.component} left {release.vram_left_bytes} bytes behind; "
                "this is a bug of lowmem-if"
            )
        values = self._trace.values
        assert values is not None
        invented = tuple(f"{i.module}.{i.function}: {i.answer!r}, {i.why}" for i in values.invented)
        return Simulated(tuple(self._phases), invented, release.vram_left_bytes)

    def encode(self, encoder: TextEncoder) -> None:
        for embedding in encoder.encode(self._texts, len(self._texts), lambda _done, _total: None):
            del embedding
            self._end_phase(DRAWING)

    def draw(self, stage: Stage1) -> None:
        stage.draw(self._batch(), *self._embeds())
        self._end_phase(DECODING)

    def enlarge(self, stage: Stage2) -> None:
        stage.draw(self._batch(), self._pictures(64), *self._embeds())
        self._end_phase(DECODING)

    def upscale(self, stage: Upscaler) -> None:
        stage.draw(self._batch(), self._pictures(256))
        self._end_phase(DECODING)

    def _on_step(self, _done: int) -> None:
        self._end_phase(DRAWING)

    def _batch(self) -> Batch:
        tasks = [
            ImageSpec(number, "a red circle", number) for number in range(self._step.config.batch)
        ]
        return Batch(tasks, self._step.sampling_of(tasks[0]), self._on_step)

    def _pictures(self, side: int) -> torch.Tensor:
        return torch.randn(self._step.config.batch, 3, side, side, dtype=self._dtype)

    def _embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = read_config(self._root / "unet" / "config.json")
        width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
        shape = self._step.config.batch, catalog.MAX_TOKENS, width
        return torch.randn(shape, dtype=self._dtype), torch.randn(shape, dtype=self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self._step.config.compute_dtype)
        return dtype

    def _end_phase(self, name: str) -> None:
        trace, ledger = self._trace, self._trace.ledger
        allocator = ledger.allocator(DEVICE)
        self._phases.append(
            Phase(
                name,
                ledger.account(DEVICE).most,
                allocator.most_allocated,
                allocator.most_reserved,
                ledger.account(ANONYMOUS).most,
                ledger.account(PINNED).most,
                ledger.account(MAPPED).most,
                trace.moved["cpu", "cuda"],
                trace.moved["cuda", "cpu"],
                trace.moved["file", "cpu"],
                trace.flops,
            )
        )
        ledger.begin_phase()
        trace.moved.clear()
        trace.flops = 0


_STAGES: dict[str, tuple[Callable[..., Any], Callable[[_Run, Any], None]]] = {
    catalog.TEXT_ENCODER: (TextEncoder, _Run.encode),
    catalog.STAGE_1: (Stage1, _Run.draw),
    catalog.STAGE_2: (Stage2, _Run.enlarge),
    catalog.UPSCALER: (Upscaler, _Run.upscale),
}
"""Component -> its stage, and what is done with it."""
