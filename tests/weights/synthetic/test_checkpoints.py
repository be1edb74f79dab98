"""Made-up checkpoints of real size: what they weigh, what they take to write, and that they load."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import T5EncoderModel

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.module_files import weight_variant
from lowmem_if.cascade.quantised_layers import is_quantised
from lowmem_if.cascade.safetensors_header import read_headers
from lowmem_if.cli.main import main
from lowmem_if.errors import CascadeError
from lowmem_if.weights.memory_readings import read_memory
from lowmem_if.weights.synthetic import checkpoints
from lowmem_if.weights.synthetic.architectures import Network, networks
from lowmem_if.weights.synthetic.checkpoints import synthesize


@pytest.mark.parametrize("name", catalog.ON_HUB)
def test_the_networks_have_the_sizes_that_the_catalogue_says(name: str) -> None:
    """Each network, built without memory from its configuration, counts what plans count with."""
    for component, built in networks(name).items():
        modules = {
            module.folder: module for module in catalog.ON_HUB[name].parts[component].modules
        }
        for network in built:
            skeleton = network.skeleton()
            numbers = [*skeleton.parameters(), *skeleton.buffers()]
            assert all(tensor.is_meta for tensor in numbers)
            known = modules.pop(network.folder.partition("/")[2])
            parameters = known.weights.parameters
            assert sum(tensor.numel() for tensor in numbers) == pytest.approx(parameters, rel=1e-4)
            if known.is_unet:
                matrices = [w for n, w in skeleton.named_parameters() if is_quantised(n, w.shape)]
                assert known.weights.linear == sum(matrix.numel() for matrix in matrices)
                assert known.weights.linear_rows == sum(len(matrix) for matrix in matrices)
        assert not modules


def test_zeros_are_the_real_size_and_take_no_disk(tmp_path: Path) -> None:
    """if-xl's text encoder: 11.5 GB in two shards as published, planned from its headers."""
    written = synthesize("if-xl", tmp_path, fill="zeros", components=("text_encoder",))
    folder = tmp_path / "stage_1" / "text_encoder"
    files = sorted(folder.glob("*.safetensors"))
    sizes = [file.stat().st_size / 1e9 for file in files]
    assert sizes == pytest.approx([9.96, 1.58], abs=0.02)
    assert sum(file.stat().st_size for file in files) == written
    assert sum(file.stat().st_blocks * 512 for file in files) < 10e6
    variant = weight_variant(folder)
    headers = read_headers(folder / file for file in variant.files)
    assert {h.dtype for name, h in headers.items() if name.endswith(".wo.weight")} == {"F32"}
    part = locate(str(tmp_path), components=("text_encoder",)).cascade.parts["text_encoder"]
    assert part.modules[0].weights.parameters == 4_762_310_656


def small_networks() -> dict[str, tuple[Network, ...]]:
    """Networks like if-m's, only narrow and shallow."""
    real = networks("if-m")
    (text,), (unet,) = real["text_encoder"], real["stage_1"]
    vae = next(n for n in real["upscaler"] if n.cls is AutoencoderKL)
    small_text = text.config | {
        "d_model": 64,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "d_kv": 16,
    }
    narrow: dict[str, Any] = {"block_out_channels": [32, 64, 64, 64], "layers_per_block": [1] * 4}
    narrow |= {"cross_attention_dim": 64, "encoder_hid_dim": 64, "attention_head_dim": 32}
    small_vae = vae.config | {"block_out_channels": [32, 32, 32], "layers_per_block": 1}
    return {
        "text_encoder": (replace(text, config=small_text),),
        "stage_1": (
            replace(unet, config=unet.config | narrow | {"addition_embed_type_num_heads": 4}),
        ),
        "upscaler": (replace(vae, config=small_vae),),
    }


@contextmanager
def small_cascade(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "networks", lambda _name: small_networks())
        yield


def test_the_libraries_load_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing missing, nothing left over, signals neither explode nor die."""
    parts = ("text_encoder", "stage_1", "upscaler")
    with small_cascade(monkeypatch):
        monkeypatch.setattr(checkpoints, "SHARD_BYTES", 2_000_000)
        synthesize("if-m", tmp_path, components=parts)
    found = [
        (UNet2DConditionModel, tmp_path / "stage_1" / "unet", "torch_dtype"),
        (AutoencoderKL, tmp_path / "upscaler" / "vae", "torch_dtype"),
        (T5EncoderModel, tmp_path / "stage_1" / "text_encoder", "dtype"),
    ]
    for cls, folder, dtype in found:
        model, info = cls.from_pretrained(
            folder, variant="fp16", output_loading_info=True, **{dtype: torch.float32}
        )
        assert not any(
            info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        )
        if cls is T5EncoderModel:
            states = model(torch.tensor([[5, 6, 7]]))[0]
            assert 0.1 < states.std().item() < 10
    assert len(list((tmp_path / "stage_1" / "text_encoder").glob("*.safetensors"))) > 1


def test_writing_again_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there at its full length is kept; a file that was cut is made anew."""
    with small_cascade(monkeypatch):
        synthesize("if-m", tmp_path, components=("stage_1", "upscaler"))
        kept = tmp_path / "upscaler" / "vae" / "diffusion_pytorch_model.fp16.safetensors"
        cut = tmp_path / "stage_1" / "unet" / kept.name
        before, content = kept.stat().st_mtime_ns, cut.read_bytes()
        os.truncate(cut, 1000)
        seen: list[tuple[str, int, int]] = []
        total = synthesize(
            "if-m", tmp_path, components=("stage_1", "upscaler"),
            report=lambda *progress: seen.append(progress),
        )  # fmt: skip
    assert kept.stat().st_mtime_ns == before
    assert {name for name, _, _ in seen} == {f"unet/{kept.name}"}
    assert seen[-1][1:] == (total, total)
    assert cut.read_bytes() == content


def test_noise_is_written_a_block_at_a_time(tmp_path: Path) -> None:
    """A gigabyte of weights on disk, not in memory."""
    peak = start = read_memory().ram_anon

    def watch(_name: str, _done: int, _total: int) -> None:
        nonlocal peak
        peak = max(peak, read_memory().ram_anon)

    size = synthesize("if-m", tmp_path, components=("stage_1",), report=watch)
    assert size > 700e6
    assert peak - start < 250e6


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["demo", "out"], 1, "no published sizes"),
        (["if-xxl", "out"], 1, "no published sizes"),
        (["if-m", "out", "--fill", "ones"], 2, "noise or zeros"),
        (["if-m", "out", "--only", "stage_9"], 2, "unknown component"),
        (["if-m", "/dev/null/x", "--only", "postprocess"], 1, "cannot be written"),
    ],
)
def test_what_cannot_be_made_is_told_in_a_line(
    arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written then."""
    assert main(["synthesize", *arguments]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And zeros, which take none of it, are offered."""
    usage = SimpleNamespace(total=10, used=10, free=0)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(CascadeError, match=r"743\.3 MB are needed and 0 B are free.*--fill zeros"):
        synthesize("if-m", tmp_path / "out", components=("stage_1",))
    assert not (tmp_path / "out").exists()
    synthesize("if-m", tmp_path / "out", components=("stage_1",), fill="zeros")
