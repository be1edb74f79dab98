"""peft's own folder: alpha and rank from its configuration, and no kind that is not understood."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lora_files import Matrices, bare, merged_by_hand, random_lora, write, write_peft_folder
from runs import plan_of

from lowmem_if.cascade.lora.adapter import file_digest, loras
from lowmem_if.cascade.lora.lora_keys import read_pairs
from lowmem_if.errors import LoraError
from lowmem_if.weights.loading import load_diffusers_model

LAYER = "mid_block.attentions.0.to_out.0"
PAIR = {LAYER: Matrices(torch.ones(2, 6), torch.ones(8, 2))}
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def state(unet: Path, lora: Any = ()) -> dict[str, torch.Tensor]:
    network = load_diffusers_model(
        unet, UNet2DConditionModel, dtype="float32", device="cpu", lora=lora
    )
    tensors: dict[str, torch.Tensor] = network.state_dict()
    return tensors


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 2.0),
        ({"r": 8, "rank_pattern": {"to_out.0": 2}}, 2.0),
        ({"alpha_pattern": {"to_out.0": 1}}, 0.5),
        ({"alpha_pattern": {"to_q": 1}}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"rank_pattern": None, "alpha_pattern": None, "use_dora": False}, 2.0),
        ({"bias": "none", "fan_in_fan_out": False, "modules_to_save": None}, 2.0),
    ],
)
def test_alpha_and_rank_are_those_of_the_configuration(
    tmp_path: Path, settings: dict[str, Any], factor: float
) -> None:
    """From `adapter_config.json`, by patterns where there are any; the prefix is not the layer's."""
    folder = write_peft_folder(tmp_path / "trained", PAIR, PLAIN | settings)
    (pair,) = read_pairs(folder / "adapter_model.safetensors")
    assert (pair.layer, pair.factor, pair.rank) == (LAYER, factor, 2)


def test_what_is_merged_is_what_peft_merges(tiny: Path, tmp_path: Path) -> None:
    """A folder that peft saved, with convolutions and patterns, with rsLoRA and without."""
    peft = pytest.importorskip("peft", reason="it is compared with peft itself")
    for rslora in (False, True):
        unet = UNet2DConditionModel.from_pretrained(
            tiny / "stage_1/unet", variant="fp16", torch_dtype=torch.float32
        )
        config = peft.LoraConfig(
            r=4,
            lora_alpha=6,
            use_rslora=rslora,
            rank_pattern={"to_q": 2, r"mid_block\.resnets\.0\.conv1": 3},
            alpha_pattern={"to_q": 3, "mid_block.resnets.0.conv1": 1},
            target_modules=["to_q", "to_out.0", "add_k_proj", "conv1", "conv_shortcut"],
            init_lora_weights=False,
        )
        torch.manual_seed(0)
        model = peft.get_peft_model(unet, config)
        folder = tmp_path / f"rslora-{rslora}"
        model.save_pretrained(folder)
        ours = state(tiny / "stage_1/unet", loras(folder))
        theirs = model.merge_and_unload().state_dict()
        assert ours.keys() == theirs.keys()
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=1e-6)
        plain = state(tiny / "stage_1/unet")
        changed = [name for name in ours if not torch.equal(ours[name], plain[name])]
        assert len(changed) == len(read_pairs(folder / "adapter_model.safetensors")) > 10


def test_what_is_merged_is_the_sum_of_a_weight_and_a_product(tiny: Path, tmp_path: Path) -> None:
    """W + scale * alpha / rank * B @ A, with the layer's own rank and alpha, to the last bit."""
    lora = random_lora(tiny, "stage_1", alpha=8.0)
    short = {
        name: Matrices(m.down[:2], m.up[:, :2], 3.0) for name, m in lora.items() if "to_q" in name
    }
    settings = {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3}}
    folder = write_peft_folder(tmp_path / "trained", lora | short, PLAIN | settings)
    theirs = merged_by_hand(tiny, "stage_1", [(lora | short, 0.5)]).state_dict()
    ours = state(tiny / "stage_1/unet", loras(f"{folder}:0.5"))
    assert short
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_its_stage_is_found_and_planned(tiny: Path, tmp_path: Path) -> None:
    """By names and shapes, as for every other layout."""
    lora = random_lora(tiny, "stage_2")
    folder = write_peft_folder(tmp_path / "trained", lora, PLAIN | {"r": 4})
    plan = plan_of(tiny, size=256, lora=folder)
    assert [step.component for step in plan.steps if step.lora] == ["stage_2"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"use_qalora": True}, "is QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "is BD-LoRA"),
        ({"kasa_config": {"beta": 1}}, "is KaSA"),
        ({"layer_replication": [[0, 2]]}, "is a LoRA of replicated layers"),
        ({"lora_bias": True}, "is a LoRA with biases"),
        ({"modules_to_save": ["conv_in"]}, "is a LoRA with whole layers"),
        ({"peft_type": "LOHA"}, "is an adapter of type LOHA"),
        ({"peft_type": "ADALORA"}, "is an adapter of type ADALORA"),
        ({"init_lora_weights": "pissa_niter_16"}, "is a LoRA initialised by pissa_niter_16"),
        ({"init_lora_weights": "loftq"}, "is a LoRA initialised by loftq"),
        ({"r": 4}, "has rank 2, but its adapter_config.json says 4"),
        ({"r": 2, "rank_pattern": {"to_out.0": 3}}, "has rank 2, but its adapter_config.json says"),
        ({"r": "two"}, "adapter_config.json is not valid"),
        ({"lora_alpha": None}, "adapter_config.json is not valid"),
        ({"alpha_pattern": {"(": 1}}, "adapter_config.json is not valid"),
    ],
)
def test_a_kind_that_is_not_supported_is_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """The line begins with the file and names the kind or the value."""
    folder = write_peft_folder(tmp_path / "trained", PAIR, PLAIN | settings)
    with pytest.raises(LoraError, match=words) as caught:
        loras(folder)
    assert str(caught.value).startswith(str(folder / "adapter_model.safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "renamed.safetensors"])
def test_without_its_configuration_a_file_of_peft_is_refused(tmp_path: Path, name: str) -> None:
    """Its alpha is nowhere else, and a guess would draw another picture."""
    folder = write_peft_folder(tmp_path / "trained", PAIR, PLAIN)
    (folder / "adapter_model.safetensors").rename(folder / name)
    assert read_pairs(folder / name)[0].factor == 2.0
    (folder / "adapter_config.json").unlink()
    with pytest.raises(LoraError, match=r"adapter_config\.json with its alpha is not next to it"):
        loras(folder / name)


def test_a_configuration_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """No JSON, no table, no text at all, or a folder of that name."""
    folder = write_peft_folder(tmp_path / "trained", PAIR, PLAIN)
    for content in (b"{", b"[1]", b'"r"', b"\xff\xfe\x00"):
        (folder / "adapter_config.json").write_bytes(content)
        with pytest.raises(LoraError, match=r"adapter_config\.json (is not valid|cannot be read)"):
            loras(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    with pytest.raises(LoraError, match="cannot be read"):
        loras(folder)


def test_another_file_s_configuration_is_not_its_own(tmp_path: Path) -> None:
    """A file of diffusers that lies beside peft's configuration has the factor that it had alone."""
    folder = write_peft_folder(tmp_path / "trained", PAIR, PLAIN)
    other = write(folder / "other.safetensors", bare(PAIR))
    assert read_pairs(other)[0].factor == 1.0
    shutil.copy(other, tmp_path / "alone.safetensors")
    assert file_digest(other) == file_digest(tmp_path / "alone.safetensors")


def test_a_changed_configuration_is_another_lora(tmp_path: Path) -> None:
    """Its alpha decides pixels, so it counts into the digest that runs compare."""
    folder = write_peft_folder(tmp_path / "trained", PAIR, PLAIN)
    (before,) = loras(folder)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | {"lora_alpha": 5}))
    (after,) = loras(folder)
    assert before.digest != after.digest == file_digest(after.path)
