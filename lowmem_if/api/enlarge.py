"""Enlarge chosen pictures of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from lowmem_if.engine.options import EnlargeOptions
from lowmem_if.engine.results import RunResult
from lowmem_if.engine.session import Session


def enlarge(
    source: str | Path, numbers: Sequence[int], **options: Unpack[EnlargeOptions]
) -> RunResult:
    """Enlarge chosen pictures of a finished run, as `lowmem-if continue` does.

    Args:
        source: the run's folder.
        numbers: the pictures' numbers, as in their file names.
        options: see `EnlargeOptions`: among them `size` and `out`.

    Raises:
        RequestError: a picture does not exist or is not smaller than `size`.
        RunFolderError: the run is not finished, or libraries have changed since, see `resume`.
        LowmemError: as `generate`.
    """
    with Session(keep_loaded=False) as session:
        return session.enlarge(source, numbers, **options)
