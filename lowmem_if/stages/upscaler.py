"""The x4 upscaler, 256 to 1024 pixels, by `StableDiffusionUpscalePipeline`; other sizes in tiles.

It reads the prompt itself, with a small CLIP text encoder of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import AutoencoderKL, StableDiffusionUpscalePipeline
from PIL import Image
from torch.nn.functional import avg_pool2d

from lowmem_if.cascade.configs import UpscalerIndex, read_as, read_config
from lowmem_if.cascade.strategies import RESIDENT, STREAM
from lowmem_if.planning.plan import Step
from lowmem_if.request.image_spec import FACTOR
from lowmem_if.request.tiling import Box
from lowmem_if.stages.pipelines import Batch, DrawingStage, loading_device, take_unet
from lowmem_if.stages.tiles import blended
from lowmem_if.weights.allocator import empty_cache
from lowmem_if.weights.loading import (
    load_clip_text,
    load_diffusers_model,
    load_scheduler,
    load_tokenizer,
    stream_clip_text,
    stream_diffusers_model,
)

_SEEDS = 2**63


class Upscaler(DrawingStage):
    """The upscaler's UNet, VAE and text encoder in memory."""

    def __init__(self, root: Path, step: Step) -> None:
        with ExitStack() as streams:
            unet = take_unet(root / "unet", step, streams)
            vae = _take_vae(root / "vae", step, streams)
            text_encoder = _take_text_encoder(root / "text_encoder", step, streams)
            pipeline = StableDiffusionUpscalePipeline(
                vae, text_encoder, load_tokenizer(root / "tokenizer"), unet,
                load_scheduler(root / "low_res_scheduler"), load_scheduler(root / "scheduler"),
                max_noise_level=read_as(root / "model_index.json", UpscalerIndex).max_noise_level,
            )  # fmt: skip
            vae.enable_slicing()  # one picture of a batch at a time, as its memory is predicted
            if step.config.vae_tiling:
                vae.enable_tiling()
            super().__init__(pipeline, [unet, vae, text_encoder], step, streams)
            self._strategy, self._device = step.config.strategy, step.config.device

    def draw(self, batch: Batch, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, 4 height, 4 width) in [0, 1], from (n, 3, height, width) in about [-1, 1]."""
        return self._enlarge(batch, pictures)

    def draw_own(self, batch: Batch) -> torch.Tensor:
        """The user's own pictures (n, 3, 4 height, 4 width) in [0, 1], in tiles of `batch.tile`."""
        width, height = batch.images[0].size
        enlarged = [
            blended(
                width, height, batch.tile, factor=FACTOR, draw=partial(self._tile, batch, number)
            )
            for number in range(len(batch.tasks))
        ]
        return torch.stack(enlarged)[:, :, : FACTOR * height, : FACTOR * width].contiguous()

    def _tile(self, batch: Batch, number: int, tile: int, box: Box) -> torch.Tensor:
        """A tile of the picture `number`, each from a seed of its own, the first from the task's."""
        task, image = batch.tasks[number], batch.images[number]
        done = tile * batch.sampling.count
        alone = replace(
            batch,
            tasks=[replace(task, seed=(task.seed + tile) % _SEEDS)],
            on_step=lambda step: batch.on_step(done + step),
            watching=None,  # a tile alone is no picture to look at
        )
        return self._enlarge(alone, [_part_of(image, box)])[0]

    def _enlarge(self, batch: Batch, pictures: Any) -> torch.Tensor:
        return self._draw(
            replace(batch, on_step=partial(self._after_step, batch)),
            StableDiffusionUpscalePipeline,
            image=pictures,
            prompt=[task.words for task in batch.tasks],
            negative_prompt=[task.negative_prompt for task in batch.tasks],
            noise_level=batch.sampling.noise_level,
        )

    def _after_step(self, batch: Batch, step: int) -> None:
        """After the last step, before decoding: give back what the UNet took on an accelerator.

        The decoder's blocks are of other sizes than the UNet's, so it could use little of that.
        """
        if step == batch.sampling.count:
            empty_cache(self._device)
        batch.on_step(step)

    @property
    def watchable(self) -> bool:
        """A look takes the VAE, which is only at hand where all networks stay on the device."""
        return self._strategy == RESIDENT

    def _look(self, guess: torch.Tensor) -> torch.Tensor:
        """A quarter of the side is enough to look at, and takes a sixteenth of the VAE's work.

        As the pipeline does it: the VAE decodes in float32, and weights come back from there the same.
        """
        vae = self._pipeline.vae
        dtype = vae.dtype
        upcast = dtype == torch.float16 and vae.config.force_upcast
        if upcast:
            vae.to(torch.float32)
        small = avg_pool2d(guess.float(), 4) / vae.config.scaling_factor
        picture: torch.Tensor = vae.decode(small.to(vae.dtype), return_dict=False)[0]
        if upcast:
            vae.to(dtype)
        return super()._look(picture)


def _part_of(image: Image.Image, box: Box) -> Image.Image:
    """A part of a picture; where it reaches beyond, the last pixels go on."""
    right, lower = min(box.right, image.width), min(box.lower, image.height)
    part = image.crop((box.left, box.upper, right, lower))
    if (right, lower) == (box.right, box.lower):
        return part
    missing = ((0, box.lower - lower), (0, box.right - right), (0, 0))
    return Image.fromarray(numpy.pad(numpy.asarray(part), missing, mode="edge"))


def _take_vae(folder: Path, step: Step, streams: ExitStack) -> Any:
    """The decoder needs more precision than 16 bits have; from float16 the pipeline upcasts it itself,
    which weights that stream cannot follow."""
    streaming, dtype = step.config.strategy == STREAM, step.config.storage_dtype
    upcast = dtype == "float16" and read_config(folder / "config.json").get("force_upcast", True)
    options: Any = {
        "dtype": "float32" if dtype == "bfloat16" or (streaming and upcast) else dtype,
        "device": loading_device(step),
    }
    if not streaming:
        return load_diffusers_model(folder, AutoencoderKL, **options)
    return streams.enter_context(stream_diffusers_model(folder, AutoencoderKL, **options)).module


def _take_text_encoder(folder: Path, step: Step, streams: ExitStack) -> Any:
    options: Any = {"dtype": step.config.storage_dtype, "device": loading_device(step)}
    if step.config.strategy != STREAM:
        return load_clip_text(folder, **options)
    return streams.enter_context(stream_clip_text(folder, **options)).module
