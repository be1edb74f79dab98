"""What the image stages share: their schedulers, placing a pipeline, seeding it, drawing, styles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.pipelines import deepfloyd_if

from lowmem_if.cascade.strategies import MODEL_OFFLOAD, RESIDENT, SEQUENTIAL_OFFLOAD, STREAM
from lowmem_if.planning.estimates.memory_layout import CHANNELS_LAST
from lowmem_if.planning.plan import Step
from lowmem_if.request.denoising.noise_scheduler import DPM_SOLVER
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.sampling import Sampling
from lowmem_if.stages.compiling import compile_unet, forget_compiled
from lowmem_if.stages.drawing.noise import float32_noise
from lowmem_if.stages.drawing.shortened import shortened
from lowmem_if.stages.finite import checked
from lowmem_if.stages.previews import watched
from lowmem_if.stages.stage import ImageInputs, OnStep, StageConfig
from lowmem_if.weights.loading import load_diffusers_model, stream_diffusers_model
from lowmem_if.weights.small_parts import load_scheduler

STYLE_SHARE = 0.15
"""The style's own share of the predicted noise: `positive_mixer` in DeepFloyd's package."""

_COLOURS = 3
"""Channels of the predicted noise; those of the variance follow, which is the prompt's."""

LAMBDA_MIN = -5.1
"""Where the solver stops at the noisy end of a cosine schedule, whose logarithm is infinite there.

IF's own configurations contain it."""

_ALL_BYTES = 1 << 62


class DrawingStage:
    """A diffusers pipeline and its networks in memory, under the step's strategy."""

    def __init__(
        self, pipeline: Any, modules: list[torch.nn.Module], step: Step, streams: ExitStack
    ) -> None:
        self.modules = modules
        self._pipeline, self._streams = pipeline, streams.pop_all()
        self._others: dict[type[Any], Any] = {}
        self._step = step
        self._compiled = step.config.speedup > 1
        place(pipeline, step)
        if self._compiled:
            compile_unet(pipeline.unet)

    @property
    def pipeline(self) -> Any:
        """The pipeline for images from text, with all networks of the stage."""
        return self._pipeline

    def _draw(
        self, inputs: ImageInputs, on_step: OnStep, kind: type[Any], **arguments: Any
    ) -> torch.Tensor:
        """The images as a tensor on the CPU, one for each task, drawn by a pipeline of class `kind`."""
        pipeline = self._as(kind)
        watching = inputs.watching if self.watchable else None
        style = nullcontext() if inputs.style is None else styled(pipeline.unet, inputs.style)
        watched_steps = watched(pipeline.scheduler, watching, self._look)
        fewer_passes = shortened(pipeline, _with_style(inputs))
        with fewer_passes, style, float32_noise(pipeline), watched_steps, checked(pipeline):
            pictures = pipeline(
                guidance_scale=inputs.sampling.guidance_scale,
                # One CPU generator for each image, and noise in float32: a seed gives the same image
                # on every device, in every batch and number type.
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in inputs.seeds],
                output_type="pt",
                callback=lambda index, _timestep, _latents: on_step(index + 1, inputs.total_steps),
                **schedule(inputs.sampling),
                **arguments,
            ).images
        return pictures.cpu()

    def _as(self, kind: type[Any]) -> Any:
        """The stage's networks in another pipeline; they are loaded only once.

        Under model offload a pipeline unloads only what it has hooked itself. Its hooks replace those of
        the pipeline before, on the same networks.
        """
        if kind is type(self._pipeline):
            return self._pipeline
        if kind not in self._others:
            other = kind(**self._pipeline.components, requires_safety_checker=False)
            if self._step.config.strategy == MODEL_OFFLOAD:
                place(other, self._step)
            else:
                other.set_progress_bar_config(disable=True)
            self._others[kind] = other
        return self._others[kind]

    def _shape(self, task: ImageSpec) -> dict[str, int]:
        """The pipeline's arguments for an image that is not square; none for a square one."""
        width, height = task.proportions
        if width == height:
            return {}
        side = self._pipeline.unet.config.sample_size
        # As diffusers' img2img pipelines do: the longer side is a multiple of eight.
        longer = round(side / 8 * max(width, height) / min(width, height)) * 8
        return (
            {"width": longer, "height": side}
            if width > height
            else {"width": side, "height": longer}
        )

    @property
    def watchable(self) -> bool:
        """Whether previews can be made."""
        return True

    def _look(self, guess: torch.Tensor) -> torch.Tensor:
        """The preview, in [0, 1], of what a step predicts, in about [-1, 1]."""
        return to_unit_range(guess)

    def close(self) -> None:
        """Remove all hooks and drop every reference to the networks."""
        remove_hooks(self._pipeline)
        self._streams.close()
        self._pipeline, self._others, self.modules = None, {}, []
        if self._compiled:
            forget_compiled()


def _with_style(inputs: ImageInputs) -> Sampling:
    """The sampling; a style adds a third part to the batch, so its halves are not those of guidance."""
    sampling = inputs.sampling
    if inputs.style is None:
        return sampling
    return replace(sampling, shortcuts=replace(sampling.shortcuts, guided_share=1.0))


def load_unet(config: StageConfig, streams: ExitStack) -> Any:
    """The UNet of a stage, in memory or streaming; a streaming one is closed with `streams`."""
    step, folder = config.step, config.folder("unet")
    options = loading_options(config)
    # A LoRA of scale 0 is left out, so that a bfloat16 copy of the weights can be used.
    options["lora"] = [one for one in step.lora if one.scale]
    options["channels_last"] = channels_last = step.config.layout == CHANNELS_LAST
    quantised = step.config.quantises_unet
    if step.config.strategy != STREAM and not quantised:
        unet = load_diffusers_model(folder, UNet2DConditionModel, **options)
    else:
        options["resident_bytes"] = step.config.resident_bytes
        if quantised:
            options["storage"] = step.config.storage_dtype
        if step.config.strategy == RESIDENT:
            options["resident_bytes"] = _ALL_BYTES
        streamed = stream_diffusers_model(folder, UNet2DConditionModel, **options)
        unet = streams.enter_context(streamed).module
    if channels_last:
        unet.conv_in.register_forward_pre_hook(_with_channels_last)
    return unet


def _with_channels_last(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The input of the first convolution in the layout that all activations after it then have."""
    return (args[0].contiguous(memory_format=torch.channels_last),)


def loading_options(config: StageConfig) -> dict[str, Any]:
    """The number type, the device and the source of a network's weights. Offloading starts in RAM."""
    step = config.step
    device = step.config.device if step.config.strategy in (RESIDENT, STREAM) else "cpu"
    return {"dtype": step.config.float_dtype, "device": device, "source": config.source}


def place(pipeline: Any, step: Step) -> None:
    """Apply the step's strategy to a pipeline, and turn its own progress bar off."""
    pipeline.set_progress_bar_config(disable=True)
    if step.config.strategy == MODEL_OFFLOAD:
        pipeline.enable_model_cpu_offload(device=step.config.device)
    elif step.config.strategy == SEQUENTIAL_OFFLOAD:
        pipeline.enable_sequential_cpu_offload(device=step.config.device)


def remove_hooks(pipeline: Any) -> None:
    """Remove diffusers' and accelerate's hooks, so that nothing refers to the modules any more."""
    if pipeline is not None:
        pipeline.remove_all_hooks()


def schedule(sampling: Sampling) -> dict[str, Any]:
    """The pipeline's arguments for the number or list of timesteps, and for the strength."""
    strength = {} if sampling.strength is None else {"strength": sampling.strength}
    if sampling.timesteps:
        return strength | {"timesteps": getattr(deepfloyd_if, f"{sampling.timesteps}_timesteps")}
    return strength | {"num_inference_steps": sampling.steps}


def to_unit_range(picture: torch.Tensor) -> torch.Tensor:
    """An output of stage 1 or 2, in about [-1, 1], as [0, 1]: what the IF pipelines do at their end."""
    return (picture / 2 + 0.5).clamp(0, 1)


def baked_in(step: Step) -> tuple[object, ...]:
    """The settings of a step's sampling that its scheduler is made with; others are set per call."""
    sampling = step.sampling
    return () if sampling is None else (sampling.scheduler, sampling.thresholding)


def stage_scheduler(folder: Path, step: Step) -> Any:
    """The noise scheduler in `folder`, changed by the step's sampling; it is the same in every mode."""
    scheduler, sampling = load_scheduler(folder), step.sampling
    assert sampling is not None
    if sampling.thresholding is not None:
        names = ("dynamic_thresholding_ratio", "sample_max_value")
        own = dict(zip(names, sampling.thresholding, strict=False))
        scheduler = type(scheduler).from_config(scheduler.config, thresholding=True, **own)
    if sampling.scheduler != DPM_SOLVER:
        return scheduler
    # It keeps `variance_type`, and separates the channels of noise and variance itself.
    least = scheduler.config.get("lambda_min_clipped", LAMBDA_MIN)
    return DPMSolverMultistepScheduler.from_config(scheduler.config, lambda_min_clipped=least)


@contextmanager
def styled(unet: Any, style: torch.Tensor) -> Iterator[None]:
    """Inside, a UNet draws in a style, in any pipeline: prompt and style are two texts.

    It works as DeepFloyd's own package does (`deepfloyd_if/modules/base.py`, `style_transfer`). The
    style replaces the prompt where the UNet reads a text as a whole, next to the timestep, and a part
    of the noise is predicted from the style alone. The UNet's batch is extended by the prompts' part
    with the style as text, and mixed at the end, so the pipeline gets the usual shapes, with guidance
    or without.

    Args:
        style: embeddings (n, 77, width) for the n pictures of every call.
    """
    count = len(style)

    def widen(_module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        sample, *others = args
        texts, labels = given["encoder_hidden_states"], given.get("class_labels")
        wider = {"encoder_hidden_states": torch.cat([texts, style.to(texts)])}
        if labels is not None:
            wider["class_labels"] = torch.cat([labels, labels[-count:]])
        return (torch.cat([sample, sample[-count:]]), *others), given | wider

    def as_a_whole(_module: Any, args: tuple[Any, ...]) -> Any:
        (texts,) = args
        return torch.cat([texts[: -2 * count], texts[-count:], texts[-count:]])

    def mix(_module: Any, _args: Any, output: tuple[torch.Tensor]) -> Any:
        (noise,) = output
        prompt, own = noise[-2 * count : -count], noise[-count:]
        mixed = (1 - STYLE_SHARE) * prompt[:, :_COLOURS] + STYLE_SHARE * own[:, :_COLOURS]
        return (torch.cat([noise[: -2 * count], torch.cat([mixed, prompt[:, _COLOURS:]], dim=1)]),)

    with ExitStack() as hooks:
        for handle in (
            unet.register_forward_pre_hook(widen, with_kwargs=True),
            unet.add_embedding.register_forward_pre_hook(as_a_whole),
            unet.register_forward_hook(mix),
        ):
            hooks.callback(handle.remove)
        yield
