"""Measure ways of loading and running IF's networks side by side, and write `bench/RESULTS.md`.

    python -m bench [--quick] [--only NAME...]

Every row is a process of its own. One that fails, or that the system kills, is told in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench import results
from bench.cases import (
    STREAMED_COPY,
    SUBJECTS,
    THEIRS,
    WAYS,
    Case,
    chosen,
    missing_components,
    unknown,
)
from lowmem_if.engine.worker.environment import worker_environment

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "bench"
RESULTS = ROOT / "bench" / "RESULTS.md"
CHILD = ("-m", "bench.case")
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; exit 1 if a row of ours failed."""
    options = _options(arguments)
    pairs = list(chosen(options.only, quick=options.quick))
    OUT.mkdir(parents=True, exist_ok=True)
    _synthesize(options.cascade, options.folder, [subject for subject, _ in pairs])
    kept = _earlier(options, {subject for subject, _ in pairs})
    done = {_row(line) for line in kept if "failed" not in line}
    todo = [pair for pair in pairs if not (options.missing and pair in done)]
    measured: list[results.Line] = []
    for repeat in range(options.repeat):  # round by round: a busy quarter of an hour hits all
        for number, (subject, way) in enumerate(todo, start=1):
            print(f"{repeat + 1}.{number}/{len(todo)} {subject}: {WAYS[way]}", flush=True)
            line = _context(options) | {"subject": subject, "way": way, "repeat": repeat}
            steps = _steps(options, subject)
            case = Case(
                options.cascade, subject, way, options.folder, OUT / "scratch", steps,
                device=options.device, dtype=options.dtype, cold=options.cold,
            )  # fmt: skip
            line |= {"steps_asked": steps} | run(case, options.threads, options.timeout)
            print("   ", _brief(line), flush=True)
            measured.append(line)
            _keep(options, kept, measured)
    _remove_copies()
    return int(any("failed" in line and line["way"] not in THEIRS for line in measured))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="if-m's small networks: some minutes")
    parser.add_argument("--cascade", choices=("if-xl", "if-l", "if-m"))
    parser.add_argument(
        "--cascade-folder",
        default=os.environ.get("BENCH_CASCADE_FOLDER"),
        help="weights laid out like the cascade's; what lacks is synthesized "
        "(default: BENCH_CASCADE_FOLDER, or build/bench/CASCADE)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="networks, ways or NETWORK/WAY; other rows stay as they were measured on this machine; "
        f"networks: {', '.join(SUBJECTS)}; ways: {', '.join(WAYS)}",
    )
    parser.add_argument("--missing", action="store_true", help="only what was not measured yet")
    parser.add_argument("--repeat", type=int, default=1, help="rounds")
    parser.add_argument("--steps", type=int, help="of each network, instead of its own number")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every row")
    parser.add_argument("--device", default="cpu", help="cpu, or an accelerator (cuda, mps, xpu)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--cold", action="store_true", help="drop the files from the cache before")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a row")
    options = parser.parse_args(arguments)
    options.cascade = options.cascade or ("if-m" if options.quick else "if-xl")
    options.run = datetime.now().astimezone().isoformat()
    options.folder = Path(options.cascade_folder or OUT / options.cascade).resolve()
    if names := unknown(options.only):
        parser.error(f"--only: nothing is called {', '.join(names)}")
    return options


def _steps(options: argparse.Namespace, subject: str) -> int:
    return options.steps or SUBJECTS[subject].steps


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- one row


def run(case: Case, threads: int, timeout_s: float) -> dict[str, Any]:
    """Measure in a child; whatever becomes of it is the result."""
    if case.way != STREAMED_COPY:  # our loader would take the copy wherever it finds one
        _remove_copies()
    shutil.rmtree(case.scratch, ignore_errors=True)
    case.scratch.mkdir(parents=True)
    if hasattr(os, "sync"):
        os.sync()  # what the row before has written is not to be this one's burden
    try:
        with (OUT / "errors.log").open("ab") as log:
            done = subprocess.run(
                [sys.executable, *CHILD, case.to_json()],
                cwd=ROOT,
                env=environment(case.way, threads),
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=timeout_s,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return _failed("ended", f"not done after {timeout_s:g} s")
    finally:
        shutil.rmtree(case.scratch, ignore_errors=True)
    if done.returncode == -signal.SIGKILL:
        return _failed("memory", "the system killed the process")
    if done.returncode:
        return _failed("ended", f"exit status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _remove_copies() -> None:
    shutil.rmtree(OUT / "cache", ignore_errors=True)


def _failed(kind: str, text: str) -> dict[str, Any]:
    return {"failed": {"kind": kind, "text": text}}


def environment(way: str, threads: int) -> dict[str, str]:
    """The libraries' ways get the environment as it is, ours the worker's; nobody goes online."""
    outer = (
        dict(os.environ)
        if way in THEIRS
        else worker_environment(os.environ, streams="streamed" in way)
    )
    # The copies that ways of ours make are no user's.
    own = {"HF_HUB_OFFLINE": "1", "LOWMEM_IF_CACHE": str(OUT / "cache")}
    return outer | own | {"OMP_NUM_THREADS": str(threads)}


def _brief(line: results.Line) -> str:
    if "failed" in line:
        return line["failed"]["text"]
    phases = [line[phase] for phase in ("load", "steps") if phase in line]
    anonymous = " / ".join(f"{phase['anon'] / 1e9:.2f}" for phase in phases)
    steps = ", ".join(f"{value:.2f}" for value in line.get("steps", {}).get("seconds", []))
    return f"load {line['load']['seconds']:.2f} s, steps {steps or '-'} s, anonymous {anonymous} GB"


# --- what is measured, and with what


def _synthesize(cascade: str, folder: Path, subjects: list[str]) -> None:
    """Make up the weights that are not there, in a process whose memory is not ours."""
    only = [word for name in missing_components(folder, subjects) for word in ("--only", name)]
    if only:
        command = [sys.executable, "-m", "lowmem_if", "synthesize", cascade, str(folder), *only]
        subprocess.run(command, cwd=ROOT, check=True)


def _context(options: argparse.Namespace) -> results.Line:
    """What a row was measured with."""
    return {
        "run": options.run,
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cascade": options.cascade,
        "machine": {
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "ram_bytes": psutil.virtual_memory().total,
            "kernel": platform.release(),
        },
        "versions": versions(),
        "load_average": os.getloadavg()[0],
        "device": options.device,
        "dtype": options.dtype,
        "cold": options.cold,
        "folder": str(options.folder),
        "threads_asked": options.threads,
    }


def versions() -> dict[str, str]:
    """Python's and the libraries'."""
    return {"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# --- the lines of all rows


def _earlier(options: argparse.Namespace, subjects: Collection[str]) -> list[results.Line]:
    """Rows that may stand beside those of `subjects` to be measured; none if all are measured again.

    The file keeps every line that was ever measured: of each row the last run's count.
    """
    file = _lines_file(options)
    if not (options.only or options.missing) or not file.is_file():
        return []
    same = _context(options)
    names = same.keys() - {"time", "load_average", "run"}
    lines = [
        line
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines())
        if all(line.get(name) == same[name] for name in names)
    ]
    # Rows of one network are compared step by step; what takes no steps goes with any number.
    steps = {line["subject"]: line["steps_asked"] for line in lines if "steps" in line}
    steps |= {subject: _steps(options, subject) for subject in subjects}
    lines = [
        line
        for line in lines
        if "steps" not in line or line["steps_asked"] == steps[line["subject"]]
    ]
    last = {_row(line): line["run"] for line in lines}
    return [line for line in lines if line["run"] == last[_row(line)]]


def _row(line: results.Line) -> tuple[str, str]:
    return line["subject"], line["way"]


def _keep(options: argparse.Namespace, kept: list[results.Line], new: list[results.Line]) -> None:
    """Note the newest line; in the table new rows take the place of old ones."""
    with _lines_file(options).open("a", encoding="utf-8") as file:
        file.write(json.dumps(new[-1]) + "\n")
    rows = {_row(line) for line in new}
    results.update(
        RESULTS, options.cascade, [line for line in kept if _row(line) not in rows] + new
    )


def _lines_file(options: argparse.Namespace) -> Path:
    return OUT / f"{options.cascade}.jsonl"


if __name__ == "__main__":
    sys.exit(main())
