"""The notices of a run: what the user should know about the pictures, each once, in `notices.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lowmem_if.engine.run_folder.writing import writing


class Notices:
    """The notices in a file, in their order."""

    def __init__(self, file: Path) -> None:
        """Read the notices; without a file there are none."""
        self._file = file
        self._texts = dict.fromkeys(_read(file))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self._texts)

    def add(self, text: str) -> bool:
        """Append a notice; False if there is the same already."""
        if text in self._texts:
            return False
        self._texts[text] = None
        # Thousands of pictures may have one each: notices are appended, not all written again. A line
        # that a killed writer left unfinished must not spoil the next one.
        with writing(self._file.parent), self._file.open("ab") as stream:
            stream.write(f"\n{json.dumps(text)}\n".encode())
        return True


def _read(file: Path) -> Iterator[str]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in filter(None, lines):
        with suppress(ValueError):  # the writer was killed
            yield json.loads(line)
