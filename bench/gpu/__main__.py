"""Measure what only a card can tell: predictions against a real GPU, in eight minutes.

    python -m bench.gpu [--device cuda] [--minutes 8] [--only PART...] [--again]

Each part runs in a process of its own and has a time limit of its own. Its result is kept at once, so a
second run does only what is not done yet. The report goes to docs/gpu/CARD.md and docs/gpu/CARD.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from bench.__main__ import LIBRARIES, cpu_name
from bench.gpu.constants import collected
from bench.gpu.parts import PARTS, Part
from bench.gpu.report import report
from bench.gpu.runner import DONE, Result, read_result, run_part
from bench.gpu.setup import ROOT, Setup
from lowmem_if.errors import LowmemError
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.weights.files.atomic import write_bytes

LEAST_S = 10
"""A part is not begun with less time left than this."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; exit 1 if a part did not end or something in it failed."""
    options = _options(arguments)
    try:
        machine = probe(options.device)
    except LowmemError as error:
        print(f"{error}\n`--device cpu --quick` runs the code without a card", file=sys.stderr)
        return 1
    setup = Setup(machine.device, options.quick, options.out / _slug(machine))
    about = _about(machine)
    deadline = time.monotonic() + 60 * options.minutes
    for part in _chosen(options.only):
        _run(setup, part, deadline, again=options.again)
        _write(options, setup, machine, about)
    results = _results(setup)
    missing = [part.name for part in PARTS if part.name not in {r["part"] for r in results}]
    if missing:
        print(f"not run: {', '.join(missing)}; the same command does them now")
    return int(not all(map(_is_good, results)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the code")
    parser.add_argument("--quick", action="store_true", help="the tiny cascade, few repetitions")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="PART",
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure what is done once more")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu", help="for results, weights"
    )
    parser.add_argument(
        "--docs", type=Path, help="for the report (default: docs/gpu; on a CPU: --out)"
    )
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    return options


def _chosen(only: Sequence[str]) -> list[Part]:
    return [part for part in PARTS if not only or part.name in only]


def _run(setup: Setup, part: Part, deadline: float, *, again: bool) -> None:
    """Run one part unless it is done or no time is left; tell what became of it."""
    result = read_result(setup, part)
    if result and result["status"] == DONE and result["quick"] == setup.quick and not again:
        print(f"{part.name}: done before ({result['date']})", flush=True)
        return
    seconds = min(part.limit_s, deadline - time.monotonic())
    if seconds < LEAST_S:
        print(f"{part.name}: no time left", flush=True)
        return
    print(f"{part.name}: {part.title} (at most {seconds:.0f} s)", flush=True)
    _tell(run_part(setup, part, seconds, again=again))


def _tell(result: Result) -> None:
    bad = sum(row["ok"] is False for row in result["rows"])
    failed = f", {bad} of them failed" if bad else ""
    why = f": {result['why']}" if result["why"] else ""
    rows = f"{len(result['rows'])} rows{failed}"
    print(f"    {result['status']} in {result['seconds']:.0f} s, {rows}{why}", flush=True)


def _write(
    options: argparse.Namespace, setup: Setup, machine: Machine, about: dict[str, Any]
) -> None:
    """Write the report and the constants; after every part, for any may be the last."""
    docs = options.docs or (ROOT / "docs" / "gpu" if setup.on_card else setup.out)
    docs.mkdir(parents=True, exist_ok=True)
    results = _results(setup)
    constants = collected(results)
    text = report(about, results, constants)
    write_bytes(docs / f"{_slug(machine)}.md", text.encode())
    content = json.dumps(about | constants, indent=1)
    write_bytes(docs / f"{_slug(machine)}.json", content.encode())


def _results(setup: Setup) -> list[Result]:
    found = (read_result(setup, part) for part in PARTS)
    return [result for result in found if result is not None]


def _is_good(result: Result) -> bool:
    return result["status"] == DONE and all(row["ok"] is not False for row in result["rows"])


def _about(machine: Machine) -> dict[str, Any]:
    ram = psutil.virtual_memory().total / 1e9
    vram = f", {machine.vram_total_bytes / 1e9:.1f} GB" if machine.vram_total_bytes else ""
    return {
        "card": f"{machine.device_name}{vram}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cpu_name()}, {ram:.0f} GB of RAM",
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Python's and the libraries'; bitsandbytes may be missing."""
    found = {"Python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _slug(machine: Machine) -> str:
    """The card's name as a file's."""
    name = machine.device_name if machine.kind != "cpu" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
