"""Component folders -> modules, by the libraries' own loaders; every failure told in plain words.

Headers are read and checked before a byte is allocated, and what the loader could not match is an
error here: transformers and diffusers would fill missing weights with noise and go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import torch
import transformers

from lowmem_if.errors import CheckpointError
from lowmem_if.planning.component_files import file_names, weight_variant
from lowmem_if.planning.configurations import read_config
from lowmem_if.planning.headers import read_header
from lowmem_if.planning.strategies import QUANTISED
from lowmem_if.weights.library_repairs import (
    conversion_errors_kept,
    declare_eight_bit,
    repaired_safety_checker,
)
from lowmem_if.weights.memory import is_out_of_memory

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_text_encoder(
    root: Path, *, storage: str, compute: str, device: str
) -> transformers.T5EncoderModel:
    """The T5 encoder of `root/text_encoder`, on `device`, in evaluation mode.

    `int8` takes the published 8-bit file if it is there and quantises the 16-bit files if not; `nf4`
    always quantises. Everything that is not quantised is in `compute`.

    Raises:
        CheckpointError: a file is missing or broken, or does not match the configuration.
    """
    folder = root / "text_encoder"
    variant = weight_variant(folder, eight_bit=storage == "int8")
    kwargs: dict[str, Any] = {"dtype": DTYPES[compute if storage in QUANTISED else storage]}
    with _told(folder):
        config = transformers.T5Config(**read_config(folder / "config.json"))
        if variant.name == "8bit":
            config = declare_eight_bit(config)
        elif storage in QUANTISED:
            kwargs["quantization_config"] = _quantisation(storage, kwargs["dtype"])
        if device != "cpu" or storage in QUANTISED:
            # Without a map the quantisers would choose an accelerator by themselves.
            kwargs["device_map"] = {"": device}
        return _load(transformers.T5EncoderModel, folder, variant.name, config=config, **kwargs)


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


def load_diffusers_model(folder: Path, cls: Any, *, dtype: str, device: str) -> Any:
    """A UNet or VAE of a diffusers folder in `dtype` on `device`, in evaluation mode."""
    variant = weight_variant(folder)
    read_config(folder / "config.json")
    placed: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    with _told(folder):
        return _load(cls, folder, variant.name, torch_dtype=DTYPES[dtype], **placed)


def load_clip_text(folder: Path, *, dtype: str, device: str) -> transformers.CLIPTextModel:
    """The upscaler's own text encoder in `dtype` on `device`, in evaluation mode."""
    return _load_transformers(transformers.CLIPTextModel, folder, dtype).to(device)


def load_safety_checker(folder: Path) -> Any:
    """IF's safety checker in float32 on the CPU, in evaluation mode."""
    return _load_transformers(repaired_safety_checker(), folder, "float32")


def load_watermarker(folder: Path) -> Any:
    """The holder of IF's mark; it has no 16-bit variant."""
    with _told(folder):
        return diffusers.pipelines.deepfloyd_if.IFWatermarker.from_pretrained(folder)


def load_feature_extractor(folder: Path) -> Any:
    """The safety checker's picture preparation, by Pillow: torchvision is not needed."""
    read_config(folder / "preprocessor_config.json")
    with _told(folder):
        return transformers.CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)


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


def _load_transformers(cls: Any, folder: Path, dtype: str) -> Any:
    variant = weight_variant(folder)
    read_config(folder / "config.json")
    with _told(folder):
        return _load(cls, folder, variant.name, dtype=DTYPES[dtype])


def _load(cls: Any, folder: Path, variant: str | None, **kwargs: Any) -> Any:
    for file in weight_variant(folder, eight_bit=variant == "8bit").files:
        read_header(folder / file)
    model, info = cls.from_pretrained(
        folder, variant=variant, local_files_only=True, use_safetensors=True,
        output_loading_info=True, **kwargs,
    )  # fmt: skip
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info.get(kind):
            first = sorted(map(str, info[kind]))[0]
            what = kind.removesuffix("_keys")
            raise CheckpointError(
                f"{folder}: {len(info[kind])} {what} weights, first {first}; "
                "its files are not those of its config.json: fetch or copy the folder again"
            )
    return model.eval()


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
    hidden: list[BaseException] = []
    try:
        with conversion_errors_kept(hidden):
            yield
    except CheckpointError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for cause in filter(is_out_of_memory, hidden):
            raise cause from error
        line = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CheckpointError(
            f"{path}: cannot be loaded ({line.strip()[:200]}); fetch or copy it again"
        ) from error
