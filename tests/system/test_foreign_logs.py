"""Messages of other libraries: only those that are named are dropped, and only for a while."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from lowmem_if.system.foreign_logs import without


def test_only_the_named_messages_are_dropped_and_only_inside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another message of the same logger, and the same message afterwards, are seen."""
    logger = logging.getLogger("a.library")
    with without("a.library", "needs nothing"):
        logger.warning("%s needs nothing", "this")
        logger.warning("this is news")
    logger.warning("that needs nothing")
    assert [record.getMessage() for record in caplog.records] == [
        "this is news",
        "that needs nothing",
    ]


@pytest.mark.worker(start="python")
def test_opening_a_stage_prints_nothing() -> None:
    """In a user's own process, which imports diffusers for it."""
    code = 'import lowmem_if as lm; lm.open_stage("demo", 1, device="cpu").close()'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
