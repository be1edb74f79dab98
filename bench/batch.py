"""A batch of many prompts against as many runs of the documented recipe, on the same weights.

    python -m bench.batch [--images 64] [--theirs 8] [--sizes 64 256 1024]

Writes the section `batch` of `bench/RESULTS.md`. Ours is one `lowmem-if batch`, start to end. The recipe
(`bench/recipe.py`) runs as a process a picture, which is how separate runs go, and as a loop in one
process, which spares it the imports. All rows draw with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from statistics import median
from typing import Any

import psutil

from bench.__main__ import OUT, RESULTS, ROOT, cpu_name, usable_cores, versions
from bench.recipe import Drawing
from bench.results import write_section
from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.hardware.machine import probe
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request
from lowmem_if.units import format_bytes


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds on the clock, and of processors."""

    wall: float
    cpu: float

    def __sub__(self, other: Took) -> Took:
        return Took(self.wall - other.wall, self.cpu - other.cpu)


def _now() -> Took:
    """The clock, and what all processes that were waited for have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(time.monotonic(), used.ru_utime + used.ru_stime)


_SHAPES = ("circle", "square", "triangle", "star")
_COLOURS = ("red", "green", "blue", "yellow")
_GROUNDS = ("white", "black", "purple", "orange")

_TEXT = """## A batch of {images} prompts: seconds a picture

One `lowmem-if batch` of {images} prompts with the bundled demo cascade, the whole command over {images},
beside the recipe of diffusers' documentation for the same pictures (load, run, del, gc for each stage):
as a process a picture, imports included, and in a loop within one process, imports not counted. The
recipe was run {theirs} times each way: medians, with the extremes. CPU seconds are what the machine's
other work changes least; where the load is far above the cores, wall seconds of two columns do not
compare. *Times faster*: CPU seconds of the one and of the other over ours. The demo has
14 MB of weights: what a run of IF's 20 GB spares by loading once is not in these figures.

- {cpu}, usable cores: {cores}, {memory} of RAM; threads: {threads}; computing in float32
- {libraries}
- measured on {date}; load average before each size: {loads}

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size and write the section; exit 1 if any picture differs."""
    options = _options(arguments)
    rows = [_measure(size, options) for size in options.sizes]
    write_section(RESULTS, "batch", _section(rows, options))
    return int(not all(row["same"] for row in rows))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=64, help="prompts of our batch")
    parser.add_argument("--theirs", type=int, default=8, help="runs of the recipe, each way")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--threads", type=int, default=usable_cores())
    return parser.parse_args(arguments)


def prompts(count: int) -> tuple[str, ...]:
    """So many prompts of the demo's language, all of them different up to 64."""
    every = [
        f"a {colour} {shape} on a {ground} background"
        for shape in _SHAPES
        for colour in _COLOURS
        for ground in _GROUNDS
    ]
    return tuple(every[number % len(every)] for number in range(count))


def _measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    texts = prompts(options.images)
    drawing = _drawing(texts[: options.theirs], size)
    load = os.getloadavg()[0]
    print(f"{size} px: ours", flush=True)
    ours, peak, pictures = _ours(texts, size, options.threads)
    print(
        f"{ours.cpu / options.images:.2f} CPU s a picture; the recipe, a process each", flush=True
    )
    alone = [_recipe(_only(drawing, k), options.threads) for k in range(options.theirs)]
    print(f"{median(took.cpu for took, _ in alone):.2f} CPU s; the recipe in a loop", flush=True)
    _, told = _recipe(drawing, options.threads)
    print(f"{median(told['cpu_seconds']):.2f} CPU s", flush=True)
    theirs = [result["pictures"][0] for _, result in alone]
    return {
        "size": size,
        "load": load,
        "ours": Took(ours.wall / options.images, ours.cpu / options.images),
        "ours_peak": peak,
        "alone": [took for took, _ in alone],
        "alone_peak": max(result["anon"] for _, result in alone),
        "loop": [Took(*pair) for pair in zip(told["seconds"], told["cpu_seconds"], strict=True)],
        "loop_peak": told["anon"],
        "same": theirs == told["pictures"] == pictures[: options.theirs],
    }


def _drawing(texts: tuple[str, ...], size: int) -> Drawing:
    """What the recipe is to draw, with the very sampling of our plan."""
    plan = _plan(texts, size)
    task = plan.request.images[0]
    samplings = []
    for stage in catalog.SIZES[size]:
        sampling = plan.step(stage).sampling_of(task)
        samplings.append(
            {
                "num_inference_steps": sampling.steps,
                "guidance_scale": sampling.guidance_scale,
                "noise_level": sampling.noise_level,
            }
        )
    return Drawing(str(DEMO_FOLDER), texts, (1,) * len(texts), tuple(samplings))


def _plan(texts: tuple[str, ...], size: int) -> Plan:
    request = make_request(texts, cascade=catalog.DEMO, size=size, seed=(1,))
    return make_plan(probe(device="cpu"), request)


def _only(drawing: Drawing, number: int) -> Drawing:
    one = slice(number, number + 1)
    return replace(drawing, prompts=drawing.prompts[one], seeds=drawing.seeds[one])


def _ours(texts: tuple[str, ...], size: int, threads: int) -> tuple[Took, int, list[str]]:
    """What the whole command took, peak anonymous bytes, and the pictures' fingerprints."""
    from bench.case import fingerprint
    from lowmem_if.engine.run_folder.folder import RunFolder
    from lowmem_if.weights.files.tensor_file import load_tensor

    run, cache = OUT / "batch", OUT / "batch-cache"
    for folder in (run, cache):
        shutil.rmtree(folder, ignore_errors=True)
    command = ["batch", "-", "--device", "cpu", "--seed", "1", "--size", str(size), "--quiet"]
    before = _now()
    subprocess.run(
        [sys.executable, "-m", "lowmem_if", *command, "--out", str(run)],
        input="\n".join(texts), text=True, cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        env=_environment(threads) | {"LOWMEM_IF_CACHE": str(cache)},
    )  # fmt: skip
    took = _now() - before
    folder = RunFolder.open(run)
    measured = [folder.measured(step.component) for step in folder.plan.steps]
    peak = max(each.ram_bytes for each in measured if each)
    stage = catalog.SIZES[size][-1]
    tensors = [load_tensor(folder.tensor_file(stage, task)) for task in folder.plan.request.images]
    return (
        took,
        peak,
        [fingerprint([tensor])["hash"] for tensor in tensors if tensor is not None],
    )


def _recipe(drawing: Drawing, threads: int) -> tuple[Took, dict[str, Any]]:
    """What the whole process took, and what it tells."""
    before = _now()
    done = subprocess.run(
        [sys.executable, "-m", "bench.recipe", drawing.to_json()],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=_environment(threads),
    )  # fmt: skip
    told: dict[str, Any] = json.loads(done.stdout)
    return _now() - before, told


def _environment(threads: int) -> dict[str, str]:
    return dict(os.environ) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}


def _section(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = _TEXT.format(
        images=options.images,
        theirs=options.theirs,
        cpu=cpu_name(),
        cores=usable_cores(),
        memory=format_bytes(psutil.virtual_memory().total),
        threads=options.threads,
        libraries=libraries,
        date=date.today().isoformat(),
        loads=", ".join(f"{row['load']:.1f}" for row in rows),
    )
    columns = ("size", "ours: wall, CPU s", "recipe, a process each: wall; CPU s",
               "recipe in a loop: wall; CPU s", "times faster", "anonymous, GB", "pictures")  # fmt: skip
    text += f"| {' | '.join(columns)} |\n| {' | '.join(['---:'] * (len(columns) - 1))} | --- |\n"
    return text + "\n".join(_row(row) for row in rows)


def _row(row: dict[str, Any]) -> str:
    ours: Took = row["ours"]
    alone, loop = (median(took.cpu for took in row[way]) for way in ("alone", "loop"))
    peaks = [row[f"{way}_peak"] / 1e9 for way in ("ours", "alone", "loop")]
    cells = [
        str(row["size"]),
        f"{ours.wall:.2f}, {ours.cpu:.2f}",
        _seconds(row["alone"]),
        _seconds(row["loop"]),
        f"{alone / ours.cpu:.1f}, {loop / ours.cpu:.1f}",
        " / ".join(f"{peak:.2f}" for peak in peaks),
        "same bits" if row["same"] else "**differ**",
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(taken: list[Took]) -> str:
    walls, cpus = [took.wall for took in taken], [took.cpu for took in taken]
    return "; ".join(f"{median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (walls, cpus))


if __name__ == "__main__":
    sys.exit(main())
