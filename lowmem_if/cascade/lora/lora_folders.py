"""Find the file that a user means by the path of a LoRA: the file itself, or one in that folder.

Known layouts: peft's own folder, diffusers' output, the output of peft's DreamBooth example (one
folder for each network), and the checkpoints of a training.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lowmem_if.cascade.lora.peft_configuration import WEIGHTS
from lowmem_if.errors import LoraError

FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that diffusers gives a LoRA file in a folder."""

_NAMES = (FILE_NAME, WEIGHTS)
_UNET, _TEXT_ENCODER = "unet", "text_encoder"
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_ZIP = b"PK\x03\x04"
"""The first bytes of the pickles that torch writes today."""

_LISTED = 5
"""How many candidates an error lists."""


def lora_file(path: str) -> Path:
    """The safetensors file that a path names: the path itself, or the LoRA in this folder.

    Raises:
        LoraError: nothing is there, several files could be meant, or it is a pickle.
    """
    if not is_there(path):
        raise LoraError(
            f"{path} does not exist: give a safetensors file, or a folder with {' or '.join(_NAMES)}; "
            "`hf download` fetches files from the Hub"
        )
    # The path is not resolved: in the Hub's cache, the name of the link is the name of the file.
    file = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100
    if file.is_dir():
        file = _in_folder(file)
    _refuse_pickle(file)
    return file


def is_there(path: str) -> bool:
    """Whether a text names an existing file or folder."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a zero byte
        return False


def _in_folder(folder: Path) -> Path:
    try:
        found = _candidates(folder)
    except OSError as error:
        raise LoraError(f"{folder} cannot be read ({error.strerror})") from error
    if not found:
        raise _nothing_in(folder)
    if len(found) > 1:
        names = [file.relative_to(folder).as_posix() for file in found]
        more = f" and {len(names) - _LISTED} more" if names[_LISTED:] else ""
        raise LoraError(
            f"{folder} contains several LoRAs ({', '.join(names[:_LISTED])}{more}): "
            "give the path of one"
        )
    return found[0]


def _candidates(folder: Path) -> list[Path]:
    """The LoRA files in a folder: those with a name that a library gives count before all others."""
    unet = _named([folder / _UNET])
    if unet and _named([folder / _TEXT_ENCODER]):
        raise LoraError(
            f"{folder} also changes a text encoder, but LoRAs are merged into UNets only: "
            f"give {folder / _UNET} to use that part alone"
        )
    others = sorted(file for file in folder.glob("*.safetensors") if not _is_whole(file))
    subfolders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return _named([folder]) or unet or others or _named(subfolders)


def _named(folders: Iterable[Path]) -> list[Path]:
    files = (folder / name for folder in folders for name in _NAMES)
    return [file for file in files if file.is_file()]


def _is_whole(file: Path) -> bool:
    """Whether a file has the name that diffusers gives a network's whole weights."""
    return file.name.startswith("diffusion_pytorch_model")


def _nothing_in(folder: Path) -> LoraError:
    pickles = sorted([*folder.glob("pytorch_lora_weights.*"), *folder.glob("adapter_model.*")])
    for file in pickles:
        _refuse_pickle(file)
    whole = [file for place in (folder, folder / _UNET) for file in place.glob("*.safetensors")]
    if any(map(_is_whole, whole)):
        return LoraError(
            f"{folder} contains a whole network, not a LoRA: "
            "use it as a part of the cascade, like --part stage_1=FOLDER"
        )
    return LoraError(
        f"{folder} does not contain {' or '.join(_NAMES)}: give the path of the LoRA's file"
    )


def _refuse_pickle(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            is_pickle = file.suffix in _PICKLES or stream.read(len(_ZIP)) == _ZIP
    except OSError:
        return  # reading the header raises the error with its reason
    if is_pickle:
        raise LoraError(
            f"{file} is a pickle, and opening a pickle can run any code: save it as safetensors"
        )
