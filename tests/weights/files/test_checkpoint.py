"""Weight files, opened once: mapped, read, checked, closed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_if.errors import CheckpointError
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.memory_readings import read_memory

TENSORS = {
    "half": torch.randn(300, 210).half(),
    "brain": torch.randn(70_001).bfloat16(),
    "single": torch.randn(5, 7, 3),
    "bytes": torch.arange(-100, 100, dtype=torch.int8),
    "scalar": torch.tensor(3.5),
    "nothing": torch.empty(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_a_checkpoint_is_a_mapping_of_its_tensors(file: Path) -> None:
    """Names, types, shapes and bits are the file's."""
    with Checkpoint((file,)) as checkpoint:
        assert sorted(checkpoint) == sorted(TENSORS)
        for name, tensor in TENSORS.items():
            assert checkpoint[name].dtype == tensor.dtype
            assert torch.equal(checkpoint[name], tensor)


def test_shards_are_one_mapping(tiny: Path, tmp_path: Path) -> None:
    """A sharded folder opens as one, each file mapped once however many tensors are asked for."""
    folder = tmp_path / "text_encoder"  # other tests may map the shared one
    shutil.copytree(tiny / "stage_1" / "text_encoder", folder)
    expected = {
        k: v.clone() for file in folder.glob("*.safetensors") for k, v in load_file(file).items()
    }
    with Checkpoint.of_folder(folder) as checkpoint:
        views = dict(checkpoint)
        assert all(torch.equal(views[name], tensor) for name, tensor in expected.items())
        maps = Path("/proc/self/maps").read_text()
        assert all(maps.count(str(path)) == 1 for path in checkpoint.paths)
        del views


def test_opening_copies_nothing(tmp_path: Path) -> None:
    """A 400 MB file opens, and all of its tensors, in less than 5 MB of memory."""
    path = tmp_path / "big.safetensors"
    save_file({str(k): torch.zeros(50_000_000, dtype=torch.half) for k in range(4)}, path)
    before = read_memory()
    with Checkpoint((path,)) as checkpoint:
        views = dict(checkpoint)
        now = read_memory()
        assert now.ram_anon - before.ram_anon < 5e6
        assert now.ram_file - before.ram_file < 5e6
        assert len(views) == 4
        del views


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["half", "brain", "single", "scalar"])
def test_reading_casts_as_torch_does(file: Path, name: str, target: torch.dtype) -> None:
    """Every pair of types gives the bits of `Tensor.to`, whole and from the middle on."""
    expected = TENSORS[name].to(target)
    with Checkpoint((file,)) as checkpoint:
        out = torch.empty_like(expected)
        reader = Reader(checkpoint)
        reader.read(checkpoint.stored(name), out)
        assert torch.equal(out, expected)
        first = expected.numel() // 3
        part = torch.empty(expected.numel() - first, dtype=target)
        reader.read(checkpoint.stored(name), part, first=first)
        assert torch.equal(part, expected.flatten()[first:])


def test_the_largest_and_oddest_halves_are_cast_right(tmp_path: Path) -> None:
    """All 65,536 float16 numbers, infinities and subnormals among them, become the right bfloat16."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    save_file({"every": every}, tmp_path / "every.safetensors")
    with Checkpoint((tmp_path / "every.safetensors",)) as checkpoint:
        out = torch.empty(2**16, dtype=torch.bfloat16)
        Reader(checkpoint).read(checkpoint.stored("every"), out)
    expected = every.to(torch.bfloat16)
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out[~out.isnan()], expected[~expected.isnan()])


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_signal(file: Path) -> None:
    """The read says which file; the process lives."""
    with Checkpoint((file,)) as checkpoint:
        os.truncate(file, 2000)
        with pytest.raises(CheckpointError, match="shorter"):
            Reader(checkpoint).read(checkpoint.stored("half"), torch.empty(300, 210).half())


def replace(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())
    other.replace(file)


def rewrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x07")
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("harm", [replace, rewrite, Path.unlink, lambda file: os.truncate(file, 9)])
def test_a_file_that_changed_since_it_was_opened_is_told(file: Path, harm) -> None:
    """Replaced, rewritten, removed or truncated: the check names the file."""
    with Checkpoint((file,)) as checkpoint:
        checkpoint.check()
        harm(file)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            checkpoint.check()


def test_closing_gives_file_and_mapping_back(file: Path) -> None:
    """After the `with` neither a handle nor a mapping is left, but for a view that is still alive."""
    with Checkpoint((file,)) as checkpoint:
        assert checkpoint["half"].sum().isfinite()
        view = checkpoint["single"]
    assert torch.equal(view, TENSORS["single"])
    del view
    assert str(file) not in Path("/proc/self/maps").read_text()
    assert file not in [link.resolve() for link in Path("/proc/self/fd").iterdir()]


def test_one_broken_shard_closes_the_others(file: Path, tmp_path: Path) -> None:
    """An error while opening leaves no handle behind."""
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:-5])
    handles = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint((file, broken))
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
