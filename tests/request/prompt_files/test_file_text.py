"""Encodings of prompt files, and files that are no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_if.errors import BatchError
from lowmem_if.request.batch_file import read_batch
from lowmem_if.request.prompt_files.file_text import text_of

TEXT = "un château rouge\n赤い円\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_of_byte_order_name_the_encoding(encoding: str) -> None:
    """The mark is no part of the text."""
    assert text_of(TEXT.encode(encoding), "a.txt") == TEXT


def test_a_file_of_a_western_spreadsheet_is_refused_with_its_encoding(tmp_path: Path) -> None:
    """Line by line: what is ASCII is drawn, and nothing is guessed."""
    file = tmp_path / "a.csv"
    file.write_bytes("prompt;seed\r\nun château rouge;7\r\na red circle;8\r\n".encode("cp1252"))
    batch = read_batch(file, lambda _row: None)
    assert [row["prompt"] for row in batch.rows] == ["a red circle"]
    assert [str(line) for line in batch.bad_lines] == [
        "line 2: it is not UTF-8; as Windows-1252 (cp1252) it reads 'un château rouge': "
        "save the file as UTF-8"
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG picture"),
        (b"\xff\xd8\xff\xe0JFIF", "is a JPEG picture"),
        (b"PK\x03\x04\x14\0\x06\0", r"is a ZIP archive, or a document like \.xlsx or \.docx"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "is a PDF"),
        (b"{\\rtf1\\ansi a red circle}", "is a document in RTF"),
        (b"a\0r\0e\0d\0", "zero bytes"),
        (b"\xff\xfea\0b", "breaks off"),
    ],
)
def test_a_binary_file_is_refused_at_once(tmp_path: Path, content: bytes, what: str) -> None:
    """One error says what it is, instead of one for each line."""
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(BatchError, match=f"a.txt .*{what}.*in UTF-8"):
        read_batch(file, lambda _row: None)


def test_words_that_begin_like_a_binary_file_are_text() -> None:
    """Only bytes that no text has decide."""
    assert text_of(b"BMX bikes\nPK\n", "a.txt") == "BMX bikes\nPK\n"
