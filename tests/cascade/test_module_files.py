"""Folders with pickles only: what the error says works, and no pickle is read before."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lowmem_if.cascade.module_files import GUIDE, weight_variant, without_safetensors
from lowmem_if.cascade.variants import is_pickle, safetensors_name
from lowmem_if.errors import CheckpointError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("root", "stem", "pickle"),
    [
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model.fp16.bin"),
        ("safety_checker", "model", "pytorch_model.fp16.bin"),
    ],
)
def test_the_command_in_the_error_makes_the_missing_file(
    tiny: Path, tmp_path: Path, root: str, stem: str, pickle: str
) -> None:
    """The same tensors, where they are looked for; even in a folder whose name has spaces."""
    folder = Path(shutil.copytree(tiny / "stage_1" / root, tmp_path / "my folder" / root))
    (file,) = folder.glob(f"{stem}.fp16.safetensors")
    tensors = load_file(file)
    torch.save(tensors, folder / pickle)
    file.unlink()
    with pytest.raises(CheckpointError) as caught:
        weight_variant(folder)
    text = str(caught.value)
    assert "\n" not in text
    command = text[text.index("python -c") :]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    again = load_file(file)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert weight_variant(folder).files == (file.name,)


def test_several_pickles_lead_to_the_page_about_them(tmp_path: Path) -> None:
    """Shards need an index, too: one line has no room for that."""
    for number in (1, 2):
        (tmp_path / f"pytorch_model-0000{number}-of-00002.bin").touch()
    assert without_safetensors(tmp_path).endswith("convert them as docs/how-to/own-weights.md says")


@pytest.mark.slow
def test_the_pages_script_converts_shards_and_their_index(tiny: Path, tmp_path: Path) -> None:
    """What the page shows is run as it is: the folder is loadable, with the same tensors."""
    page = (Path(__file__).parents[2] / GUIDE).read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    source = tiny / "stage_1" / "text_encoder"
    folder = Path(shutil.copytree(source, tmp_path / "text_encoder"))
    for file in sorted(folder.glob("*.safetensors")):
        torch.save(load_file(file), folder / file.name.replace("model.", "pytorch_model.", 1).replace(
            ".safetensors", ".bin"
        ))  # fmt: skip
        file.unlink()
    (index,) = folder.glob("*.index*.json")
    text = index.read_text().replace('"model.', '"pytorch_model.').replace(".safetensors", ".bin")
    (folder / "pytorch_model.bin.index.fp16.json").write_text(text)
    index.unlink()
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)
    assert weight_variant(folder) == weight_variant(source)
    for file in source.glob("*.safetensors"):
        again, tensors = load_file(folder / file.name), load_file(file)
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert json.loads((folder / index.name).read_text()) == json.loads(
        (source / index.name).read_text()
    )


def test_an_empty_folder_is_not_said_to_have_pickles(tmp_path: Path) -> None:
    """Training states and other files are no weights."""
    (tmp_path / "optimizer.bin").touch()
    assert "no safetensors weights; fetch or copy the folder again" in without_safetensors(tmp_path)


def test_a_pickle_s_name_has_a_counterpart() -> None:
    """transformers' files lose `pytorch_`, diffusers' keep it."""
    assert safetensors_name("pytorch_model.fp16.bin") == "model.fp16.safetensors"
    assert safetensors_name("diffusion_pytorch_model.bin") == "diffusion_pytorch_model.safetensors"
    assert is_pickle("pytorch_model-00001-of-00002.bin")
    assert not is_pickle("tokenizer.bin")
