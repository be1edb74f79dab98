"""Broken weights end in one line that names the file; nothing is filled in with noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import plan_of, run_here
from safetensors.torch import load_file, save_file

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.loading import load_text_encoder

UNET = "stage_1/unet/diffusion_pytorch_model.fp16.safetensors"
SHARD = "stage_1/text_encoder/model.fp16-00002-of-00003.safetensors"


@pytest.fixture
def cascade(tiny: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny, tmp_path / "cascade"))


def delete(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def garble(file: Path) -> None:
    file.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"no json at all!!" + b"\0" * 64)


def lose_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})


def add_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file(tensors | {"stranger": tensors[name].clone()}, file, metadata={"format": "pt"})


def reshape_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    name = next(name for name, tensor in sorted(tensors.items()) if tensor.dim() == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def break_json(file: Path) -> None:
    file.write_text('{"in_channels": ')


@pytest.mark.parametrize("harm", [delete, empty, truncate, garble, lose_a_tensor, reshape_a_tensor])
@pytest.mark.parametrize("victim", [UNET, SHARD])
def test_broken_weights_are_told_in_one_line(
    cascade: Path, tmp_path: Path, victim: str, harm: Callable[[Path], None]
) -> None:
    """Missing, empty, truncated, corrupt, incomplete and misshapen files end in a CheckpointError."""
    harm(cascade / victim)
    with pytest.raises(CheckpointError) as caught:
        run_here(plan_of(cascade, size=64), tmp_path / "run")
    text = str(caught.value)
    assert "\n" not in text
    assert str(cascade / Path(victim).parent) in text
    assert "fetch or copy" in text


def test_weights_that_no_layer_takes_are_told(cascade: Path, tmp_path: Path) -> None:
    """A tensor that the configuration has no place for is an error too."""
    add_a_tensor(cascade / UNET)
    with pytest.raises(CheckpointError, match="unexpected weights, first stranger"):
        run_here(plan_of(cascade, size=64), tmp_path / "run")


@pytest.mark.parametrize(
    "victim",
    [
        "stage_1/unet/config.json",
        "stage_1/text_encoder/config.json",
        "stage_1/scheduler/scheduler_config.json",
        "stage_1/tokenizer/tokenizer_config.json",
        "stage_1/feature_extractor/preprocessor_config.json",
        "stage_1/safety_checker/config.json",
    ],
)
@pytest.mark.parametrize("harm", [delete, break_json])
def test_broken_configurations_are_told_in_one_line(
    cascade: Path, tmp_path: Path, victim: str, harm: Callable[[Path], None]
) -> None:
    """A missing or broken JSON file is named."""
    harm(cascade / victim)
    with pytest.raises(CheckpointError) as caught:
        run_here(plan_of(cascade, size=64), tmp_path / "run")
    assert str(cascade / victim) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lost_shard_index_is_told(cascade: Path, tmp_path: Path) -> None:
    """Shards without their index are not guessed at."""
    (cascade / "stage_1/text_encoder/model.safetensors.index.fp16.json").unlink()
    with pytest.raises(CheckpointError, match="no index file"):
        run_here(plan_of(cascade, size=64), tmp_path / "run")


def test_a_configuration_of_another_network_is_told(cascade: Path, tmp_path: Path) -> None:
    """A config.json whose shapes are not those of the weights is a mismatch, told as such."""
    file = cascade / "stage_1/unet/config.json"
    config = json.loads(file.read_text()) | {"block_out_channels": [16, 64]}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="unet"):
        run_here(plan_of(cascade, size=64), tmp_path / "run")


def test_a_run_that_met_broken_weights_goes_on_once_they_are_mended(
    cascade: Path, tiny: Path, tmp_path: Path
) -> None:
    """The text encoder's work is kept; copying the file again and continuing ends the run."""
    plan = plan_of(cascade, size=64)
    (cascade / UNET).write_bytes((tiny / UNET).read_bytes()[:-4])
    with pytest.raises(CheckpointError):
        run_here(plan, tmp_path / "run")
    shutil.copy(tiny / UNET, cascade / UNET)
    assert run_here(plan, tmp_path / "run").images


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_memory_that_runs_out_while_quantising_is_told_as_that(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """transformers swallows the exception; it comes out all the same, so that the ladder can answer."""
    from transformers.integrations import bitsandbytes

    def exhausted(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(bitsandbytes.Bnb8bitQuantize, "convert", exhausted)
    monkeypatch.setattr(bitsandbytes.Bnb4bitQuantize, "convert", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        load_text_encoder(tiny / "stage_1", storage=storage, compute="float32", device="cpu")


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_an_encoder_planned_for_the_cpu_stays_there_beside_an_accelerator(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """The quantisers are told the device, or they would take any accelerator they see."""
    from transformers.quantizers.base import HfQuantizer

    asked: list[object] = []
    real = HfQuantizer.preprocess_model

    def spy(self: object, model: object, *args: object, **options: object) -> object:
        asked.append(options.get("device_map"))
        return real(self, model, *args, **options)

    monkeypatch.setattr(HfQuantizer, "preprocess_model", spy)
    load_text_encoder(tiny / "stage_1", storage=storage, compute="float32", device="cpu")
    assert asked == [{"": "cpu"}]
