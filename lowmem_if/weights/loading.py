"""Load the networks of a component's folders; every failure is an error with a plain message.

Networks are built on the meta device and materialized one tensor at a time (`modules/`). The result is
that of the libraries' `from_pretrained`, but nothing is held twice. Weights that do not match the
configuration are an error: transformers and diffusers would fill missing weights with noise and
continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Block

from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.lora.adapter import Lora
from lowmem_if.cascade.quantised_layers import INT8
from lowmem_if.cascade.strategies import QUANTISED
from lowmem_if.errors import MissingPackage
from lowmem_if.hardware.machine import INSTALL_BITSANDBYTES, bitsandbytes_is_installed
from lowmem_if.weights.files import weight_copies
from lowmem_if.weights.library_differences import repaired_safety_checker
from lowmem_if.weights.load_errors import errors_about
from lowmem_if.weights.modules.lora_merge import Merges
from lowmem_if.weights.modules.materialize import fill
from lowmem_if.weights.modules.meta_init import (
    diffusers_skeleton,
    move_buffers,
    quantised_skeleton,
    slots,
    transformers_skeleton,
)
from lowmem_if.weights.source import FILES, WeightSource
from lowmem_if.weights.streaming.streamer import Streamed

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_text_encoder(
    root: Path, *, storage: str, compute: str, device: str, source: WeightSource = FILES
) -> transformers.T5EncoderModel:
    """The T5 encoder of `root/text_encoder`, on `device`, in evaluation mode.

    `int8` uses the published 8-bit file if there is one, and else quantises the 16-bit files; `nf4`
    always quantises. Everything that is not quantised is in `compute`, except T5's `wo`, which
    transformers keeps in float32 if `compute` is float16.

    Raises:
        CheckpointError: a file is missing or broken, or does not match the configuration.
        MissingPackage: it is to be quantised, and bitsandbytes is not installed.
    """
    folder = root / "text_encoder"
    dtype = DTYPES[compute if storage in QUANTISED else storage]
    if storage in QUANTISED and not bitsandbytes_is_installed():
        raise MissingPackage(
            f"the plan stores the text encoder as {storage}, which needs bitsandbytes: "
            f"`{INSTALL_BITSANDBYTES}`, or plan again on this machine"
        )
    with errors_about(folder):
        config = transformers.T5Config(**read_config(folder / "config.json"))
        with source.building():
            if storage in QUANTISED:
                settings = _quantisation(storage, dtype)
                skeleton = quantised_skeleton(transformers.T5EncoderModel, config, settings, dtype)
            else:
                skeleton = transformers_skeleton(transformers.T5EncoderModel, config)
        return _filled(skeleton, folder, dtype, device, source, eight_bit=storage == "int8")


def stream_text_encoder(
    root: Path, *, dtype: str, device: str, resident_bytes: int = 0, source: WeightSource = FILES
) -> Streamed:
    """The T5 encoder of `root/text_encoder`, loaded block by block from its files."""
    folder = root / "text_encoder"
    with errors_about(folder):
        config = transformers.T5Config(**read_config(folder / "config.json"))
        with source.building():
            skeleton = transformers_skeleton(transformers.T5EncoderModel, config)
        return Streamed(
            skeleton,
            source.open_folder(folder),
            DTYPES[dtype],
            device,
            resident_bytes=resident_bytes,
            whole=(T5Block,),
            prefetch=source.prefetch,
            most_threads=source.most_threads,
        )


def load_diffusers_model(
    folder: Path,
    cls: Any,
    *,
    dtype: str,
    device: str,
    lora: Sequence[Lora] = (),
    channels_last: bool = False,
    source: WeightSource = FILES,
) -> Any:
    """A UNet or VAE of a diffusers folder in `dtype` on `device`, in evaluation mode.

    Args:
        lora: the LoRAs that are merged into its weights.
        channels_last: whether the weights of its convolutions have their channels last in memory.
    """
    config = read_config(folder / "config.json")
    with errors_about(folder):
        with source.building():
            skeleton = diffusers_skeleton(cls, config)
        return _filled(
            skeleton, folder, DTYPES[dtype], device, source, lora=lora, channels_last=channels_last
        )


def stream_diffusers_model(
    folder: Path,
    cls: Any,
    *,
    dtype: str,
    device: str,
    resident_bytes: int = 0,
    lora: Sequence[Lora] = (),
    channels_last: bool = False,
    storage: str | None = None,
    source: WeightSource = FILES,
) -> Streamed:
    """A UNet or VAE whose weights remain in its files, except `resident_bytes` of them.

    Args:
        storage: `int8` or `int4`, for a UNet whose weights are kept as whole numbers: `resident_bytes`
            of them in memory, others in the folder's 8-bit copy.
        lora: the LoRAs that are merged into each weight whenever it is loaded.
        channels_last: as for `load_diffusers_model`, on a CPU.
    """
    config = read_config(folder / "config.json")
    with errors_about(folder):
        with source.building():
            skeleton = diffusers_skeleton(cls, config)
        files = folder
        if not lora:
            fastest = partial(_fastest, dtype=dtype, device=device, channels_last=channels_last)
            files = fastest(folder) if storage is None else _smallest(folder, storage)
        return Streamed(
            skeleton,
            source.open_folder(files),
            DTYPES[dtype],
            device,
            resident_bytes=resident_bytes,
            lora=lora,
            channels_last=channels_last,
            storage=storage,
            prefetch=source.prefetch,
            most_threads=source.most_threads,
        )


def load_clip_text(
    folder: Path, *, dtype: str, device: str, source: WeightSource = FILES
) -> transformers.CLIPTextModel:
    """The upscaler's own text encoder in `dtype` on `device`, in evaluation mode."""
    return _load_transformers(transformers.CLIPTextModel, folder, dtype, device, source)


def stream_clip_text(
    folder: Path, *, dtype: str, device: str, resident_bytes: int = 0, source: WeightSource = FILES
) -> Streamed:
    """The upscaler's own text encoder, loaded layer by layer from its files."""
    cls = transformers.CLIPTextModel
    config = cls.config_class(**read_config(folder / "config.json"))
    with errors_about(folder):
        with source.building():
            skeleton = transformers_skeleton(cls, config)
        return Streamed(
            skeleton,
            source.open_folder(folder),
            DTYPES[dtype],
            device,
            resident_bytes=resident_bytes,
            prefetch=source.prefetch,
            most_threads=source.most_threads,
        )


def load_safety_checker(folder: Path) -> Any:
    """IF's safety checker in float32 on the CPU, in evaluation mode."""
    return _load_transformers(repaired_safety_checker(), folder, "float32", "cpu", FILES)


def _load_transformers(
    cls: Any, folder: Path, dtype: str, device: str, source: WeightSource
) -> Any:
    config = cls.config_class(**read_config(folder / "config.json"))
    with errors_about(folder):
        with source.building():
            skeleton = transformers_skeleton(cls, config)
        return _filled(skeleton, folder, DTYPES[dtype], device, source)


def _fastest(folder: Path, dtype: str, device: str, *, channels_last: bool) -> Path:
    """The folder that a network's weights are read from: on a CPU their bfloat16 copy, if it fits.

    A contiguous copy also serves a network with channels last; torch then reorders its weights.

    A network with LoRAs does not use the copy: sums are rounded once, from the numbers in the files.
    From a copy they would be rounded twice, and streamed weights would differ from resident ones.
    """
    if (dtype, device) != (weight_copies.BFLOAT16, "cpu"):
        return folder
    own = weight_copies.find_converted(folder) if channels_last else None
    return own or weight_copies.find_converted(folder, contiguous=True) or folder


def _smallest(folder: Path, storage: str) -> Path:
    """The folder that quantised weights are read from: their 8-bit copy, if there is one."""
    copy = weight_copies.find_converted(folder, dtype=INT8) if storage == INT8 else None
    return copy or folder


def _filled(
    skeleton: Any,
    folder: Path,
    dtype: torch.dtype,
    device: str,
    source: WeightSource,
    *,
    eight_bit: bool = False,
    lora: Sequence[Lora] = (),
    channels_last: bool = False,
) -> Any:
    """The network with its weights and its unsaved buffers on `device`."""
    with source.open_folder(folder, eight_bit=eight_bit) as checkpoint:
        wanted = slots(skeleton, checkpoint, dtype, channels_last=channels_last)
        with Merges.into(wanted, lora) as merges:
            fill(skeleton, checkpoint, wanted, device, merges, source.most_threads)
    return move_buffers(skeleton, device)


def _quantisation(storage: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    if storage == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
