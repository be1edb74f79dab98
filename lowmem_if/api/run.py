"""Run a plan, or resume a run."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from lowmem_if.engine.options import ResumeOptions, RunOptions
from lowmem_if.engine.results import RunResult
from lowmem_if.engine.session import Session
from lowmem_if.planning.plan import Plan


def run(plan: Plan, out: str | Path, **options: Unpack[RunOptions]) -> RunResult:
    """Run a plan in the folder `out`, or resume it if the same request was begun there.

    Args:
        options: see `RunOptions`.

    Raises:
        LowmemError: see the tree in `lowmem_if.errors`; the run can be resumed.
    """
    with Session(keep_loaded=False) as session:
        return session.run(plan, out, **options)


def resume(out: str | Path, **options: Unpack[ResumeOptions]) -> RunResult:
    """Resume the run in the folder `out`; a finished run is only read.

    Args:
        options: see `ResumeOptions`.

    Raises:
        RunFolderError: it is not a run folder, is in use, or was begun with other versions of
            libraries that the remaining pictures depend on.
    """
    with Session(keep_loaded=False) as session:
        return session.resume(out, **options)
