"""Choose the files of a module folder that a run loads: 8-bit, fp16 or plain.

The Hub repositories contain the same weights several times: float32 and fp16, `.bin` and safetensors,
an 8-bit text encoder, the original format in the root. Only one set is read or downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FILE = re.compile(
    r"(?P<stem>model|diffusion_pytorch_model)"
    r"(?:\.(?P<variant>[a-z0-9_]+))?"
    r"(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?"
    r"\.safetensors"
)
_INDEX = re.compile(
    r"(?:model|diffusion_pytorch_model)\.safetensors\.index(?:\.(?P<variant>[a-z0-9_]+))?\.json"
)
_PICKLE = re.compile(r"(?:pytorch_model|diffusion_pytorch_model)[\w.-]*\.bin")
PREFERENCE = ("fp16", "bf16", None)
"""Variants in order of preference; the plain files are usually float32, so they are the last."""

_VOCABULARIES = ({"spiece.model"}, {"vocab.json", "merges.txt"}, {"tokenizer.json"})
SMALL_FILES = (".json", ".txt", ".model")
"""Endings of the files that are read and downloaded from the small folders without weights."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of weight files of a module folder.

    Attributes:
        name: diffusers' name of the variant; None for the plain files.
        files: names of all safetensors files of the set, in shard order.
        index: the shard index file; None for a single file.
        missing: names of the shards that the numbering implies but that do not exist.
    """

    name: str | None
    files: tuple[str, ...]
    index: str | None
    missing: tuple[str, ...] = ()

    @property
    def all_files(self) -> tuple[str, ...]:
        return (*self.files, self.index) if self.index else self.files


def find_variants(names: Iterable[str]) -> dict[str | None, Variant]:
    """Every set among the file names of one folder, complete or not, by variant name."""
    names = sorted(names)
    found: dict[str | None, list[re.Match[str]]] = {}
    for match in filter(None, map(_FILE.fullmatch, names)):
        found.setdefault(match["variant"], []).append(match)
    indexes = {m["variant"]: m.string for m in filter(None, map(_INDEX.fullmatch, names))}
    return {name: _variant(name, files, indexes.get(name)) for name, files in found.items()}


def choose_variant(names: Iterable[str], *, eight_bit: bool = False) -> Variant | None:
    """The set to load: the published 8-bit file if it exists and `eight_bit` is set, else a 16-bit one.

    None: the folder contains no safetensors weights.
    """
    variants = find_variants(names)
    order = ("8bit", *PREFERENCE) if eight_bit else PREFERENCE
    return next((variants[name] for name in order if name in variants), None)


def lacks_vocabulary(folder: str, names: Iterable[str]) -> bool:
    """Whether a folder with these files is a tokenizer folder without a vocabulary."""
    return folder == "tokenizer" and not any(needed <= {*names} for needed in _VOCABULARIES)


def _variant(name: str | None, matches: list[re.Match[str]], index: str | None) -> Variant:
    single = [m.string for m in matches if not m["shard"]]
    if single:
        return Variant(name, (single[0],), None)
    count = int(matches[0]["shards"])
    stem = matches[0]["stem"] + (f".{name}" if name else "")
    wanted = tuple(f"{stem}-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1))
    present = {m.string for m in matches}
    return Variant(name, wanted, index, tuple(file for file in wanted if file not in present))


def is_pickle(name: str) -> bool:
    """Whether a file of a module folder holds weights as a pickle, as libraries wrote before."""
    return bool(_PICKLE.fullmatch(name))


def safetensors_name(pickle: str) -> str:
    """The name of the safetensors file that holds what a pickle of this name holds."""
    return re.sub(r"^pytorch_model", "model", pickle).removesuffix(".bin") + ".safetensors"
