"""The folder in which a request runs, and the seeds of a run that was begun there."""

from __future__ import annotations

import re
import time
from pathlib import Path

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.request.request import Request

RUNS = Path("runs")
"""Where run folders without a name of the user's own are made."""


def new_folder(request: Request) -> Path:
    """A run folder that does not exist yet, named by the time and the first words of the prompt."""
    first = request.images[0]
    words = "-".join(re.findall(r"\w+", first.words)[:6])[:40] or first.mode
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
    folder = RUNS / stem
    number = 1
    while folder.exists():
        number += 1
        folder = RUNS / f"{stem}-{number}"
    return folder


def with_begun_seeds(path: Path, request: Request) -> Request:
    """The request with the seeds that were drawn when a run was begun in `path`, if one was."""
    if not RunFolder.begun(path):
        return request
    begun = RunFolder.open(path).plan.request
    return request.with_seed(begun.seed)
