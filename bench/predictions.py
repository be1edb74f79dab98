"""Predicted against measured, by real runs of the real networks' sizes, into `bench/RESULTS.md`.

    python -m bench.predictions [--only NAME...] [--weights DIR]

Each row is one component's turn in a run: what the plan said before, and what was measured. Constants
are measured first, and in the same way: processor seconds of one thread, for other work on the machine
does not count in them, with files in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from bench import results
from bench.__main__ import OUT, RESULTS, ROOT, cpu_name, versions
from lowmem_if.cascade.locate import locate
from lowmem_if.cascade.strategies import BALANCED, EXACT, FAITHFUL, parse_pins
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.environment import worker_environment
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.planning.estimates.memory import predict
from lowmem_if.planning.estimates.runtime import predict_seconds
from lowmem_if.planning.estimates.workload import workloads_of
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.weights.files.weight_copies import convert

CHILD = (sys.executable, "-m", "bench.turns")
LINES = OUT / "predictions.jsonl"
GB = 1e9
TEXT_ENCODER = "text_encoder=stream:bfloat16"


@dataclass(frozen=True, slots=True)
class Run:
    """A run to compare: of its steps those named in `told` become rows."""

    cascade: str
    size: int
    pins: tuple[str, ...]
    told: tuple[str, ...]
    images: int = 1
    steps: int = 2
    prefer: str = EXACT

    @property
    def section(self) -> str:
        """Its table's mark in `bench/RESULTS.md`."""
        return "predictions" if self.prefer in (EXACT, BALANCED) else f"predictions-{self.prefer}"


def _stage_1(cascade: str, way: str, images: int = 1) -> Run:
    return Run(cascade, 64, (TEXT_ENCODER, f"stage_1={way}"), ("stage_1",), images)


def _stage_2(way: str, images: int = 1) -> Run:
    pins = (TEXT_ENCODER, "stage_1=resident:bfloat16", f"stage_2={way}")
    return Run("if-m", 256, pins, ("stage_2",), images, steps=1)


def _single(cascade: str, component: str, way: str, images: int = 1) -> Run:
    """A component in float32 under `faithful`: embeddings are given, and stages before it are small."""
    size = {"stage_1": 64, "stage_2": 256, "upscaler": 1024}[component]
    before = {"stage_2": ("stage_1",), "upscaler": ("stage_1", "stage_2")}.get(component, ())
    pins = (*(f"{stage}=stream:float32" for stage in before), f"{component}={way}")
    return Run(cascade, size, pins, (component,), images, 1 + (component == "stage_1"), FAITHFUL)


RUNS = {
    "text": Run("if-m", 64, (TEXT_ENCODER, "stage_1=resident:bfloat16"),
                ("text_encoder", "stage_1", "postprocess")),
    "m-stream": _stage_1("if-m", "stream:bfloat16"),
    "m-float32": _stage_1("if-m", "resident:float32"),
    "m-float32-stream": _stage_1("if-m", "stream:float32"),
    "m-two": _stage_1("if-m", "resident:bfloat16", 2),
    "m-four": _stage_1("if-m", "resident:bfloat16", 4),
    "l": _stage_1("if-l", "resident:bfloat16"),
    "l-stream": _stage_1("if-l", "stream:bfloat16"),
    "l-float32-stream": _stage_1("if-l", "stream:float32"),
    "ii": _stage_2("resident:bfloat16"),
    "ii-stream": _stage_2("stream:bfloat16"),
    "ii-l": Run("if-xl", 256, (TEXT_ENCODER, "stage_1=stream:bfloat16",
                "stage_2=resident:bfloat16"), ("stage_1", "stage_2"), steps=1),
    "text-float32": Run("if-m", 64, ("text_encoder=stream:float32", "stage_1=resident:bfloat16"),
                        ("text_encoder",), steps=1),
    "upscaler": Run("if-m", 1024, (TEXT_ENCODER, "stage_1=resident:bfloat16",
                    "stage_2=resident:bfloat16", "upscaler=stream:bfloat16"), ("upscaler",), steps=1),
    "f-m": _single("if-m", "stage_1", "resident:float32"),
    "f-m-four": _single("if-m", "stage_1", "resident:float32", 4),
    "f-m-stream": _single("if-m", "stage_1", "stream:float32"),
    "f-m-int8": _single("if-m", "stage_1", "resident:int8"),
    "f-m-int4": _single("if-m", "stage_1", "resident:int4"),
    "f-m-int8-stream": _single("if-m", "stage_1", "stream:int8"),
    "f-l-int8": _single("if-l", "stage_1", "resident:int8"),
    "f-xl-int8": _single("if-xl", "stage_1", "resident:int8"),
    "f-xl-int4": _single("if-xl", "stage_1", "resident:int4"),
    "f-xl-int8-stream": _single("if-xl", "stage_1", "stream:int8"),
    "f-ii": _single("if-m", "stage_2", "resident:float32"),
    "f-ii-int8": _single("if-m", "stage_2", "resident:int8"),
    "f-ii-int8-stream": _single("if-m", "stage_2", "stream:int8"),
    "f-upscaler": _single("if-m", "upscaler", "resident:float32"),
    "f-upscaler-stream": _single("if-m", "upscaler", "stream:float32"),
    "f-upscaler-int8": _single("if-m", "upscaler", "resident:int8"),
}  # fmt: skip
"""Ways of networks with 10^8 parameters and more: exact ones, then those with channels last, with the
VAE in strips, and with 8 and 4 bits."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line names; what was measured before stays in the table."""
    parser = argparse.ArgumentParser(prog="bench.predictions", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], choices=sorted(RUNS), metavar="NAME")
    parser.add_argument("--weights", type=Path, default=OUT, help="folder of folders by cascade")
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument(
        "--predict", action="store_true", help="measure constants only, and predict the rows anew"
    )
    options = parser.parse_args(arguments)
    OUT.mkdir(parents=True, exist_ok=True)
    machine = _machine()
    if options.predict:
        lines = [_predicted(line, machine, options.weights) for line in _latest(LINES)]
        LINES.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        write(lines)
        return 0
    for name in options.only or RUNS:
        lines = _lines(name, RUNS[name], machine, options)
        with LINES.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        write(_latest(LINES))
    return 0


def write(lines: Sequence[dict[str, Any]]) -> None:
    """Write the tables of these rows."""
    for name in dict.fromkeys(RUNS[line["name"]].section for line in lines):
        own = [line for line in lines if RUNS[line["name"]].section == name]
        results.write_section(RESULTS, name, section(own))


def _machine() -> Machine:
    """This one with constants that are measured in a process like those that will be measured."""
    code = (
        "import json, time, sys; from pydantic import TypeAdapter;"
        "from lowmem_if.hardware.machine import probe; from lowmem_if.hardware.speeds import Speeds;"
        "from lowmem_if.calibrate.measure import measure;"
        "rates = measure(probe('cpu'), clock=time.process_time);"
        "print(TypeAdapter(Speeds).dump_json(rates).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=_environment(streams=False),
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    from pydantic import TypeAdapter

    from lowmem_if.hardware.speeds import Speeds

    rates = TypeAdapter(Speeds).validate_json(done.stdout.splitlines()[-1])
    print(rates, flush=True)
    return replace(probe("cpu"), rates=replace(rates, disk_bytes=1e15))


def _environment(*, streams: bool) -> dict[str, str]:
    outer = worker_environment(os.environ, streams=streams)
    return outer | {"LOWMEM_IF_CACHE": str(OUT / "cache"), "OMP_NUM_THREADS": "1"}


def _lines(
    name: str, run: Run, machine: Machine, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    weights = options.weights / run.cascade
    os.environ["LOWMEM_IF_CACHE"] = str(OUT / "cache")  # where copies are made and looked for
    if any(pin.endswith("stream:int8") for pin in run.pins):
        for component in run.told:
            convert(weights / component / "unet", dtype="int8")
    plan = _plan(run, machine, weights)
    folder = OUT / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    RunFolder.for_plan(folder, plan)
    print(f"{name}: {[str(step.config) for step in plan.steps]}", flush=True)
    streams = any(step.config.strategy == "stream" for step in plan.steps)
    _read_all(plan, run.told)
    done = subprocess.run(
        [*CHILD, str(folder)], cwd=ROOT, env=_environment(streams=streams),
        stdout=subprocess.PIPE, check=True, timeout=options.timeout,
    )  # fmt: skip
    seconds, measured = json.loads(done.stdout), RunFolder.open(folder)
    for component in run.told:
        step = plan.step(component)
        got = measured.measured(component)
        if got is None or measured.released(component) is None:
            continue  # embeddings came from the cache: nothing was loaded
        line = {
            "name": name, "cascade": run.cascade, "component": component,
            "setting": str(step.config), "compute": step.config.compute_dtype, "steps": run.steps,
            "images": run.images, "predicted_ram": step.estimate.ram_bytes,
            "predicted_seconds": step.estimate.seconds, "ram": got.ram_bytes,
            **seconds[component], "date": time.strftime("%Y-%m-%d"), "cpu": cpu_name(),
            "versions": versions(),
        }  # fmt: skip
        print("   ", row(line), flush=True)
        yield line
    shutil.rmtree(folder, ignore_errors=True)


def _read_all(plan: Plan, components: Sequence[str]) -> None:
    """Read the files of the components, so that they are in the system's cache."""
    request = plan.request
    location = locate(request.cascade, components=request.components)
    for component in components:
        root = location.folder(component)
        assert root is not None
        for file in location.files(component):
            with (root / file).open("rb") as stream:
                while stream.read(2**24):
                    pass


def _plan(run: Run, machine: Machine, weights: Path) -> Plan:
    request = make_request(
        ("a fox",), cascade=str(weights), seed=(1,), images=run.images, size=run.size,
        steps=(run.steps,), embeds=_embeddings() if run.prefer == FAITHFUL else None,
    )  # fmt: skip
    prefer = BALANCED if run.images > 1 and run.prefer == EXACT else run.prefer
    return make_plan(machine, request, prefer=prefer, pins=parse_pins(run.pins))


def _embeddings() -> Path:
    """A file of made-up embeddings for the prompts that are drawn."""
    file = OUT / "embeddings.npz"
    if not file.is_file():
        chance = numpy.random.default_rng(0)
        names = ("a fox", "")
        numpy.savez(file, **{n: chance.normal(0, 0.1, (1, 77, 4096)).astype("f4") for n in names})
    return file


def _predicted(line: dict[str, Any], machine: Machine, weights: Path) -> dict[str, Any]:
    """The row of a setting that was measured, with what is predicted of that setting now."""
    stays = re.search(r"([\d.]+) GB resident", line["setting"])
    plan = _plan(RUNS[line["name"]], machine, weights / RUNS[line["name"]].cascade)
    planned, request = plan.step(line["component"]).config, plan.request
    resident_bytes = round(10 * float(stays[1])) * 10**8 if stays else 0
    setting = replace(planned, resident_bytes=resident_bytes)
    location = locate(request.cascade, components=request.components)
    part = location.cascade.parts[line["component"]]
    jobs = workloads_of(request, location.cascade, line["component"])
    need = predict(part, setting)
    left = machine.ram_bytes - need.ram_bytes
    seconds = predict_seconds(part, setting, jobs, machine.speeds, left, unified=False)
    return line | {"predicted_ram": need.ram_bytes, "predicted_seconds": seconds}


# --- the table


def _latest(file: Path) -> list[dict[str, Any]]:
    """Of each row the newest, in the order of the runs."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        found[line["name"], line["component"]] = line
    names = list(RUNS)
    return sorted(found.values(), key=lambda line: names.index(line["name"]))


def section(lines: Sequence[dict[str, Any]]) -> str:
    """The table under what it was measured with, and over how far off it is."""
    last = lines[-1]
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    heads = ("network", "way", "pictures", "anonymous, GB: predicted", "measured", "ratio",
             "seconds: predicted", "measured", "ratio", "by the clock")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * 8, *map(row, lines)]
    memory = [line["predicted_ram"] / line["ram"] for line in lines]
    times = [line["predicted_seconds"] / line["processor"] for line in lines]
    return "\n".join([
        "## Predicted against measured", "",
        f"- {last['cpu']}, one thread, computing on the CPU; {versions}; {last['date']}",
        "- made-up weights of the published sizes, in the system's cache; guided; seconds are the "
        "processor's, of a component's whole turn, for others may work on the machine meanwhile",
        "- constants measured as `probe --calibrate` does (`python -m bench.predictions`)",
        f"- peak anonymous memory, predicted to measured: {min(memory):.2f} to {max(memory):.2f}; "
        f"seconds: {min(times):.2f} to {max(times):.2f}",
        "", *rows,
    ])  # fmt: skip


def row(line: dict[str, Any]) -> str:
    cells = (
        f"{line['cascade']} {line['component'].replace('_', ' ')}", line["setting"],
        str(line["images"]),
        f"{line['predicted_ram'] / GB:.2f}", f"{line['ram'] / GB:.2f}",
        f"{line['predicted_ram'] / line['ram']:.2f}",
        f"{line['predicted_seconds']:.1f}", f"{line['processor']:.1f}",
        f"{line['predicted_seconds'] / line['processor']:.2f}", f"{line['wall']:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
