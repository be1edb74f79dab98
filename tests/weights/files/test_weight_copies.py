"""bfloat16 copies of weights: exact, never stale, whole or not there, and removable."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_if.cascade.catalog import PUBLISHED
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.locating.hub_folders import storage_folder
from lowmem_if.cli.main import main
from lowmem_if.errors import CascadeError, CheckpointError
from lowmem_if.weights.files import convert_dtype, safetensors_writer
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.fingerprint import fingerprint
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.files.weight_copies import (
    convert,
    converted_folder,
    find_converted,
    needs_conversion,
    remove_converted,
    streamed_networks,
)
from lowmem_if.weights.memory_readings import read_memory

FILE = "diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def unet(tiny: Path, tmp_path: Path) -> Path:
    """A module folder to convert and to change; its weights are 16-bit and in one file."""
    return Path(shutil.copytree(tiny / "stage_1/unet", tmp_path / "cascade/stage_1/unet"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "converted"


def entries(cache: Path) -> list[str]:
    """What the cache holds, half-made folders too, the lock's file not."""
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


def bits(tensor: torch.Tensor) -> list[int]:
    """The bits of bfloat16 numbers; those of "no number" are one for all, in torch they are two."""
    numbers = torch.where(tensor.isnan(), torch.nan, tensor)
    return numbers.reshape(-1).view(torch.int16).tolist()


def change(unet: Path, *, keep_date: bool = False) -> None:
    """Other numbers of the same length in the weight file."""
    file = unet / FILE
    dates, content = file.stat(), bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    later = dates.st_mtime_ns + (0 if keep_date else 10**9)
    os.utime(file, ns=(dates.st_atime_ns, later))


# --- what is written -------------------------------------------------------------------------------


def every_kind_of_number() -> dict[str, torch.Tensor]:
    noise = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hard = torch.tensor([0.0, -0.0, 1e-45, -1e-39, 3.4e38, 1e39, -1e39, 1.00390625, 1.01171875])
    return {
        "halves": torch.arange(-(2**15), 2**15, dtype=torch.int32).short().view(torch.float16),
        "doubles": torch.cat([noise * 1e30, noise * 1e-38, hard.double()]),
        "singles": torch.cat([noise.float(), hard]).reshape(1, -1),
        "brains": noise[:999].bfloat16().reshape(3, 333),
        "eighths": noise[:77].to(torch.float8_e4m3fn),
        "scalar": torch.tensor(0.3),
        "nothing": torch.zeros(0, 4),
        "longs": torch.arange(-3, 4000),
        "ints": torch.arange(7, dtype=torch.int32),
        "bytes": torch.arange(255, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
    }


@pytest.mark.parametrize("block_bytes", [64, convert_dtype._BLOCK_BYTES])
def test_numbers_are_what_torch_makes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Floating numbers become torch's own bfloat16, bit for bit; others stay, wherever blocks end."""
    monkeypatch.setattr(convert_dtype, "_BLOCK_BYTES", block_bytes)
    source = every_kind_of_number()
    save_file(source, tmp_path / "model.safetensors", metadata={"format": "pt"})
    copy = load_file(convert(tmp_path) / "model.bf16.safetensors")
    assert copy.keys() == source.keys()
    for name, tensor in source.items():
        assert copy[name].shape == tensor.shape
        if tensor.is_floating_point():
            assert copy[name].dtype == torch.bfloat16
            assert bits(copy[name]) == bits(tensor.to(torch.bfloat16)), name
        else:
            assert copy[name].dtype == tensor.dtype
            assert torch.equal(copy[name], tensor), name


def test_no_tensor_begins_at_an_odd_place(tmp_path: Path) -> None:
    """Each begins on a multiple of its size, so that a view of the file needs no copy."""
    save_file(every_kind_of_number(), tmp_path / "model.safetensors")
    with Checkpoint.of_folder(convert(tmp_path)) as copy:
        for name in copy:
            stored = copy.stored(name)
            assert stored.header.offset % stored.dtype.itemsize == 0, name


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("stage_1/unet", ["diffusion_pytorch_model.bf16.safetensors"]),
        (
            "stage_1/text_encoder",
            [f"model.bf16-0000{k}-of-00003.safetensors" for k in (1, 2, 3)],
        ),
        ("stage_1/watermarker", ["diffusion_pytorch_model.bf16.safetensors"]),
    ],
)
def test_a_copy_is_a_module_folder(tiny: Path, module: str, files: list[str]) -> None:
    """One file a source file, named as the libraries' bf16 variant, which opens like the source."""
    copy = convert(tiny / module)
    assert sorted(file.name for file in copy.glob("*.safetensors")) == files
    with Checkpoint.of_folder(tiny / module) as old, Checkpoint.of_folder(copy) as new:
        assert [file.name for file in new.paths] == files
        assert set(new) == set(old)
        for name in old:
            assert bits(new[name]) == bits(old[name].to(torch.bfloat16))


def test_memory_stays_small(tmp_path: Path) -> None:
    """Half a gigabyte, most of it one tensor, is converted in some megabytes."""
    big, small = (
        safetensors_writer.NewTensor(n, "F32", (s, 2**20)) for n, s in (("big", 100), ("small", 20))
    )
    source = tmp_path / "model.safetensors"
    with source.open("wb") as stream:
        stream.write(safetensors_writer.header_bytes((big, small)))
        stream.truncate(safetensors_writer.file_bytes((big, small)))
    peak = start = read_memory().ram_anon

    def watch(_name: str, _done: int, _total: int) -> None:
        nonlocal peak
        peak = max(peak, read_memory().ram_anon)

    copy = convert(tmp_path, report=watch)
    assert (copy / "model.bf16.safetensors").stat().st_size > 250e6
    assert peak - start < 50e6


def test_progress_ends_at_the_whole(tiny: Path) -> None:
    """Bytes only grow, up to the length of the files that were announced."""
    seen: list[tuple[str, int, int]] = []
    copy = convert(tiny / "stage_1/text_encoder", report=lambda *step: seen.append(step))
    done = [count for _, count, _ in seen]
    assert done == sorted(done)
    assert {total for _, _, total in seen} == {done[-1]}
    assert done[-1] == sum(file.stat().st_size for file in copy.glob("*.safetensors"))
    assert seen[0][0] == "text_encoder/model.bf16-00001-of-00003.safetensors"


# --- whose copy it is ------------------------------------------------------------------------------


def test_a_copy_is_found_where_it_was_said_to_be(unet: Path, cache: Path) -> None:
    """Nothing is found before, and nothing written by looking; afterwards the same folder always."""
    assert find_converted(unet) is None
    assert not cache.exists()
    copy = convert(unet)
    assert copy == converted_folder(unet) == find_converted(unet)
    assert copy.parent == cache


def test_a_copy_is_made_once(unet: Path) -> None:
    """Converting again writes nothing and reports nothing."""
    copy = convert(unet)
    before = {file: file.stat().st_mtime_ns for file in copy.iterdir()}
    assert convert(unet, report=lambda *_: pytest.fail("written again")) == copy
    assert {file: file.stat().st_mtime_ns for file in copy.iterdir()} == before


@pytest.mark.parametrize("keep_date", [False, True])
def test_changed_weights_have_no_copy(unet: Path, keep_date: bool) -> None:
    """Other numbers of the same length are another source, whatever the file's date says."""
    old = convert(unet)
    change(unet, keep_date=keep_date)
    assert find_converted(unet) is None
    new = convert(unet)
    assert new != old
    with Checkpoint.of_folder(unet) as source, Checkpoint.of_folder(new) as copy:
        for name in source:
            assert bits(copy[name]) == bits(source[name].to(torch.bfloat16))


def test_a_change_that_no_sample_sees_is_seen_by_its_date(tmp_path: Path) -> None:
    """One byte between the samples of a large file is enough."""
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(20_000_000)}, file)
    convert(tmp_path)
    sampled = fingerprint(tmp_path, [file])
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\x01")
    assert fingerprint(tmp_path, [file]) == sampled
    assert find_converted(tmp_path) is None


def test_other_files_in_the_folder_take_over(unet: Path) -> None:
    """The key is of those files that a run would load, not of the folder."""
    plain_file = unet / "diffusion_pytorch_model.safetensors"
    shutil.move(unet / FILE, plain_file)
    plain = convert(unet)
    save_file({name: number + 1 for name, number in load_file(plain_file).items()}, unet / FILE)
    assert find_converted(unet) is None
    (unet / FILE).unlink()
    assert find_converted(unet) == plain


def test_equal_weights_elsewhere_share_a_copy(unet: Path, tmp_path: Path) -> None:
    """A cascade that is moved keeps its copies."""
    copy = convert(unet)
    assert find_converted(Path(shutil.move(unet, tmp_path / "moved"))) == copy


@pytest.mark.parametrize("harm", ["cut", "flip", "delete", "record", "empty"])
def test_a_damaged_copy_is_none_and_is_made_anew(unet: Path, cache: Path, harm: str) -> None:
    """A copy is used only if its own files are what was written."""
    copy = convert(unet)
    file = copy / "diffusion_pytorch_model.bf16.safetensors"
    content = file.read_bytes()
    match harm:
        case "cut":
            os.truncate(file, 1000)
        case "flip":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "delete":
            file.unlink()
        case "record":
            (copy / "made_from.json").write_text('{"folder": 1}')
        case "empty":
            shutil.rmtree(copy)
            copy.mkdir()
    assert find_converted(unet) is None
    assert convert(unet) == copy
    assert file.read_bytes() == content
    assert entries(cache) == [copy.name]


def test_missing_weights_are_told(unet: Path) -> None:
    """A folder without its weights has no copy to speak of: the error names the folder."""
    (unet / FILE).unlink()
    for ask in (find_converted, convert, converted_folder, needs_conversion):
        with pytest.raises(CheckpointError, match="no safetensors weights"):
            ask(unet)


def test_bfloat16_weights_need_no_copy(tmp_path: Path) -> None:
    """Only floating numbers of another type do."""
    numbers = {"x": torch.ones(3).bfloat16(), "n": torch.arange(3)}
    save_file(numbers, tmp_path / "model.safetensors")
    assert not needs_conversion(tmp_path)
    save_file(numbers | {"y": torch.ones(3)}, tmp_path / "model.safetensors")
    assert needs_conversion(tmp_path)


# --- whole or not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [0, 1, 30])
def test_a_conversion_that_fails_leaves_nothing(
    unet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """An exception at any read: nothing is found, nothing lies about, and the next try succeeds."""
    real, left = Reader.read, iter(range(reads))

    def fail(self: Reader, *arguments: Any) -> None:
        if next(left, None) is None:
            raise CheckpointError("cannot be read")
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", fail)
        with pytest.raises(CheckpointError, match="cannot be read"):
            convert(unet)
    assert find_converted(unet) is None
    assert entries(cache) == []
    assert convert(unet) == find_converted(unet)


KILLED = """
import os, signal, sys
from pathlib import Path
from lowmem_if.weights.files.weight_copies import convert

def die(name, done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)

convert(Path(sys.argv[1]), report=die)
"""


def test_a_killed_conversion_is_not_found_and_its_rest_is_removed(unet: Path, cache: Path) -> None:
    """What SIGKILL leaves half written counts as nothing; the next conversion of anything clears it."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(unet)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [name.endswith(".partial") for name in entries(cache)] == [True]
    assert find_converted(unet) is None
    other = Path(shutil.copytree(unet, unet.with_name("other")))
    change(other)
    copy = convert(other)
    assert entries(cache) == [copy.name]
    assert convert(unet) == find_converted(unet)


def test_two_conversions_at_once_write_one_copy(unet: Path) -> None:
    """The second waits for the first, and finds what it wrote."""
    begun, go_on = threading.Event(), threading.Event()

    def linger(*_step: object) -> None:
        begun.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(convert, unet, report=linger)
        assert begun.wait(30)
        second = pool.submit(convert, unet, report=lambda *_: pytest.fail("written again"))
        assert not wait([second], timeout=0.3).done
        go_on.set()
        assert first.result(30) == second.result(30) == find_converted(unet)


def test_weights_that_change_meanwhile_are_told(unet: Path, cache: Path) -> None:
    """No copy is of two sources, nor named for another than it was made of."""

    def meddle(_name: str, done: int, total: int) -> None:
        if done == total:
            change(unet)

    with pytest.raises(CheckpointError, match="changed"):
        convert(unet, report=meddle)
    assert entries(cache) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    unet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line that says how much is missing, and where else it could go."""
    usage = SimpleNamespace(total=10, used=10, free=7)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors_writer.shutil, "disk_usage", lambda _path: usage)
        with pytest.raises(CascadeError, match=r"kB are needed and 7 B are free.*LOWMEM_IF_CACHE"):
            convert(unet)
    assert entries(cache) == []
    assert convert(unet)


def test_a_disk_that_fills_up_meanwhile_is_told(
    unet: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own word for it, one line, nothing left behind."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CascadeError, match=r"cannot be written \(No space left on device\)"):
            convert(unet)
    assert entries(cache) == []


def test_a_cache_that_cannot_be_made_is_told(
    unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the cache should be is an error of one line; looking for a copy is none."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWMEM_IF_CACHE", str(tmp_path / "file"))
    assert find_converted(unet) is None
    with pytest.raises(CascadeError, match="cannot be written"):
        convert(unet)
    assert remove_converted(unet) == 0


# --- removal ---------------------------------------------------------------------------------------


def test_what_is_removed_is_gone(unet: Path, cache: Path) -> None:
    """With its bytes told; there is nothing to remove afterwards, or before anything was made."""
    assert remove_converted(unet) == 0
    assert not cache.exists()
    copy = convert(unet)
    size = sum(file.stat().st_size for file in copy.iterdir())
    assert remove_converted(unet) == size
    assert find_converted(unet) is None
    assert entries(cache) == []
    assert remove_converted(unet) == 0


def test_only_copies_of_that_folder_are_removed(unet: Path, tiny: Path) -> None:
    """Other networks keep theirs."""
    convert(unet)
    other = convert(tiny / "stage_2/unet")
    remove_converted(unet)
    assert find_converted(tiny / "stage_2/unet") == other


@pytest.mark.parametrize("gone", [False, True])
def test_stale_copies_are_removed(unet: Path, cache: Path, gone: bool) -> None:
    """Copies of what the folder once held go too, even if the folder itself is gone."""
    convert(unet)
    change(unet)
    if gone:
        shutil.rmtree(unet)
    assert remove_converted(unet) > 0
    assert entries(cache) == []


def test_a_new_copy_takes_the_place_of_a_stale_one(unet: Path, cache: Path) -> None:
    """A disk holds one copy of a folder, not one of each of its versions."""
    stale = convert(unet)
    change(unet)
    copy = convert(unet)
    assert copy != stale
    assert entries(cache) == [copy.name]


def test_a_shared_copy_is_removed_for_either_folder(unet: Path, tmp_path: Path) -> None:
    """It is found for both, so it can be removed by both."""
    convert(unet)
    assert remove_converted(Path(shutil.copytree(unet, tmp_path / "twin"))) > 0
    assert find_converted(unet) is None


def test_what_killed_processes_left_is_removed_too(unet: Path, cache: Path) -> None:
    """Removal clears half-made folders as a conversion does."""
    (cache / ".abc.partial").mkdir(parents=True)
    (cache / ".abc.partial" / "model.bf16.safetensors").write_bytes(b"x")
    assert remove_converted(unet) == 0
    assert entries(cache) == []


def test_other_revisions_of_a_repository_are_removed(
    unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the Hub's cache a new commit is a new folder: copies of the old one are stale, too."""
    hub = tmp_path / "hub"
    repository = PUBLISHED["if-m"].parts["stage_1"].repository or ""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    old = storage_folder(repository) / "snapshots" / ("a" * 40) / "unet"
    shutil.copytree(unet, old)
    convert(old)
    shutil.rmtree(hub)
    here = streamed_networks(locate("if-m", components=()))
    assert here.keys() == {"stage_1", "stage_2", "upscaler"}
    assert [remove_converted(folder) > 0 for folder in here.values()] == [True, False, False]


# --- the command -----------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """The lines on standard output, and standard error, of a `fetch` that succeeds."""
    assert main(["fetch", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


@pytest.mark.parametrize("size", ["1024", "64"])
def test_fetch_converts_what_is_streamed_at_every_step(
    tiny: Path, cache: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    """The UNets that a size needs, never the text encoder; where, and how much, is said."""
    out, err = command(capsys, str(tiny), "--convert", "bf16", "--size", size)
    folders = {"stage 1": tiny / "stage_1/unet"}
    if size == "1024":
        folders |= {"stage 2": tiny / "stage_2/unet", "upscaler": tiny / "upscaler/unet"}
    for (name, folder), line in zip(folders.items(), out[1:], strict=True):
        copy = find_converted(folder)
        assert line.startswith(f"{name}: ")
        assert line.endswith(f"B in bfloat16 are in {copy}")
        assert f"converting {name}: unet/diffusion_pytorch_model.bf16.safetensors" in err
    assert len(entries(cache)) == len(folders)
    assert find_converted(tiny / "stage_1/text_encoder") is None


def test_fetch_removes_copies(tiny: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--convert none` removes them all, says how much that was, and does nothing else."""
    command(capsys, str(tiny), "--convert", "bf16", "--quiet")
    out, err = command(capsys, str(tiny), "--convert", "none")
    assert (len(out), err) == (1, "")
    assert out[0].endswith(" MB of copies removed")
    assert entries(cache) == []
    assert "no copy to remove" in command(capsys, str(tiny), "--convert", "none")[0][0]


def test_fetch_converts_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled cascade too; a second time everything is there, and nothing is written."""
    first, progress = command(capsys, "demo", "--convert", "bf16")
    assert len(progress.splitlines()) == 3
    assert command(capsys, "demo", "--convert", "bf16") == (first, "")


def test_fetch_says_where_no_copy_is_needed(
    tiny: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that are bfloat16 on file are not written a second time."""
    cascade = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    file = cascade / "stage_1/unet" / FILE
    numbers = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(numbers, file, metadata={"format": "pt"})
    out, _ = command(capsys, str(cascade), "--convert", "bf16", "--size", "64")
    assert out[1:] == ["stage 1: its weights are bfloat16 on file already"]
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["demo", "--convert", "fp8"], 2, "unknown conversion 'fp8': use bf16 or int8 or none"),
        (["demo", "--convert", ""], 2, "use bf16 or int8 or none"),
        (["nowhere", "--convert", "none"], 1, "no cascade or folder 'nowhere'"),
        (["nowhere", "--convert", "bf16"], 1, "no cascade or folder 'nowhere'"),
    ],
)
def test_a_wrong_order_is_told_in_a_line(
    arguments: list[str], code: int, told: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is downloaded or written."""
    assert main(["fetch", *arguments]) == code
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not cache.exists()


def test_looking_for_a_copy_needs_no_torch(unet: Path) -> None:
    """So whatever only plans can ask whether a copy is there."""
    code = (
        "import sys; from pathlib import Path; from lowmem_if.weights.files.weight_copies import *\n"
        "assert find_converted(Path(sys.argv[1])) is None; assert remove_converted(Path('x')) == 0\n"
        "assert needs_conversion(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(unet)], check=True, timeout=60)
