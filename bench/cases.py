"""What is measured: networks x ways. Names only: whoever plans the measurements needs no torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.module_files import usable_variant

LIMIT, LIMIT_THREADS = "limit", "limit-threads"
FROM_PRETRAINED, RESIDENT = "from_pretrained", "resident"
FAITHFUL, INT8 = "resident-faithful", "resident-int8"
CONVERT, STREAMED_COPY = "convert", "streamed-0-bf16"

WAYS = {
    LIMIT: "limit: the file's bytes read once into fresh memory, one thread",
    LIMIT_THREADS: "limit: the same, all threads",
    FROM_PRETRAINED: "`from_pretrained`, as the docs do it",
    "model-offload": "diffusers model offload",
    "group-offload": "diffusers group offload, to RAM",
    "group-offload-disk": "diffusers group offload, to disk",
    "disk-offload": "accelerate `disk_offload`",
    "device-map-disk": '`from_pretrained(device_map={"": "disk"})`',
    RESIDENT: "ours, resident",
    FAITHFUL: "ours, resident, with channels last (`faithful`)",
    INT8: "ours, resident in 8 bits, with channels last",
    "streamed-0": "ours, streamed, none of it resident",
    "streamed-quarter": "ours, streamed, a quarter resident",
    "streamed-half": "ours, streamed, half of it resident",
    CONVERT: "ours, making the bfloat16 copy, once",
    STREAMED_COPY: "ours, streamed from the bfloat16 copy, none of it resident",
}
"""Name -> what the table calls it, in the table's order. The copy is used right after it was made."""

THEIRS = (
    FROM_PRETRAINED, "model-offload", "group-offload", "group-offload-disk", "disk-offload",
    "device-map-disk",
)  # fmt: skip
"""These run in the environment as it is, all others in the one that our worker gets."""

UNET_WAYS = (FAITHFUL, INT8)
"""Ways there are for UNets only."""

EIGHT_BIT_WAYS = (LIMIT, LIMIT_THREADS, FROM_PRETRAINED, RESIDENT)
"""Ways there are for weights that are quantised while they are loaded."""

QUICK = ("stage_1", "upscaler-text")


@dataclass(frozen=True, slots=True)
class Subject:
    """A network that is measured.

    Attributes:
        component: what it belongs to in a cascade; `folder`: where it is there.
        steps: a UNet's guided steps, or an encoder's prompts, one by one.
        eight_bit: quantised by bitsandbytes' int8 while it is loaded.
    """

    component: str
    folder: str
    steps: int
    eight_bit: bool = False

    @property
    def ways(self) -> Collection[str]:
        if self.eight_bit:
            return EIGHT_BIT_WAYS
        return [way for way in WAYS if self.folder.endswith("unet") or way not in UNET_WAYS]


SUBJECTS = {
    "text_encoder": Subject(catalog.TEXT_ENCODER, "stage_1/text_encoder", 4),
    "text_encoder-int8": Subject(catalog.TEXT_ENCODER, "stage_1/text_encoder", 4, eight_bit=True),
    "stage_1": Subject(catalog.STAGE_1, "stage_1/unet", 3),
    "stage_2": Subject(catalog.STAGE_2, "stage_2/unet", 3),
    "upscaler": Subject(catalog.UPSCALER, "upscaler/unet", 3),
    "upscaler-text": Subject(catalog.UPSCALER, "upscaler/text_encoder", 4),
}

_STAGES = {"if-xl": ("I-XL", "II-L"), "if-l": ("I-L", "II-M"), "if-m": ("I-M", "II-M")}


def title(cascade: str, subject: str) -> str:
    """What people call a network: `I-XL, the stage 1 UNet`."""
    first, second = _STAGES[cascade]
    return {
        "text_encoder": "T5-XXL, the text encoder, 16 bit",
        "text_encoder-int8": "T5-XXL, the text encoder, int8",
        "stage_1": f"{first}, the stage 1 UNet, 64 px",
        "stage_2": f"{second}, the stage 2 UNet, 256 px",
        "upscaler": "the upscaler's UNet, 1024 px",
        "upscaler-text": "the upscaler's text encoder",
    }[subject]


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement, done by one process.

    Attributes:
        folder: the cascade's.
        scratch: an empty folder for what a way writes; whoever made it removes it.
        cold: the files are dropped from the system's cache before, instead of read into it.
    """

    cascade: str
    subject: str
    way: str
    folder: Path
    scratch: Path
    steps: int
    device: str = "cpu"
    dtype: str = "bfloat16"
    cold: bool = False

    @property
    def network(self) -> Subject:
        return SUBJECTS[self.subject]

    @property
    def weights(self) -> Path:
        """The network's folder."""
        return self.folder / self.network.folder

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Case:
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {name: Path(fields[name]) for name in ("folder", "scratch")})


def chosen(only: Collection[str], *, quick: bool) -> Iterator[tuple[str, str]]:
    """(subject, way) of what is to be measured.

    Args:
        only: names of subjects or ways, or `SUBJECT/WAY`; empty: all. A subject that is named here
            is measured even if a run without names would leave it out.
    """
    usual = QUICK if quick else tuple(name for name in SUBJECTS if name != "upscaler-text")
    named = {name.partition("/")[0] for name in only} & SUBJECTS.keys()
    for subject in SUBJECTS:
        if subject not in named and subject not in usual:
            continue
        for way in WAYS:
            names = {subject, way, f"{subject}/{way}"}
            if way in SUBJECTS[subject].ways and (not only or names & {*only}):
                yield subject, way


def unknown(only: Collection[str]) -> list[str]:
    """Which of the names mean nothing."""
    pairs = {f"{subject}/{way}" for subject in SUBJECTS for way in SUBJECTS[subject].ways}
    return sorted({*only} - SUBJECTS.keys() - WAYS.keys() - pairs)


def missing_components(folder: Path, subjects: Collection[str]) -> list[str]:
    """The components of a cascade's folder that have to be synthesized; what is there is kept."""
    wanted = [SUBJECTS[name] for name in subjects]
    absent = [s for s in wanted if usable_variant(folder / s.folder, eight_bit=False) is None]
    return list(dict.fromkeys(subject.component for subject in absent))
