"""Files of prompt embeddings: every prompt survives in every format, and other libraries read them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy
import pytest
import torch
from embedding_dicts import SUFFIXES, made_up, stored, write
from safetensors.torch import load_file

from lowmem_if.errors import EmbeddingsError
from lowmem_if.weights.embedding_files.embedding_tensors import load_embeddings
from lowmem_if.weights.embedding_files.embedding_writer import check_writable, write_embeddings
from lowmem_if.weights.embedding_files.prompt_names import names_of

STRANGE = (
    "", "a red circle", "a/b/../c", "/etc/passwd", "..\\x", "C:\\a", "a\0b", "a\n'b'\t\"c\"", "a.npy",
    "دائرة حمراء 🟥 赤い円", "x" * 70_000, "__metadata__", "__prompts__", "file", "arr_0", "tensor",
    "prompt-" + 64 * "0", "A RED CIRCLE", " a red circle ",
)  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_prompt_survives(tmp_path: Path, suffix: str, dtype: str) -> None:
    """Slashes, zero bytes, other scripts, great length, names that formats reserve: bit for bit."""
    embeddings = made_up(*STRANGE, dtype=getattr(torch, dtype))
    read = load_embeddings(write(tmp_path / f"prompts{suffix}", embeddings, dtype))
    assert list(read) == list(STRANGE)
    for prompt in STRANGE:
        assert read[prompt].dtype == embeddings[prompt].dtype
        assert torch.equal(read[prompt], embeddings[prompt])


def test_names_are_never_shared() -> None:
    """Even a prompt that looks like another one's substitute has a name of its own."""
    names = names_of(["a\0b"])
    both = names_of(["a\0b", names["a\0b"]])
    assert len(set(both.values())) == 2


def test_torch_reads_the_form_that_courses_use(tmp_path: Path) -> None:
    """A dictionary of float16 tensors (1, 77, width), each with its own storage."""
    file = write(tmp_path / "prompts.pth", made_up("a", ""), "float16")
    found = torch.load(file, weights_only=True)
    assert type(found) is dict
    assert list(found) == ["a", ""]
    assert {(tensor.dtype, tuple(tensor.shape)) for tensor in found.values()} == {
        (torch.float16, (1, 77, 8))
    }
    assert {t.untyped_storage().nbytes() for t in found.values()} == {77 * 8 * 2}


def test_safetensors_and_numpy_read_prompts_as_names(tmp_path: Path) -> None:
    """Without this package."""
    embeddings = made_up("a red/green circle", "")
    found = load_file(write(tmp_path / "prompts.safetensors", embeddings))
    with numpy.load(write(tmp_path / "prompts.npz", embeddings), allow_pickle=False) as arrays:
        assert set(arrays.files) == set(found) == set(embeddings)
        for prompt, tensor in embeddings.items():
            assert torch.equal(found[prompt], tensor)
            assert numpy.array_equal(arrays[prompt], tensor.numpy())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bfloat16_is_widened(tmp_path: Path, suffix: str) -> None:
    """What an encoder computes in bfloat16 is the same number in float32."""
    embeddings = made_up("a", dtype=torch.bfloat16)
    read = load_embeddings(write(tmp_path / f"a{suffix}", embeddings))
    assert torch.equal(read["a"], embeddings["a"].float())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_that_float16_cannot_hold_are_an_error(tmp_path: Path, suffix: str) -> None:
    """Nothing is written then."""
    with pytest.raises(
        EmbeddingsError, match="'a' has numbers that float16 cannot hold: use --dtype"
    ):
        write(tmp_path / f"a{suffix}", {"a": torch.full((1, 77, 8), 70_000.0)}, "float16")
    assert not [file for file in tmp_path.iterdir() if file.is_file()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_few_embeddings_are_in_memory_at_a_time(tmp_path: Path, suffix: str) -> None:
    """A file of thousands of prompts takes no more memory than one of a few."""
    embedding = stored(torch.ones(1, 77, 4096))
    prompts = [str(number) for number in range(24)]
    write(tmp_path / f"warm{suffix}", made_up("a"))  # imports
    tracemalloc.start()
    try:
        write_embeddings(tmp_path / f"a{suffix}", prompts, lambda _: embedding, "float16", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(embedding.content)


def test_the_same_embeddings_are_the_same_bytes(tmp_path: Path) -> None:
    """No time of writing is in a file."""
    for suffix in SUFFIXES:
        files = [write(tmp_path / f"{name}{suffix}", made_up("a", "")) for name in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    """Before hours of encoding."""
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "file").touch()
    for name, words in (
        ("a.bin", r"must end in \.pth, \.pt, \.safetensors, \.npz"),
        ("folder.pth", "is a folder: give --out another name"),
        ("file/a.pth", "cannot be made"),
    ):
        with pytest.raises(EmbeddingsError, match=words):
            check_writable(tmp_path / name)
    check_writable(tmp_path / "new" / "a.pth")
    assert (tmp_path / "new").is_dir()
