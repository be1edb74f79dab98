"""The text of a file of prompts, whatever editor or spreadsheet wrote it."""

from __future__ import annotations

import codecs

from lowmem_if.errors import BatchError, RequestError
from lowmem_if.units import shorten

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip
"""Marks of byte order and their encodings; those of UTF-32 begin with those of UTF-16."""

_BEGINNINGS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture",
    b"RIFF": "a WebP picture or another RIFF file", b"BM": "a BMP picture", b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive, or a document like .xlsx or .docx",
    b"\xd0\xcf\x11\xe0": "a document like .xls or .doc", b"\x1f\x8b": "a gzip archive",
    b"{\\rtf": "a document in RTF",
}  # fmt: skip
_SAVE_AS = "save the prompts as text, JSON lines or CSV in UTF-8"


def text_of(content: bytes, name: str) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 with their mark of byte order.

    Bytes that are not UTF-8 become surrogates, so that only their line fails, in `checked_encoding`.

    Args:
        name: what messages call the file.

    Raises:
        BatchError: the file is no text, or breaks off within a character.
    """
    encoding = next((code for mark, code in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8":
        _check_is_text(content, name)
    try:
        errors = "strict" if encoding in ("utf-16", "utf-32") else "surrogateescape"
        return content.decode(encoding, errors=errors)
    except UnicodeDecodeError as error:
        raise BatchError(
            f"{name} begins as {encoding.upper()} and breaks off: {_SAVE_AS}"
        ) from error


def _check_is_text(content: bytes, name: str) -> None:
    kind = next((what for begin, what in _BEGINNINGS.items() if content.startswith(begin)), "")
    is_binary = b"\0" in content
    if kind and (is_binary or not content.isascii() or content.startswith(b"{\\rtf")):
        raise BatchError(f"{name} is {kind}, not a file of prompts: {_SAVE_AS}")
    if is_binary:
        raise BatchError(f"{name} holds zero bytes, so it is binary or UTF-16: {_SAVE_AS}")


def checked_encoding(text: str) -> str:
    """A text from `text_of` that was UTF-8.

    Raises:
        RequestError: it was not; quotes it as the encoding that it most probably has.
    """
    if text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    read = text.encode("utf-8", "surrogateescape").decode("cp1252", errors="replace")
    raise RequestError(
        f"it is not UTF-8; as Windows-1252 (cp1252) it reads {shorten(read.strip(), 60)!r}: "
        "save the file as UTF-8"
    )
