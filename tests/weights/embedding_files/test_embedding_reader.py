"""Files of embeddings from anywhere: no code in them runs, and each fault is one plain line."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from embedding_dicts import SUFFIXES, made_up, write
from safetensors.torch import save_file

from lowmem_if.errors import EmbeddingsError
from lowmem_if.weights.embedding_files.embedding_reader import opened_embeddings
from lowmem_if.weights.embedding_files.embedding_tensors import load_embeddings

GOOD = torch.zeros(1, 77, 8)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def refusal(file: Path) -> str:
    """The one line that says why a file cannot be read."""
    with pytest.raises(EmbeddingsError) as caught:
        load_embeddings(file)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(file))
    return text


def as_torch(content: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(content, file)


def as_npz(**arrays: Any) -> Callable[[Path], None]:
    return lambda file: numpy.savez(file, **arrays)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path: Path, suffix: str, legacy: bool) -> None:
    """In torch's formats old and new."""
    trap, file = tmp_path / "trap", tmp_path / f"a{suffix}"
    content = {"a": GOOD, "b": Code(trap)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert "something else than tensors" in refusal(file)
    assert not trap.exists()


def test_code_in_other_pickles_never_runs(tmp_path: Path) -> None:
    """A plain pickle, and Python objects in an npz file."""
    trap = tmp_path / "trap"
    plain = tmp_path / "a.pth"
    plain.write_bytes(pickle.dumps({"a": Code(trap)}))
    array = numpy.array([Code(trap)], dtype=object)
    numpy.savez(tmp_path / "a.npz", a=array)
    assert "something else than tensors" in refusal(plain)
    assert "Python objects" in refusal(tmp_path / "a.npz")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("suffix", "make", "words"),
    [
        (".pth", as_torch([GOOD]), "holds a list"),
        (".pth", as_torch(GOOD), "holds a Tensor"),
        (".pth", as_torch({7: GOOD}), "key 7 is no prompt"),
        (".pth", as_torch({"\ud800": GOOD}), "is no prompt"),
        (".pth", as_torch({"a": {"b": GOOD}}), "holds a dict for 'a'"),
        (".pth", as_torch({"a": "b"}), "holds a str for 'a'"),
        (".pth", as_torch({"a": GOOD.to_sparse()}), "holds a Tensor for 'a': save plain"),
        (".pth", as_torch({"a": GOOD.int()}), "numbers of type int32"),
        (".pth", as_torch({"a": GOOD.double()}), "numbers of type float64"),
        (".pth", as_torch({"a": GOOD[0]}), r"shape (77, 8)"),
        (".pth", as_torch({"a": GOOD.expand(2, 77, 8)}), "shape (2, 77, 8)"),
        (".pth", as_torch({"a": torch.zeros(())}), "shape ()"),
        (".pth", as_torch({"a": torch.zeros(1, 77, 0)}), "shape (1, 77, 0)"),
        (".pth", as_torch({"a": GOOD / 0}), "NaN or infinite"),
        (".npz", as_npz(a=numpy.zeros((1, 77, 8), "f8")), "numbers of type float64"),
        (".npz", as_npz(a=numpy.zeros((77, 8), "f4")), "shape (77, 8)"),
        (".npz", as_npz(a=numpy.full((1, 77, 8), numpy.inf, "f4")), "NaN or infinite"),
        (".npz", as_npz(__prompts__=numpy.zeros((3, 3))), "index of prompts is broken"),
        (
            ".safetensors",
            lambda file: save_file({"a": GOOD.bfloat16() / 0}, file),
            "NaN or infinite",
        ),
        (".safetensors", lambda file: save_file({"a": GOOD.long()}, file), "numbers of type I64"),
    ],
)
def test_what_is_no_embedding_is_refused(
    tmp_path: Path, suffix: str, make: Callable[[Path], None], words: str
) -> None:
    """With the prompt, and what would be right."""
    make(file := tmp_path / f"a{suffix}")
    assert words in refusal(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"a red circle\n" * 50])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Whatever its name says."""
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    assert refusal(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, suffix: str) -> None:
    """Wherever its end is."""
    whole = write(tmp_path / f"whole{suffix}", made_up("a", "")).read_bytes()
    file = tmp_path / f"cut{suffix}"
    for end in range(1, len(whole), len(whole) // 7):
        file.write_bytes(whole[:end])
        assert refusal(file)


def test_missing_files_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    """With what to give instead."""
    assert "does not exist" in refusal(tmp_path / "a.pth")
    assert "does not exist" in refusal(tmp_path / "a.npz")
    assert "missing" in refusal(tmp_path / "a.safetensors")
    assert "must end in .pth" in refusal(tmp_path / "a.ckpt")


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    """Which of them was meant is not known."""
    stream = io.BytesIO()
    numpy.save(stream, GOOD.numpy())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", stream.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", stream.getvalue())
    assert "two arrays of one name" in refusal(tmp_path / "a.npz")


def test_other_peoples_files_are_read(tmp_path: Path) -> None:
    """Parameters, an ordered dictionary, torch's old format, compressed arrays, the other byte order."""
    import collections

    tensor = made_up("a")["a"]
    ordered = collections.OrderedDict(a=torch.nn.Parameter(tensor))
    torch.save(ordered, tmp_path / "a.pth")
    torch.save({"a": tensor}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    numpy.savez_compressed(tmp_path / "c.npz", a=tensor.numpy().astype(">f4"))
    numpy.savez(tmp_path / "d.npz", a=numpy.asfortranarray(tensor.numpy()))
    torch.save({"a": tensor.transpose(1, 2).contiguous().transpose(1, 2)}, tmp_path / "e.pt")
    for file in tmp_path.glob("?.*"):
        found = load_embeddings(file)["a"]
        assert torch.equal(found, tensor), file
        assert not found.requires_grad


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_prompt_is_answered_with_the_nearest(tmp_path: Path, suffix: str) -> None:
    """Five at most, shortened, and how many more there are."""
    prompts = ["", "a fox", *(f"landscape {n}" for n in range(9)), "a red circle" + 90 * "!"]
    file = write(tmp_path / f"a{suffix}", made_up(*prompts, "a red circl"))
    with opened_embeddings(file) as opened:
        opened.check("a red circl")
        with pytest.raises(EmbeddingsError) as caught:
            opened.check("a red circle")
        text = str(caught.value)
        assert text.startswith(
            f"{file} has no embedding of the prompt 'a red circle'; it has 'a red circl',"
        )
        assert text.endswith(" and 8 more")
        assert len(text) < len(str(file)) + 300
        opened.check("a fox", width=8)
        with pytest.raises(EmbeddingsError, match=r"encoder makes \(1, 77, 4096\)"):
            opened.check("a fox", width=4096)


def test_the_empty_prompt_may_be_the_missing_one(tmp_path: Path) -> None:
    """It has words of its own."""
    with (
        opened_embeddings(write(tmp_path / "a.npz", made_up("a"))) as opened,
        pytest.raises(EmbeddingsError, match=r"the empty prompt ''; it has 'a'$"),
    ):
        opened.check("")
