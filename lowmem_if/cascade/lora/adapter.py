"""LoRA files that a user gives: find them, read their headers, and identify them by content."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowmem_if.cascade.catalog import COMPONENTS, STAGE_1, STAGE_2, component_name
from lowmem_if.cascade.lora.lora_folders import is_there, lora_file
from lowmem_if.cascade.lora.lora_keys import Pair, read_pairs
from lowmem_if.cascade.lora.peft_configuration import CONFIGURATION, configuration_file
from lowmem_if.cascade.safetensors_header import read_header, unreadable
from lowmem_if.cascade.transfer_sizes import LOADER_THREADS
from lowmem_if.errors import LoraError, RequestError

STAGES = (STAGE_1, STAGE_2)
"""The components that a LoRA may be for."""

BLOCK = 2**20
"""How many numbers of a weight are merged at once."""

_ITEM = 4
"""Bytes per number while it is merged."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file of the user.

    Attributes:
        path: absolute path of the file; a run needs the file until the stage has drawn.
        scale: multiplier of what it adds, applied in addition to its own alpha; 0 disables it.
        stage: `stage_1` or `stage_2`; None until a plan has compared its shapes.
        digest: SHA-256 of the file, and of peft's configuration next to it.
        merge_bytes: RAM needed while it is merged into a network.
    """

    path: str
    scale: float = 1.0
    stage: str | None = None
    digest: str = ""
    merge_bytes: int = field(default=0, repr=False)

    def __str__(self) -> str:
        return f"{Path(self.path).name} at {self.scale:g}"


def loras(given: Any) -> tuple[Lora, ...]:
    """One LoRA or several, as paths, `[STAGE=]FILE[:SCALE]` or `Lora`; each file's header is read.

    Raises:
        RequestError: a stage takes no LoRA, or a scale is not a number.
        LoraError, CheckpointError: a file is missing, broken, or not a LoRA.
    """
    if given is None:
        return ()
    several = [given] if isinstance(given, str | os.PathLike | Lora) else given
    if not isinstance(several, Iterable):
        raise RequestError(f"lora {given!r} is not like FILE:SCALE, or a list of these")
    return tuple(one if isinstance(one, Lora) and one.digest else _look_at(one) for one in several)


def of_stage(lora: Iterable[Lora], component: str) -> tuple[Lora, ...]:
    """The LoRAs among `lora` that are for a component."""
    return tuple(one for one in lora if one.stage == component)


def merge_bytes_of(lora: Iterable[Lora]) -> int:
    """Bytes of RAM for all LoRAs of a step: all of them are merged into one weight at the same time."""
    return sum(one.merge_bytes for one in lora if one.scale)


def parse_lora(text: str) -> tuple[str | None, str, float]:
    """(stage, path, scale) from `[STAGE=]FILE[:SCALE]`; a path may contain colons, as on Windows.

    Raises:
        RequestError: the stage takes no LoRA, or the scale is not a number.
    """
    stage, equals, path = text.partition("=")
    stage = component_name(stage)
    if not equals or stage not in COMPONENTS:
        stage, path = "", text
    elif stage not in STAGES:
        raise RequestError(f"{stage} takes no LoRA: give it to {' or '.join(STAGES)}")
    head, colon, tail = path.rpartition(":")
    if colon and not is_there(path):
        try:
            scale = float(tail)
        except ValueError:
            return stage or None, path, 1.0
        return stage or None, head, _checked_scale(scale)
    return stage or None, path, 1.0


def file_digest(path: str | Path) -> str:
    """SHA-256 of the current content of a LoRA file, and of peft's configuration next to it.

    Raises:
        LoraError: the file is missing.
        CheckpointError: the file cannot be read.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
        if file.with_name(CONFIGURATION).is_file():
            configuration = configuration_file(file, read_header(file))
            digest.update(configuration.read_bytes() if configuration else b"")
        return digest.hexdigest()
    except FileNotFoundError:
        raise LoraError(
            f"the LoRA {file} no longer exists: put it back, or start again without it"
        ) from None
    except OSError as error:
        raise unreadable(file, error) from error


def _look_at(given: Any) -> Lora:
    """A LoRA with its stage if one is given, its digest, and the memory that merging it takes."""
    if isinstance(given, Lora):
        stage, path, scale = given.stage, given.path, _checked_scale(given.scale)
        if stage not in (None, *STAGES):
            raise RequestError(f"{stage!r} takes no LoRA: give it to {' or '.join(STAGES)}")
    elif isinstance(given, str):
        stage, path, scale = parse_lora(given)
    elif isinstance(given, os.PathLike):
        stage, path, scale = None, os.fspath(given), 1.0
    else:
        raise RequestError(f"lora {given!r} is not like FILE:SCALE")
    file = lora_file(path)
    held = max(map(_numbers_held, read_pairs(file)))
    return Lora(str(file), scale, stage, file_digest(file), LOADER_THREADS * _ITEM * held)


def _numbers_held(pair: Pair) -> int:
    """Numbers that a merging thread holds: both matrices, a block of the weight and of its change."""
    return pair.numbers + 2 * min(BLOCK, math.prod(pair.shape))


def _checked_scale(scale: Any) -> float:
    real = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not real or not math.isfinite(scale):
        raise RequestError(f"the scale {scale!r} of a LoRA is not a number: give one like 0.8")
    return float(scale)
