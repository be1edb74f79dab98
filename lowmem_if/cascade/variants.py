"""Which of a module folder's files a run loads: the 8-bit file, the fp16 shards, the plain ones.

The Hub repositories hold the same weights several times (float32 and fp16, `.bin` and safetensors,
an 8-bit text encoder, the original format in the root). Exactly one set is ever read or downloaded.
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
PREFERENCE = ("fp16", "bf16", None)
"""The smallest 16-bit files first; the plain (usually float32) ones when there is nothing else."""

_VOCABULARIES = ({"spiece.model"}, {"vocab.json", "merges.txt"}, {"tokenizer.json"})
SMALL_FILES = (".json", ".txt", ".model")
"""What is read, and downloaded, of the small folders beside the weights."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of weight files of a module folder.

    Attributes:
        name: what diffusers calls the variant, None for the plain files.
        files: safetensors file names, in shard order, all that belong to the set.
        index: the shard index file, None for a single file.
        missing: shard names that the numbering promises and that are not there.
    """

    name: str | None
    files: tuple[str, ...]
    index: str | None
    missing: tuple[str, ...] = ()

    @property
    def all_files(self) -> tuple[str, ...]:
        return (*self.files, self.index) if self.index else self.files


def find_variants(names: Iterable[str]) -> dict[str | None, Variant]:
    """Every complete or incomplete set among the file names of one folder, by variant name."""
    names = sorted(names)
    found: dict[str | None, list[re.Match[str]]] = {}
    for match in filter(None, map(_FILE.fullmatch, names)):
        found.setdefault(match["variant"], []).append(match)
    indexes = {m["variant"]: m.string for m in filter(None, map(_INDEX.fullmatch, names))}
    return {name: _variant(name, files, indexes.get(name)) for name, files in found.items()}


def choose_variant(names: Iterable[str], *, eight_bit: bool = False) -> Variant | None:
    """The set to load: the published 8-bit file if `eight_bit` and it is there, else the 16-bit one.

    None if the folder holds no safetensors weights at all.
    """
    variants = find_variants(names)
    order = ("8bit", *PREFERENCE) if eight_bit else PREFERENCE
    return next((variants[name] for name in order if name in variants), None)


def lacks_vocabulary(folder: str, names: Iterable[str]) -> bool:
    """Whether a folder of these files is a tokenizer's without a vocabulary."""
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
