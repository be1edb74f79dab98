"""Broken weights end in one line that names the file; nothing is filled in with noise."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from runs import plan_of, run_here
from safetensors.torch import load_file, save_file
from tiny_networks import assert_same
from transformers import BitsAndBytesConfig, CLIPTextModel, PreTrainedModel, T5EncoderModel

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.library_differences import repaired_safety_checker
from lowmem_if.weights.loading import (
    load_clip_text,
    load_diffusers_model,
    load_safety_checker,
    load_text_encoder,
)

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


@pytest.mark.parametrize("storage", ["float32", "int8", "nf4"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_while_loading_is_told_as_that(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, storage: str, error: type[Exception]
) -> None:
    """The threads' exception comes out as it is, so that the ladder can answer."""
    fail_after(3, error, monkeypatch)
    with pytest.raises(error):
        load_text_encoder(tiny / "stage_1", storage=storage, compute="float32", device="cpu")
    assert not [thread for thread in threading.enumerate() if "loader" in thread.name]


def fail_after(reads: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reads after so many raise the error."""
    real, left = Reader.read, iter(range(reads))

    def read(self: Reader, *args: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise error("no memory left")
        real(self, *args, **options)

    monkeypatch.setattr(Reader, "read", read)


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


# --- what comes out equals what the libraries' loaders give -----------------------------------------


DIFFUSERS = [
    ("stage_1/unet", UNet2DConditionModel),
    ("stage_2/unet", UNet2DConditionModel),
    ("upscaler/unet", UNet2DConditionModel),
    ("upscaler/vae", AutoencoderKL),
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("folder", "cls"), DIFFUSERS)
def test_a_diffusers_network_equals_from_pretrained(
    tiny: Path, folder: str, cls: Any, dtype: str
) -> None:
    """Tensor for tensor, in every number type."""
    ours = load_diffusers_model(tiny / folder, cls, dtype=dtype, device="cpu")
    theirs = cls.from_pretrained(tiny / folder, variant="fp16", torch_dtype=getattr(torch, dtype))
    assert_same(ours, theirs)


@pytest.fixture
def reference(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> type[T5EncoderModel]:
    """transformers' encoder class, in the number types that its later versions choose.

    Beside bfloat16 transformers 5.0 keeps `wo` in float32, which no later version does, nor do we.
    """
    is_old = not hasattr(PreTrainedModel, "_get_dtype_plan")
    if is_old and "bfloat16" in request.node.callspec.params.values():
        monkeypatch.setattr(T5EncoderModel, "_keep_in_fp32_modules", None)
    return T5EncoderModel


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_text_encoders_equal_from_pretrained(
    tiny: Path, dtype: str, reference: type[T5EncoderModel]
) -> None:
    """T5 with its tied embedding and its `wo`, and CLIP under its old names."""
    ours = load_text_encoder(tiny / "stage_1", storage=dtype, compute=dtype, device="cpu")
    options = {"variant": "fp16", "dtype": getattr(torch, dtype)}
    assert_same(ours, reference.from_pretrained(tiny / "stage_1/text_encoder", **options))
    assert ours.encoder.embed_tokens.weight is ours.shared.weight
    clip = load_clip_text(tiny / "upscaler/text_encoder", dtype=dtype, device="cpu")
    assert_same(clip, CLIPTextModel.from_pretrained(tiny / "upscaler/text_encoder", **options))


@pytest.mark.parametrize("compute", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_a_quantised_text_encoder_equals_from_pretrained(
    tiny: Path, storage: str, compute: str, reference: type[T5EncoderModel]
) -> None:
    """Codes, scales and what is left alone, in every compute type."""
    ours = load_text_encoder(tiny / "stage_1", storage=storage, compute=compute, device="cpu")
    dtype = getattr(torch, compute)
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    settings = BitsAndBytesConfig(**({"load_in_8bit": True} if storage == "int8" else four))
    theirs = reference.from_pretrained(
        tiny / "stage_1/text_encoder",
        variant="fp16",
        dtype=dtype,
        quantization_config=settings,
        device_map={"": "cpu"},
    )
    assert_same(ours, theirs)
    for name, layer in theirs.named_modules():
        mine = ours.get_submodule(name)
        assert type(mine) is type(layer), name
        if type(layer).__name__ == "Linear8bitLt":
            assert torch.equal(mine.weight.SCB, layer.weight.SCB), name
        if type(layer).__name__ == "Linear4bit":
            assert torch.equal(mine.weight.quant_state.absmax, layer.weight.quant_state.absmax)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids)[0], theirs(ids)[0])


def test_the_safety_checker_equals_from_pretrained(tiny: Path) -> None:
    """In float32, its heads included."""
    folder = tiny / "stage_1/safety_checker"
    ours = load_safety_checker(folder)
    theirs = repaired_safety_checker().from_pretrained(folder, variant="fp16", dtype=torch.float32)
    assert_same(ours, theirs)


def test_a_loaded_module_keeps_no_file_open(tiny: Path, tmp_path: Path) -> None:
    """Neither a handle nor a mapping of the weights is left, even while the module lives."""
    folder = tmp_path / "unet"  # what other tests have loaded may still map the shared folder
    shutil.copytree(tiny / "stage_1/unet", folder)
    unet = load_diffusers_model(folder, UNet2DConditionModel, dtype="float16", device="cpu")
    assert str(folder) not in Path("/proc/self/maps").read_text()
    handles = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [handle for handle in handles if str(folder) in handle]
    assert next(unet.parameters()).is_contiguous()


def test_attention_under_the_names_of_old_files_is_found(tiny: Path, tmp_path: Path) -> None:
    """The published x4 autoencoder calls its attention's layers query, key, value, proj_attn."""
    folder = tmp_path / "vae"
    vae = AutoencoderKL(
        block_out_channels=[8], norm_num_groups=2, sample_size=8, mid_block_add_attention=True
    )
    vae.save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_file(tensors, file, metadata={"format": "pt"})
    ours = load_diffusers_model(folder, AutoencoderKL, dtype="float32", device="cpu")
    assert_same(ours, vae.eval())


def test_a_library_that_lacks_a_name_is_not_only_called_a_broken_file(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown version of a library is named beside the file, for the file may be sound."""

    def missing(*_args: object) -> None:
        raise AttributeError("'T5EncoderModel' object has no attribute 'something'")

    monkeypatch.setattr("lowmem_if.weights.modules.meta_init.kept_dtype", missing)
    with pytest.raises(CheckpointError, match=r"no attribute.*transformers \d+\..*another version"):
        load_text_encoder(tiny / "stage_1", storage="float32", compute="float32", device="cpu")
