"""LoRAs for tests: random ones for a UNet of a cascade, in every spelling, and merged by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from lowmem_if.cascade.safetensors_header import read_headers

RANK = 4


@dataclass(frozen=True)
class Matrices:
    """What is added to one layer: alpha / rank * up @ down."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float = RANK

    @property
    def added(self) -> torch.Tensor:
        """In float32, without a scale."""
        rank = self.down.shape[0]
        product = self.up.float().reshape(-1, rank) @ self.down.float().reshape(rank, -1)
        return product * (self.alpha / rank)


LoraOf = Mapping[str, Matrices]


def is_attention(layer: str) -> bool:
    return "attentions" in layer


def is_drawn_from(layer: str) -> bool:
    """Attention, convolutions of both sizes, and what else is linear."""
    ends = ("conv1", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out", "encoder_hid_proj")
    return is_attention(layer) or layer.endswith(ends)


def random_lora(
    cascade: Path,
    stage: str,
    *,
    rank: int = RANK,
    alpha: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    wanted: Callable[[str], bool] = is_drawn_from,
) -> dict[str, Matrices]:
    """Large enough that every picture changes a lot."""
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for name, header in read_headers((cascade / stage / "unet").glob("*.safetensors")).items():
        layer = name.removesuffix(".weight")
        if layer == name or len(header.shape) < 2 or not wanted(layer):
            continue
        out, inside = header.shape[0], header.shape[1:]
        down = torch.randn((rank, *inside), generator=chance) * 0.3
        up = torch.randn((out, rank, *([1] * (len(inside) - 1))), generator=chance) * 0.3
        found[layer] = Matrices(down.to(dtype), up.to(dtype), rank if alpha is None else alpha)
    return found


# --- the spellings ---------------------------------------------------------------------------------


def peft(lora: LoraOf, prefix: str = "unet.") -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, matrices in lora.items():
        tensors[f"{prefix}{layer}.lora_A.weight"] = matrices.down
        tensors[f"{prefix}{layer}.lora_B.weight"] = matrices.up
    return tensors


def bare(lora: LoraOf) -> dict[str, torch.Tensor]:
    return peft(lora, prefix="")


def diffusers(lora: LoraOf) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, matrices in lora.items():
        tensors[f"unet.{layer}.lora.down.weight"] = matrices.down
        tensors[f"unet.{layer}.lora.up.weight"] = matrices.up
    return tensors


def processors(lora: LoraOf, between: str = ".processor.") -> dict[str, torch.Tensor]:
    """As the attention processors of diffusers before 0.20 were saved."""
    tensors = {}
    for layer, matrices in lora.items():
        attention, _, name = layer.removesuffix(".0").rpartition(".")
        tensors[f"unet.{attention}{between}{name}_lora.down.weight"] = matrices.down
        tensors[f"unet.{attention}{between}{name}_lora.up.weight"] = matrices.up
    return tensors


def old_attention(lora: LoraOf) -> dict[str, torch.Tensor]:
    return processors(lora, between=".")


def kohya(lora: LoraOf) -> dict[str, torch.Tensor]:
    tensors = {}
    for layer, matrices in lora.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = matrices.down
        tensors[f"{name}.lora_up.weight"] = matrices.up
        tensors[f"{name}.alpha"] = torch.tensor(float(matrices.alpha))
    return tensors


def with_alphas(lora: LoraOf) -> dict[str, torch.Tensor]:
    alphas = {f"unet.{layer}.alpha": torch.tensor(float(m.alpha)) for layer, m in lora.items()}
    return peft(lora) | alphas


SPELLINGS = (peft, bare, diffusers, processors, old_attention, kohya, with_alphas)
WITH_ALPHA = (kohya, with_alphas)


def write(
    file: Path, tensors: Mapping[str, torch.Tensor], configuration: Mapping[str, Any] | None = None
) -> Path:
    """The tensors as a file; with peft's configuration as diffusers keeps it."""
    metadata = {"format": "pt"}
    if configuration is not None:
        said = {f"unet.{key}": value for key, value in configuration.items()}
        metadata["lora_adapter_metadata"] = json.dumps(said)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file


def write_peft_folder(folder: Path, lora: LoraOf, configuration: Mapping[str, Any]) -> Path:
    """A folder as `PeftModel.save_pretrained` makes it."""
    write(folder / "adapter_model.safetensors", peft(lora, "base_model.model."))
    (folder / "adapter_config.json").write_text(json.dumps(configuration))
    return folder


# --- by hand ---------------------------------------------------------------------------------------


def merged_by_hand(
    cascade: Path, stage: str, loras: Iterable[tuple[LoraOf, float]], dtype: str = "float32"
) -> UNet2DConditionModel:
    """diffusers' own UNet, with all that is added to its weights in float32, then cast."""
    unet = UNet2DConditionModel.from_pretrained(
        cascade / stage / "unet", variant="fp16", torch_dtype=torch.float32
    )
    with torch.no_grad():
        for lora, scale in loras:
            for layer, matrices in lora.items():
                weight = unet.get_submodule(layer).weight
                rank = matrices.down.shape[0]
                product = matrices.up.float().reshape(-1, rank) @ (
                    matrices.down.float().reshape(rank, -1)
                )
                weight += (scale * (matrices.alpha / rank) * product).reshape(weight.shape)
    return unet.to(getattr(torch, dtype)).eval()
