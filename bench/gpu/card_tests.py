"""Run `tests/whole_runs/test_cuda.py`; one row per test."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

from bench.gpu.rows import SECONDS, Row, figure, row
from bench.gpu.setup import ROOT, Setup

_COMMAND = ("-m", "pytest", "-v", "-ra", "--tb=short", "-p", "no:cacheprovider", "-m", "cuda")
_TEST = re.compile(r"^tests/\S+?::(?P<name>.+?) (?P<end>PASSED|FAILED|ERROR|SKIPPED)\b")
_SUMMARY = re.compile(r"^(FAILED|ERROR) tests/\S+?::(?P<name>.+?)(?: - (?P<text>.*))?$")


def rows(setup: Setup) -> Iterator[Row]:
    """One row per test, as it ends.

    Raises:
        RuntimeError: there is a card, and no test used it.
    """
    command = [sys.executable, *_COMMAND, "tests/whole_runs/test_cuda.py"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        passed = 0
        for each in parsed(process.stdout):
            passed += each["ok"] is True
            yield each
    if setup.on_card and not passed:
        raise RuntimeError("no test passed on the card; the log says why")


def parsed(lines: Iterable[str]) -> Iterator[Row]:
    """Rows of what `pytest -v -ra` prints; the summary adds the words of what failed."""
    before = time.monotonic()
    for line in lines:
        sys.stdout.write(line)  # into the part's log
        now = time.monotonic()
        if ended := _TEST.match(line):
            passed, skipped = ended["end"] == "PASSED", ended["end"] == "SKIPPED"
            seconds = figure("test", round(now - before, 2), unit=SECONDS)
            text = "" if passed else ended["end"].lower()
            yield row(ended["name"], seconds, ok=None if skipped else passed, text=text)
            before = now
        elif line.startswith("collected"):
            before = now  # the imports are no test's
        elif failed := _SUMMARY.match(line):
            yield row(failed["name"], ok=False, text=failed["text"] or "failed")
