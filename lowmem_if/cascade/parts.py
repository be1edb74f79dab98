"""The parts of a cascade: networks, what a component loads, and how a stage samples by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Weights:
    """How many parameters a module has, grouped by what a storage dtype does with them.

    Attributes:
        linear: parameters in the matrices that are quantised: bitsandbytes' linear layers of the text
            encoder, linear layers and convolutions of a UNet.
        kept: parameters that transformers keeps in float32 while the rest is float16 or int8 (T5's
            `wo`).
        other: all other parameters: embeddings, norms, biases.
        linear_rows: output rows of these matrices; int8 stores one float32 scale for each.
    """

    other: int
    linear: int = 0
    kept: int = 0
    linear_rows: int = 0

    @property
    def parameters(self) -> int:
        return self.linear + self.kept + self.other


@dataclass(frozen=True, slots=True)
class Module:
    """One neural network: a folder of a diffusers repository.

    Attributes:
        folder: its folder in the repository.
        weights: its parameter counts.
        channels: width of its first block (UNets and VAEs); activations grow with it.
        file_bytes: bytes of the files that it is loaded from (the fp16 variant).
        is_bfloat16: whether those files already contain bfloat16.
    """

    folder: str
    weights: Weights
    file_bytes: int
    channels: int = 0
    is_bfloat16: bool = False

    @property
    def is_unet(self) -> bool:
        return self.folder == "unet"

    @property
    def is_vae(self) -> bool:
        return self.folder == "vae"

    @property
    def is_safety_checker(self) -> bool:
        return self.folder == "safety_checker"


@dataclass(frozen=True, slots=True)
class Origin:
    """Folders of a component that are in one repository of the Hub.

    Attributes:
        repository: its name on the Hub.
        revision: a branch, tag or commit; None: that of the cascade.
        folders: the folders that are loaded from it.
    """

    repository: str
    revision: str | None
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What one component loads: a repository (or a folder of a local cascade) and its modules.

    Attributes:
        root: the folder in a local cascade: `stage_1`, `stage_2` or `upscaler`.
        repository: the Hub repository; None for files on this disk only.
        modules: the networks.
        extras: the small folders without weights (tokenizer, schedulers).
        eight_bit_file_bytes: size of a published 8-bit file; 0 if there is none.
        revision: a branch, tag or commit of `repository`; None: that of the cascade.
        borrowed: folders that a part of the user's own lacks, and that the cascade's part supplies.
        lender: the repository of the cascade's part; None: a folder on this disk.
    """

    root: str
    repository: str | None
    modules: tuple[Module, ...]
    extras: tuple[str, ...] = ()
    eight_bit_file_bytes: int = 0
    revision: str | None = None
    borrowed: tuple[str, ...] = ()
    lender: str | None = None

    @property
    def largest(self) -> Module:
        """The network with the most bytes in its files."""
        return max(self.modules, key=lambda module: module.file_bytes)

    @property
    def folders(self) -> tuple[str, ...]:
        """All its folders: the networks, then the small ones."""
        return (*(module.folder for module in self.modules), *self.extras)

    @property
    def origins(self) -> Iterator[Origin]:
        """The repositories that it is downloaded from."""
        own = tuple(folder for folder in self.folders if folder not in self.borrowed)
        if self.repository:
            yield Origin(self.repository, self.revision, own)
        if self.lender and self.borrowed:
            yield Origin(self.lender, None, self.borrowed)

    def read_bytes(self, storage: str) -> int:
        """Bytes of the weight files that are read for a storage dtype."""
        eight_bit = self.eight_bit_file_bytes if storage == "int8" else 0
        return eight_bit or sum(module.file_bytes for module in self.modules)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the folders of a component are on this disk.

    Attributes:
        root: the folder that they are in.
        elsewhere: those that are not: name of the folder -> where it is.
    """

    root: Path
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """The path of a folder like `unet`; `.` is the place of `model_index.json`."""
        return self.elsewhere.get(name, self.root / name)

    def file(self, name: str) -> Path:
        """The path of a file like `unet/config.json`."""
        folder, _, file = name.rpartition("/")
        return self.folder(folder or ".") / file


@dataclass(frozen=True, slots=True)
class StageDefaults:
    """How an image stage samples where the request sets nothing.

    Attributes:
        fast_steps: denoising steps under `--prefer fast`, with the multistep solver in stages 1 and 2.
    """

    steps: int
    guidance_scale: float
    noise_level: int | None = None
    strength: float | None = None
    fast_steps: int = 20


@dataclass(frozen=True, slots=True)
class Cascade:
    """A cascade: what each component loads, and how each stage samples by default."""

    name: str
    parts: dict[str, Part]
    defaults: dict[str, StageDefaults]
    gated: bool = False

    @property
    def repositories(self) -> tuple[str, ...]:
        """Every repository that its parts are downloaded from, each once."""
        found = (origin.repository for part in self.parts.values() for origin in part.origins)
        return tuple(dict.fromkeys(found))
