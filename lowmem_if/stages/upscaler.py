"""The x4 upscaler, 256 to 1024 pixels, by `StableDiffusionUpscalePipeline`; other sizes in tiles.

It reads the prompt itself, with a small CLIP text encoder of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy
import torch
from diffusers import AutoencoderKL, StableDiffusionUpscalePipeline
from PIL import Image
from torch.nn.functional import avg_pool2d

from lowmem_if.cascade.configs import UpscalerIndex, read_as, read_config
from lowmem_if.cascade.strategies import RESIDENT, STREAM
from lowmem_if.planning.estimates.execution import TILES, WHOLE
from lowmem_if.request.image_spec import FACTOR
from lowmem_if.request.input_tiles import Box, boxes
from lowmem_if.stages.decoding.strip_decoder import decode_in_strips
from lowmem_if.stages.decoding.strip_layers import Hold
from lowmem_if.stages.pipelines import DrawingStage, load_unet, loading_options
from lowmem_if.stages.stage import ImageInputs, OnStep, StageConfig
from lowmem_if.weights.allocator import empty_cache
from lowmem_if.weights.loading import (
    load_clip_text,
    load_diffusers_model,
    stream_clip_text,
    stream_diffusers_model,
)
from lowmem_if.weights.small_parts import load_scheduler, load_tokenizer

_SEEDS = 2**63


class Upscaler(DrawingStage):
    """The upscaler's UNet, VAE and text encoder in memory."""

    @classmethod
    def load(cls, config: StageConfig) -> Self:
        step = config.step
        with ExitStack() as streams:
            unet = load_unet(config, streams)
            vae, hold = _load_vae(config, streams)
            text_encoder = _load_text_encoder(config, streams)
            pipeline = StableDiffusionUpscalePipeline(
                vae, text_encoder, load_tokenizer(config.folder("tokenizer")), unet,
                load_scheduler(config.folder("low_res_scheduler")),
                load_scheduler(config.folder("scheduler")),
                max_noise_level=_index(config).max_noise_level,
            )  # fmt: skip
            vae.enable_slicing()  # one image of a batch at a time, as its memory is predicted
            if step.config.decoding == TILES:  # of a plan of an earlier version
                vae.enable_tiling()
            elif step.config.decoding != WHOLE:
                decode_in_strips(vae, in_ram=step.config.decodes_in_ram, hold=hold)
            return cls(pipeline, [unet, vae, text_encoder], step, streams)

    def run(self, inputs: ImageInputs, on_step: OnStep) -> torch.Tensor:
        """Images (n, 3, 4 height, 4 width) in [0, 1].

        They are made from the stage before, (n, 3, height, width) in about [-1, 1], or from the user's
        own images, in tiles of `inputs.tile`.
        """
        if inputs.pictures is not None:
            return self._enlarge(inputs, inputs.pictures, on_step)
        width, height = inputs.images[0].size
        enlarged = [
            blended(
                width, height, inputs.tile, factor=FACTOR,
                draw=partial(self._tile, inputs, on_step, number),
            )
            for number in range(len(inputs.tasks))
        ]  # fmt: skip
        return torch.stack(enlarged)[:, :, : FACTOR * height, : FACTOR * width].contiguous()

    def _tile(
        self, inputs: ImageInputs, on_step: OnStep, number: int, tile: int, box: Box
    ) -> torch.Tensor:
        """A tile of the image `number`, from a seed of its own; the first one's is the task's."""
        task, image = inputs.tasks[number], inputs.images[number]
        done = tile * inputs.sampling.count
        alone = replace(
            inputs,
            tasks=[replace(task, seed=(task.seed + tile) % _SEEDS)],
            watching=None,  # a single tile is no preview
        )
        part = [_part_of(image, box)]
        return self._enlarge(alone, part, lambda step, total: on_step(done + step, total))[0]

    def _enlarge(self, inputs: ImageInputs, pictures: Any, on_step: OnStep) -> torch.Tensor:
        def after_step(step: int, total: int) -> None:
            if step == inputs.sampling.count:
                # The decoder follows. Its blocks have other sizes than the UNet's, so that it could use
                # little of the memory that the allocator keeps from the UNet.
                empty_cache(self._step.config.device)
            on_step(step, total)

        return self._draw(
            inputs,
            after_step,
            StableDiffusionUpscalePipeline,
            image=pictures,
            prompt=[task.words for task in inputs.tasks],
            negative_prompt=[task.negative_prompt for task in inputs.tasks],
            noise_level=inputs.sampling.noise_level,
        )

    @property
    def watchable(self) -> bool:
        """A preview needs the VAE, which is at hand only where all networks are on the device."""
        return self._step.config.strategy == RESIDENT

    def _look(self, guess: torch.Tensor) -> torch.Tensor:
        """A preview of a quarter of the side, which takes a sixteenth of the VAE's work.

        As in the pipeline, the VAE decodes in float32, and its weights are the same afterwards.
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
    """A part of an image; beyond the image's edges the last pixels are repeated."""
    right, lower = min(box.right, image.width), min(box.lower, image.height)
    part = image.crop((box.left, box.upper, right, lower))
    if (right, lower) == (box.right, box.lower):
        return part
    missing = ((0, box.lower - lower), (0, box.right - right), (0, 0))
    return Image.fromarray(numpy.pad(numpy.asarray(part), missing, mode="edge"))


def _index(config: StageConfig) -> UpscalerIndex:
    return read_as(config.folder(".") / "model_index.json", UpscalerIndex)


def _load_vae(config: StageConfig, streams: ExitStack) -> tuple[Any, Hold | None]:
    """The decoder, which needs more precision than 16 bits have, and what holds its streamed weights.

    The pipeline upcasts a float16 one itself, but cannot upcast streamed weights.
    """
    folder, options = config.folder("vae"), loading_options(config)
    streaming, dtype = config.step.config.strategy == STREAM, config.step.config.float_dtype
    upcast = dtype == "float16" and read_config(folder / "config.json").get("force_upcast", True)
    if dtype == "bfloat16" or (streaming and upcast):
        options["dtype"] = "float32"
    if not streaming:
        return load_diffusers_model(folder, AutoencoderKL, **options), None
    streamed = streams.enter_context(stream_diffusers_model(folder, AutoencoderKL, **options))
    return streamed.module, streamed.holding


def _load_text_encoder(config: StageConfig, streams: ExitStack) -> Any:
    folder, options = config.folder("text_encoder"), loading_options(config)
    if config.step.config.strategy != STREAM:
        return load_clip_text(folder, **options)
    return streams.enter_context(stream_clip_text(folder, **options)).module


def blended(
    width: int, height: int, tile: int, *, factor: int, draw: Callable[[int, Box], torch.Tensor]
) -> torch.Tensor:
    """The image (3, factor * height, factor * width) that `draw` returns in tiles, without seams.

    Where tiles overlap, each fades into the next, and their weights sum to one everywhere. A single tile
    is returned as it was drawn, bit for bit.

    Args:
        width, height, tile: of the image before it is enlarged; see `boxes`.
        draw: returns the tile with a number and place, (3, factor * its height, factor * its width).
    """
    places = boxes(width, height, tile)
    if len(places) == 1:
        return draw(0, places[0])
    columns = _weights({(box.left, box.right) for box in places}, factor)
    rows = _weights({(box.upper, box.lower) for box in places}, factor)
    lower, right = max(box.lower for box in places), max(box.right for box in places)
    picture = torch.zeros(3, factor * lower, factor * right)
    for number, box in enumerate(places):
        down, across = rows[box.upper, box.lower], columns[box.left, box.right]
        y = slice(factor * box.upper, factor * box.lower)
        x = slice(factor * box.left, factor * box.right)
        picture[:, y, x] += draw(number, box) * down[:, None] * across
    return picture


def _weights(spans: set[tuple[int, int]], factor: int) -> dict[tuple[int, int], torch.Tensor]:
    """The weight of each tile along one side: triangles, scaled to sum to one everywhere."""
    length = factor * max(stop for _, stop in spans)
    total = torch.zeros(length)
    tents = {}
    for start, stop in spans:
        size = factor * (stop - start)
        ramp = torch.arange(size) + 0.5
        tents[start, stop] = torch.minimum(ramp, size - ramp)
        total[factor * start : factor * stop] += tents[start, stop]
    return {
        (start, stop): tent / total[factor * start : factor * stop]
        for (start, stop), tent in tents.items()
    }
