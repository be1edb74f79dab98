"""Load the small folders of a component: tokenizer, noise scheduler, image preparation, watermark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import transformers

from lowmem_if.cascade.configs import read_config
from lowmem_if.cascade.module_files import file_names
from lowmem_if.errors import CheckpointError
from lowmem_if.weights.library_differences import pil_image_processor
from lowmem_if.weights.load_errors import errors_about

_DUMMY_TOKENS = 4
"""Pad, end, unknown and the word mark: the vocabulary of a T5 tokenizer without its file."""


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
    with errors_about(folder):
        tokenizer = cls.from_pretrained(folder, local_files_only=True)
    if is_t5 and len([t for t in tokenizer.get_vocab() if "extra_id" not in t]) <= _DUMMY_TOKENS:
        raise CheckpointError(f"{folder}: spiece.model holds no vocabulary; fetch the folder again")
    return tokenizer


def _check_vocabulary(file: Path) -> None:
    """Check it first: transformers reports a broken vocabulary as a missing tiktoken package."""
    if file.name not in file_names(file.parent):
        raise CheckpointError(
            f"{file.parent}: {file.name} is missing; fetch or copy the folder again"
        )
    with errors_about(file):
        sentencepiece.SentencePieceProcessor(model_file=str(file))


def load_watermarker(folder: Path) -> Any:
    """The network that holds IF's watermark; it has no 16-bit variant."""
    with errors_about(folder):
        return diffusers.pipelines.deepfloyd_if.IFWatermarker.from_pretrained(folder)


def load_feature_extractor(folder: Path) -> Any:
    """The safety checker's image preparation, by Pillow: torchvision is not needed."""
    read_config(folder / "preprocessor_config.json")
    with errors_about(folder):
        return pil_image_processor().from_pretrained(folder, local_files_only=True)


def load_scheduler(folder: Path) -> Any:
    """A noise scheduler of the class that its configuration names."""
    name = read_config(folder / "scheduler_config.json").get("_class_name")
    cls = getattr(diffusers, str(name), None)
    if cls is None:
        raise CheckpointError(
            f"{folder}: diffusers has no scheduler {name!r}; fetch the folder again"
        )
    with errors_about(folder):
        return cls.from_pretrained(folder)
