"""Run one part in a process of its own, within its time, and keep what comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu.parts import Part
from bench.gpu.rows import Row, latest
from bench.gpu.setup import ROOT, Setup
from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.weights.files.atomic import write_bytes

DONE, FAILED, TIMED_OUT = "done", "failed", "timed out"

Result = dict[str, Any]


def result_file(setup: Setup, part: Part) -> Path:
    return setup.out / "results" / f"{part.name}.json"


def read_result(setup: Setup, part: Part) -> Result | None:
    """The result of an earlier run; None if there is none."""
    file = result_file(setup, part)
    if not file.is_file():
        return None
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    return result


def run_part(setup: Setup, part: Part, seconds: float, *, again: bool = False) -> Result:
    """Run a part for at most so many seconds, and write its result at once.

    Rows of an earlier run that was cut off are kept, and the part gets their names. Nothing that a part
    starts outlives it: a ballast or a worker would falsify the parts after it.

    Args:
        again: begin from nothing.
    """
    earlier = [] if again else _kept_rows(setup, part)
    setup = replace(setup, have=tuple(row["name"] for row in earlier))
    lines, log = _scratch(setup, part)
    begun = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.child", part.module, setup.to_json(), str(lines)],
            cwd=ROOT,
            env=_environment(setup),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status, why = _wait(child, seconds)
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    result = {
        "part": part.name, "status": status, "why": why or _why(status, log),
        "seconds": round(time.monotonic() - begun, 1), "date": time.strftime("%Y-%m-%d %H:%M"),
        "quick": setup.quick, "rows": latest([*earlier, *rows]),
    }  # fmt: skip
    write_bytes(result_file(setup, part), json.dumps(result, indent=1).encode())
    return result


def _kept_rows(setup: Setup, part: Part) -> list[Row]:
    """The sound rows of a run of the part that did not end by itself."""
    result = read_result(setup, part)
    if result is None or result["status"] == DONE or result["quick"] != setup.quick:
        return []
    return [row for row in result["rows"] if row["ok"] is not False]


def _scratch(setup: Setup, part: Part) -> tuple[Path, Path]:
    """(file for rows, file for what the part prints), both empty."""
    for folder in ("results", "logs"):
        (setup.out / folder).mkdir(parents=True, exist_ok=True)
    lines, log = setup.out / "logs" / f"{part.name}.jsonl", setup.out / "logs" / f"{part.name}.log"
    lines.write_bytes(b"")
    return lines, log


def _environment(setup: Setup) -> Mapping[str, str]:
    """The worker's own environment, for parts do what a worker does; caches are not the user's."""
    own = {"LOWMEM_IF_CACHE": str(setup.out / "cache"), "PYTHONUNBUFFERED": "1"}
    return worker_environment(os.environ) | own


def _wait(child: subprocess.Popen[bytes], seconds: float) -> tuple[str, str]:
    """(status, why it is not done); the child's whole process group is gone afterwards."""
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        return TIMED_OUT, f"killed after {seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if code < 0:
        return FAILED, f"ended by {signal.Signals(-code).name}"
    return (FAILED, "") if code else (DONE, "")


def _why(status: str, log: Path) -> str:
    """The last line that a failed part printed."""
    if status == DONE:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"
