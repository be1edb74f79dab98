"""A folder given as a LoRA: its file is found in the layouts of trainers, or one line says why not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import Matrices, bare, peft, processors, write, write_peft_folder

from lowmem_if.cascade.lora.adapter import loras
from lowmem_if.cascade.lora.lora_folders import lora_file
from lowmem_if.errors import LoraError

PAIR = {"mid_block.attentions.0.to_out.0": Matrices(torch.ones(2, 6), torch.ones(8, 2))}
DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"


def made(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder / name, peft(PAIR))
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([DIFFUSERS], DIFFUSERS),
        ([PEFT], PEFT),
        (["my_style.safetensors"], "my_style.safetensors"),
        # A training's checkpoints and previews beside its result.
        ([DIFFUSERS, f"checkpoint-500/{DIFFUSERS}", "old.safetensors"], DIFFUSERS),
        ([f"unet/{PEFT}"], f"unet/{PEFT}"),
        ([f"unet/{PEFT}", f"checkpoint-500/{DIFFUSERS}"], f"unet/{PEFT}"),
        ([f"checkpoint-500/{DIFFUSERS}"], f"checkpoint-500/{DIFFUSERS}"),
        ([DIFFUSERS, "unet/diffusion_pytorch_model.safetensors"], DIFFUSERS),
    ],
)
def test_the_file_of_a_folder_is_found(tmp_path: Path, names: list[str], expected: str) -> None:
    """By the names that peft, diffusers and their DreamBooth examples give, else the only one."""
    folder = made(tmp_path / "trained", *names)
    assert lora_file(str(folder)) == folder / expected
    assert lora_file(str(folder / expected)) == folder / expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([DIFFUSERS, PEFT], rf"several LoRAs \({DIFFUSERS}, {PEFT}\): give the path of one"),
        (["b.safetensors", "a.safetensors"], r"several LoRAs \(a.safetensors, b.safetensors\)"),
        (
            [f"checkpoint-{n}00/{DIFFUSERS}" for n in range(1, 8)],
            rf"\(checkpoint-100/{DIFFUSERS}, .*, checkpoint-500/{DIFFUSERS} and 2 more\)",
        ),
        ([f"unet/{PEFT}", f"text_encoder/{PEFT}"], "also changes a text encoder.*trained/unet to"),
        (["unet/diffusion_pytorch_model.safetensors"], "a whole network, not a LoRA: .* --part"),
        (["diffusion_pytorch_model.fp16.safetensors"], "a whole network, not a LoRA: .* --part"),
        (["README.md"], f"does not contain {DIFFUSERS} or {PEFT}"),
    ],
)
def test_a_folder_without_one_lora_is_told_in_one_line(
    tmp_path: Path, names: list[str], words: str
) -> None:
    """It lists the candidates, or says what the folder holds."""
    folder = made(tmp_path / "trained", *names)
    with pytest.raises(LoraError, match=words) as caught:
        lora_file(str(folder))
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "adapter_model.bin"])
def test_a_folder_with_a_pickle_is_told_that_pickles_are_never_opened(
    tmp_path: Path, name: str
) -> None:
    """As peft and diffusers saved until 2023."""
    torch.save(peft(PAIR), tmp_path / name)
    with pytest.raises(LoraError, match=f"{name} is a pickle"):
        loras(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        processors(PAIR),
        {name.removeprefix("unet."): t for name, t in processors(PAIR).items()},
        bare(PAIR),
    ],
)
def test_folders_of_older_trainers_are_read(tmp_path: Path, tensors: Mapping[str, Any]) -> None:
    """`save_lora_weights` and `save_attn_procs` of diffusers, with and without the network's name."""
    write(tmp_path / DIFFUSERS, tensors)
    assert Path(loras(tmp_path)[0].path) == tmp_path / DIFFUSERS


def test_the_output_of_peft_s_dreambooth_example_is_read(tmp_path: Path) -> None:
    """One folder for each network, each with its own configuration."""
    write_peft_folder(tmp_path / "unet", PAIR, {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    assert Path(loras(tmp_path)[0].path) == tmp_path / "unet" / PEFT
