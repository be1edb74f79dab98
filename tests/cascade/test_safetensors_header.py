"""safetensors headers, good and bad, of files written here byte by byte."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.cascade.safetensors_header import TensorHeader, read_header, read_headers
from lowmem_if.errors import CheckpointError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


def entry(dtype: Any = "F16", shape: Any = (2, 3), start: Any = 0, end: Any = 12) -> dict[str, Any]:
    """One tensor of a header; by default 12 bytes."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(file: Path, header: object, data: int | bytes, length: int | None = None) -> Path:
    """A file of that header (an object, or the bytes themselves) and that much data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = bytes(data) if isinstance(data, int) else data
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def refused(file: Path) -> str:
    """The words in which the file is refused: one line that names it and says what to do."""
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert text.endswith("fetch or copy the file again")
    assert "\n" not in text
    return text


# --- good files ---------------------------------------------------------------------------------


def test_a_header_tells_dtype_shape_and_size_of_each_tensor(file: Path) -> None:
    """Tensors come by name with what the header says; its metadata is no tensor."""
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("F32", [4], 12, 28),
        "a": entry("F16", [2, 3], 0, 12),
    }
    start = write(file, header, 28).stat().st_size - 28
    assert read_header(file) == {
        "a": TensorHeader("F16", (2, 3), 12, start),
        "b": TensorHeader("F32", (4,), 16, start + 12),
    }


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_number_type_has_its_size(file: Path, dtype: str) -> None:
    """All of safetensors' plain number types are known with their bytes."""
    size = 6 * ITEM_BYTES[dtype]
    tensor = read_header(write(file, {"x": entry(dtype, [2, 3], 0, size)}, size))["x"]
    assert (tensor.numbers, tensor.size_bytes) == (6, size)


def test_scalars_and_empty_tensors_are_fine(file: Path) -> None:
    """No dimensions mean one number, a dimension of 0 means none."""
    header = {"one": entry("F32", [], 0, 4), "none": entry("F32", [3, 0], 4, 4)}
    tensors = read_header(write(file, header, 4))
    assert (tensors["one"].numbers, tensors["none"].numbers) == (1, 0)


def test_a_header_may_be_padded_with_spaces(file: Path) -> None:
    """The reference writer pads the JSON with spaces to 8 bytes."""
    text = json.dumps({"x": entry()}).encode() + b"   "
    assert set(read_header(write(file, text, 12))) == {"x"}


def test_a_file_without_tensors_is_fine(file: Path) -> None:
    """An empty table is a valid file."""
    assert read_header(write(file, {}, 0)) == {}


def test_names_may_be_any_unicode(file: Path) -> None:
    """Tensor names are kept as they are."""
    assert set(read_header(write(file, {"وزن 重み": entry()}, 12))) == {"وزن 重み"}


def test_shards_add_up_to_one_table(tmp_path: Path) -> None:
    """The tensors of several files come together."""
    first = write(tmp_path / "1.safetensors", {"a": entry()}, 12)
    second = write(tmp_path / "2.safetensors", {"b": entry()}, 12)
    assert set(read_headers([first, second])) == {"a", "b"}
    assert read_headers([]) == {}


def test_the_reference_implementation_agrees(file: Path) -> None:
    """What the safetensors library wrote is read back with the same names, types and shapes."""
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {
        "a": numpy.zeros((2, 3), numpy.float16),
        "b.c": numpy.zeros((5,), numpy.int8),
        "s": numpy.zeros((), numpy.float32),
    }
    safetensors.save_file(arrays, file, metadata={"format": "np"})
    found = read_header(file)
    assert {name: (t.dtype, t.shape, t.size_bytes) for name, t in found.items()} == {
        "a": ("F16", (2, 3), 12),
        "b.c": ("I8", (5,), 5),
        "s": ("F32", (), 4),
    }
    content = file.read_bytes()
    assert all(
        content[t.offset : t.offset + t.size_bytes] == arrays[name].tobytes()
        for name, t in found.items()
    )


# --- broken files -------------------------------------------------------------------------------


def test_a_missing_file_is_told(file: Path) -> None:
    """A file that is not there is said to be missing."""
    assert "missing" in refused(file)


def test_a_folder_is_told(tmp_path: Path) -> None:
    """A folder in place of the file cannot be read."""
    assert "cannot be read" in refused(tmp_path)


def test_a_link_into_nowhere_is_missing(file: Path) -> None:
    """A link of the Hugging Face cache whose blob was deleted is a missing file."""
    file.symlink_to("gone")
    assert "missing" in refused(file)


@pytest.mark.parametrize("content", [b"", b"\x10", b"\x02" + bytes(6), bytes(8), bytes(100)])
def test_a_file_that_is_too_short_or_blank_has_no_header(file: Path, content: bytes) -> None:
    """Empty files, cut length fields and zeros are said to have no header, with their length."""
    file.write_bytes(content)
    assert f"{len(content)} bytes long" in refused(file)


@pytest.mark.parametrize("length", [1, 2**63, 10**9, 60])
def test_a_header_length_that_cannot_be_is_refused_before_it_is_read(
    file: Path, length: int
) -> None:
    """A length beyond the file, or none to speak of, is refused without reading that much."""
    write(file, {"x": entry()}, 0, length=length)
    if length == 60:
        file.write_bytes(file.read_bytes()[:60])
    assert "no safetensors header" in refused(file)


@pytest.mark.parametrize("lost", [1, 6, 12])
def test_a_truncated_file_is_told(file: Path, lost: int) -> None:
    """When the last bytes did not arrive, the tensor and the bytes that are missing are named."""
    write(file, {"x": entry()}, 12 - lost)
    text = refused(file)
    assert "truncated" in text
    assert "'x'" in text
    assert str(lost) in text


def test_a_file_that_is_too_long_is_told(file: Path) -> None:
    """Bytes behind the last tensor mean that header and data are not of one file."""
    assert "12" in refused(write(file, {"x": entry()}, 13))


@pytest.mark.parametrize(
    "text", [b"not json at all", b"{'x': 1}", b'{"x": ', b"\xff\xfe\xfd\xfc", b"<html>404</html>"]
)
def test_a_header_that_is_no_json_is_told(file: Path, text: bytes) -> None:
    """A web page or noise in place of the header is said to be no JSON."""
    assert "not valid JSON" in refused(write(file, text, 12))


@pytest.mark.parametrize("header", [[1], "text", 12, None, True])
def test_json_that_is_no_table_is_told(file: Path, header: object) -> None:
    """A header must be an object."""
    assert "not a table" in refused(write(file, header, 12))


@pytest.mark.parametrize(
    "tensor",
    [
        None,
        5,
        "F16",
        [],
        {},
        {"dtype": "F16", "shape": [6]},
        {"dtype": "F16", "data_offsets": [0, 12]},
        {"shape": [6], "data_offsets": [0, 12]},
        entry(dtype="F12"),
        entry(dtype=["F16"]),
        entry(dtype=None),
        entry(shape=6),
        entry(shape=None),
        entry(shape=["a"]),
        entry(shape=[None]),
        entry(start="0"),
        entry(end=None),
        {"dtype": "F16", "shape": [6], "data_offsets": [0, 12, 24]},
        {"dtype": "F16", "shape": [6], "data_offsets": 12},
        entry(shape=[-2, -3]),
        entry(shape=[float("inf")]),
    ],
    ids=str,
)
def test_an_entry_that_makes_no_sense_names_its_tensor(file: Path, tensor: object) -> None:
    """Missing keys, unknown number types and impossible shapes or offsets are told by name."""
    assert "'x'" in refused(write(file, {"x": tensor}, 12))


@pytest.mark.parametrize(
    "tensor",
    [
        entry(shape=[7]),
        entry(dtype="F32"),
        entry(end=11),
        entry(start=1),
        entry(start=-1),
        entry(start=-12, end=0),
    ],
)
def test_a_lying_entry_is_told(file: Path, tensor: dict[str, Any]) -> None:
    """A shape or type that does not fill the bytes it claims is refused by name."""
    assert "'x'" in refused(write(file, {"x": tensor}, 12))


def test_a_gap_between_tensors_is_refused(file: Path) -> None:
    """The format allows no bytes that belong to no tensor."""
    refused(write(file, {"a": entry(), "b": entry(start=16, end=28)}, 28))


def test_tensors_that_share_bytes_are_refused(file: Path) -> None:
    """Overlapping tensors are a lie, with and without a gap elsewhere that makes the sizes add up."""
    refused(write(file, {"a": entry(), "b": entry(start=0, end=12)}, 24))
    refused(write(file, {"a": entry(), "b": entry(start=6, end=18)}, 18))
    third = entry(start=24, end=36)
    refused(write(file, {"a": entry(), "b": entry(start=6, end=18), "c": third}, 36))


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-50, 50) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F16", "F32", "I8", "F4", 3]), "shape": _json, "data_offsets": _json}
)


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(
    st.dictionaries(st.text(max_size=3), _entries | _json, max_size=2) | _json, st.integers(0, 9)
)
def test_no_header_however_odd_does_anything_but_parse_or_raise_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, header: object, size: int
) -> None:
    """Any JSON before any data is read, or refused as a CheckpointError."""
    file = tmp_path_factory.getbasetemp() / "odd.safetensors"
    try:
        tensors = read_header(write(file, header, size))
    except CheckpointError:
        return
    assert sum(tensor.size_bytes for tensor in tensors.values()) == size


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.binary(max_size=40))
def test_no_bytes_do_anything_but_raise_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Noise in place of a file is never taken for tensors."""
    file = tmp_path_factory.getbasetemp() / "noise.safetensors"
    file.write_bytes(content)
    with suppress(CheckpointError):
        assert read_header(file) == {}


def test_reading_headers_imports_no_torch() -> None:
    """Headers are read without torch, numpy or the safetensors library."""
    code = (
        "import sys, lowmem_if.cascade.safetensors_header; "
        "print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
