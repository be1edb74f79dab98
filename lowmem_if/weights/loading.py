"""Component folders -> modules in memory; every failure told in plain words.

Networks are built on the meta device and materialized a tensor at a time (`modules/`), which
gives what the libraries' `from_pretrained` gives without holding anything twice. What does not match the
configuration is an error: transformers and diffusers would fill missing weights with noise and go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Block

from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.lora import Lora
from lowmem_if.cascade.module_files import file_names
from lowmem_if.cascade.strategies import QUANTISED
from lowmem_if.errors import CheckpointError, LowmemError, MissingPackage
from lowmem_if.hardware.machine import INSTALL_BITSANDBYTES, bitsandbytes_is_installed
from lowmem_if.weights.files import bf16_copies
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.library_differences import pil_image_processor, repaired_safety_checker
from lowmem_if.weights.modules.lora_merge import Merges
from lowmem_if.weights.modules.materialize import fill
from lowmem_if.weights.modules.meta_init import (
    diffusers_skeleton,
    move_buffers,
    quantised_skeleton,
    slots,
    transformers_skeleton,
)
from lowmem_if.weights.out_of_memory import is_shortage
from lowmem_if.weights.streaming.streamer import Streamed

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_text_encoder(
    root: Path, *, storage: str, compute: str, device: str
) -> transformers.T5EncoderModel:
    """The T5 encoder of `root/text_encoder`, on `device`, in evaluation mode.

    `int8` takes the published 8-bit file if it is there and quantises the 16-bit files if not; `nf4`
    always quantises. Everything that is not quantised is in `compute`, but for T5's `wo`, which
    transformers keeps in float32 beside float16.

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
    with _told(folder):
        config = transformers.T5Config(**read_config(folder / "config.json"))
        if storage in QUANTISED:
            settings = _quantisation(storage, dtype)
            skeleton = quantised_skeleton(transformers.T5EncoderModel, config, settings, dtype)
        else:
            skeleton = transformers_skeleton(transformers.T5EncoderModel, config)
        return _filled(skeleton, folder, dtype, device, eight_bit=storage == "int8")


def stream_text_encoder(
    root: Path, *, dtype: str, device: str, resident_bytes: int = 0
) -> Streamed:
    """The T5 encoder of `root/text_encoder`, one block at a time from its files."""
    folder = root / "text_encoder"
    with _told(folder):
        config = transformers.T5Config(**read_config(folder / "config.json"))
        return Streamed(
            transformers_skeleton(transformers.T5EncoderModel, config),
            Checkpoint.of_folder(folder),
            DTYPES[dtype],
            device,
            resident_bytes=resident_bytes,
            whole=(T5Block,),
        )


def load_tokenizer(folder: Path) -> Any:
    """The T5 or CLIP tokenizer of a folder.

    Raises:
        CheckpointError: `spiece.model` is missing or broken, or the vocabulary is the dummy one that
            transformers makes up when sentencepiece or protobuf cannot be used.
    """
    kind = read_config(folder / "tokenizer_config.json").get("tokenizer_class", "T5Tokenizer")
    is_t5 = "T5" in str(kind)
    if is_t5:
        _check_vocabulary(folder / "spiece.model")
    cls = transformers.T5Tokenizer if is_t5 else transformers.CLIPTokenizer
    with _told(folder):
        tokenizer = cls.from_pretrained(folder, local_files_only=True)
    if is_t5 and len([t for t in tokenizer.get_vocab() if "extra_id" not in t]) <= _DUMMY_TOKENS:
        raise CheckpointError(f"{folder}: spiece.model holds no vocabulary; fetch the folder again")
    return tokenizer


def _check_vocabulary(file: Path) -> None:
    """Of a broken vocabulary transformers says that tiktoken should be installed."""
    if file.name not in file_names(file.parent):
        raise CheckpointError(
            f"{file.parent}: {file.name} is missing; fetch or copy the folder again"
        )
    with _told(file):
        sentencepiece.SentencePieceProcessor(model_file=str(file))


_DUMMY_TOKENS = 4
"""Pad, end, unknown and the word mark: what a T5 tokenizer consists of without its vocabulary."""


def load_diffusers_model(
    folder: Path, cls: Any, *, dtype: str, device: str, lora: Sequence[Lora] = ()
) -> Any:
    """A UNet or VAE of a diffusers folder in `dtype` on `device`, in evaluation mode.

    Args:
        lora: what is merged into its weights.
    """
    config = read_config(folder / "config.json")
    with _told(folder):
        return _filled(diffusers_skeleton(cls, config), folder, DTYPES[dtype], device, lora=lora)


def stream_diffusers_model(
    folder: Path,
    cls: Any,
    *,
    dtype: str,
    device: str,
    resident_bytes: int = 0,
    lora: Sequence[Lora] = (),
) -> Streamed:
    """A UNet or VAE whose weights stay in its files, but for `resident_bytes` of them.

    Args:
        lora: what is merged into each weight whenever it comes.
    """
    config = read_config(folder / "config.json")
    with _told(folder):
        skeleton = diffusers_skeleton(cls, config)
        return Streamed(
            skeleton,
            Checkpoint.of_folder(folder) if lora else _open(folder, dtype, device),
            DTYPES[dtype],
            device,
            resident_bytes=resident_bytes,
            lora=lora,
        )


def load_clip_text(folder: Path, *, dtype: str, device: str) -> transformers.CLIPTextModel:
    """The upscaler's own text encoder in `dtype` on `device`, in evaluation mode."""
    return _load_transformers(transformers.CLIPTextModel, folder, dtype, device)


def stream_clip_text(folder: Path, *, dtype: str, device: str, resident_bytes: int = 0) -> Streamed:
    """The upscaler's own text encoder, layer by layer from its files."""
    cls = transformers.CLIPTextModel
    config = cls.config_class(**read_config(folder / "config.json"))
    with _told(folder):
        skeleton = transformers_skeleton(cls, config)
        return Streamed(
            skeleton,
            Checkpoint.of_folder(folder),
            DTYPES[dtype],
            device,
            resident_bytes=resident_bytes,
        )


def load_safety_checker(folder: Path) -> Any:
    """IF's safety checker in float32 on the CPU, in evaluation mode."""
    return _load_transformers(repaired_safety_checker(), folder, "float32", "cpu")


def load_watermarker(folder: Path) -> Any:
    """The holder of IF's mark; it has no 16-bit variant."""
    with _told(folder):
        return diffusers.pipelines.deepfloyd_if.IFWatermarker.from_pretrained(folder)


def load_feature_extractor(folder: Path) -> Any:
    """The safety checker's picture preparation, by Pillow: torchvision is not needed."""
    read_config(folder / "preprocessor_config.json")
    with _told(folder):
        return pil_image_processor().from_pretrained(folder, local_files_only=True)


def load_scheduler(folder: Path) -> Any:
    """A noise scheduler, of the class that its configuration names."""
    name = read_config(folder / "scheduler_config.json").get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if cls is None:
        raise CheckpointError(
            f"{folder}: diffusers has no scheduler {name!r}; fetch the folder again"
        )
    with _told(folder):
        return cls.from_pretrained(folder)


def _load_transformers(cls: Any, folder: Path, dtype: str, device: str) -> Any:
    config = cls.config_class(**read_config(folder / "config.json"))
    with _told(folder):
        return _filled(transformers_skeleton(cls, config), folder, DTYPES[dtype], device)


def _open(folder: Path, dtype: str, device: str) -> Checkpoint:
    """The weights of a network; on a CPU their bfloat16 copy, if that is what it computes in.

    Not of one that LoRAs are merged into: sums are rounded once, from what the files hold. From a copy
    they would be rounded twice, and streamed weights would differ from resident ones.
    """
    copy = (
        bf16_copies.find_converted(folder)
        if (dtype, device) == (bf16_copies.DTYPE, "cpu")
        else None
    )
    return Checkpoint.of_folder(copy or folder)


def _filled(
    skeleton: Any,
    folder: Path,
    dtype: torch.dtype,
    device: str,
    *,
    eight_bit: bool = False,
    lora: Sequence[Lora] = (),
) -> Any:
    """The skeleton with its weights on `device`, its unsaved buffers too."""
    with Checkpoint.of_folder(folder, eight_bit=eight_bit) as checkpoint:
        wanted = slots(skeleton, checkpoint, dtype)
        with Merges.into(wanted, lora) as merges:
            fill(skeleton, checkpoint, wanted, device, merges)
    return move_buffers(skeleton, device)


def _quantisation(storage: str, dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    if storage == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Translate what a library says about a folder or file into one line of ours.

    The loaders and the languages below them raise whatever they like, plain `Exception` among it;
    only memory errors are passed on as they are.
    """
    try:
        yield
    except LowmemError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CheckpointError(
            f"{path}: cannot be loaded ({line.strip()[:200]}); fetch or copy it again{_or(error)}"
        ) from error


def _or(error: Exception) -> str:
    """What else may be wrong: a library that has no such name is another one than was expected."""
    if not isinstance(error, AttributeError | ImportError | TypeError):
        return ""
    return (
        f"; if that does not help, transformers {transformers.__version__} or diffusers "
        f"{diffusers.__version__} is not one that lowmem-if knows: install another version"
    )
