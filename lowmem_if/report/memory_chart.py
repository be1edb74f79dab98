"""A chart of memory over time: steps as bands, budgets as lines, predicted peaks as marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lowmem_if.cascade.catalog import component_name, label
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import MissingPackage, RunFolderError
from lowmem_if.planning.plan import Step
from lowmem_if.units import GB

_GAP_S = 5.0
"""In a longer time without samples nothing ran; the chart leaves it out."""
_POINTS = 2000
"""How many points are drawn at most: each is the highest of its samples."""
_BANDS = ("#eef3f8", "#f8f3ea")
_RAM, _VRAM = "#2b6ca3", "#b5482a"


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment of a run: seconds of work since its beginning, and bytes."""

    seconds: float
    step: str
    ram_bytes: int
    vram_bytes: int


@dataclass(frozen=True, slots=True)
class Band:
    """A component's time in the chart, in seconds; a resumed step has several."""

    component: str
    begin: float
    end: float


def read_samples(file: Path) -> list[Sample]:
    """The samples of `memory.jsonl`, in order; incomplete lines are skipped.

    Raises:
        RunFolderError: there are none.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunFolderError(
            f"{file} cannot be read ({error.strerror}): the run has no memory samples"
        ) from error
    readings = sorted(_readings(lines), key=lambda reading: float(reading["t"]))
    if not readings:
        raise RunFolderError(f"{file} has no memory samples: the run has not begun")
    times = _without_gaps([float(reading["t"]) for reading in readings])
    return [
        Sample(
            when,
            component_name(str(r["step"])),
            int(r["ram_anon"]),
            int(r.get("vram_allocated", 0)),
        )
        for when, r in zip(times, readings, strict=True)
    ]


def _readings(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            reading = json.loads(line)
        except ValueError:
            continue
        if isinstance(reading, dict) and {"t", "step", "ram_anon"} <= reading.keys():
            yield reading


def _without_gaps(times: list[float]) -> list[float]:
    """The times from 0 on, without the long gaps."""
    passed = [0.0]
    for earlier, later in pairwise(times):
        passed.append(passed[-1] + min(later - earlier, _GAP_S))
    return passed


def bands(samples: list[Sample]) -> list[Band]:
    """The components in the order in which they ran."""
    found: list[Band] = []
    for sample in samples:
        if found and found[-1].component == sample.step:
            found[-1] = Band(sample.step, found[-1].begin, sample.seconds)
        else:
            begin = found[-1].end if found else 0.0
            found.append(Band(sample.step, begin, sample.seconds))
    return found


def write_chart(folder: RunFolder, file: Path) -> None:
    """Draw the memory of a run over time into a PNG file.

    Raises:
        MissingPackage: matplotlib is not installed.
        RunFolderError: there are no samples, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage(
            "--plot needs matplotlib, which is not installed: pip install 'lowmem-if[plot]'"
        ) from error
    samples = read_samples(folder.path / "memory.jsonl")
    machine = folder.plan.machine
    panels = ["ram"] + (["vram"] if any(sample.vram_bytes for sample in samples) else [])
    figure = Figure(figsize=(11, 3.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, kind in zip(axes, panels, strict=True):
        budget = machine.ram_bytes if kind == "ram" else machine.vram_bytes
        marks = {step.component: _mark(folder, step, kind) for step in folder.plan.steps}
        _draw(axis, kind, samples, marks, budget)
    axes[0].set_title(f"{folder.plan.request.weights} on {machine.device_name}", loc="left")
    axes[-1].set_xlabel("seconds of work")
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise RunFolderError(f"{file} cannot be written ({error.strerror})") from error


def _mark(folder: RunFolder, step: Step, kind: str) -> float:
    """The predicted peak in GB, above the components that were kept loaded during the step."""
    measured = folder.measured(step.component)
    kept = measured.warm_bytes(kind) if measured else 0
    return float((getattr(step.estimate, f"{kind}_bytes") + kept) / GB)


def _draw(
    axis: Any, kind: str, samples: list[Sample], predicted: dict[str, float], budget: int
) -> None:
    colour = _RAM if kind == "ram" else _VRAM
    field = f"{kind}_bytes"
    points = list(_highest(samples, field))
    axis.fill_between(*zip(*points, strict=True), color=colour, alpha=0.25, linewidth=0)
    axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label="measured")
    for number, band in enumerate(bands(samples)):
        axis.axvspan(band.begin, band.end, color=_BANDS[number % 2], zorder=0)
        mark = predicted.get(band.component)
        if mark:
            label = "predicted peak" if number == 0 else None
            axis.hlines(mark, band.begin, band.end, colors="black", linewidth=2, label=label)
    _budget(axis, budget / GB, max(y for _, y in points), max(predicted.values()))
    _names(axis, bands(samples))
    axis.set_ylabel("anonymous RAM, GB" if kind == "ram" else "VRAM in tensors, GB")
    axis.set_xlim(0, samples[-1].seconds or 1)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="small", frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _highest(samples: list[Sample], field: str) -> Iterator[tuple[float, float]]:
    """(seconds, GB) points to draw: each the highest of a few samples."""
    size = -(-len(samples) // _POINTS)
    for start in range(0, len(samples), size):
        top = max(samples[start : start + size], key=lambda sample: int(getattr(sample, field)))
        yield top.seconds, getattr(top, field) / GB


def _budget(axis: Any, budget: float, measured: float, predicted: float) -> None:
    """The budget as a line; in words if it is far above the rest, which would be flat."""
    top = 1.15 * max(measured, predicted)
    if budget <= 2 * top:
        axis.axhline(budget, color="#a02020", linestyle="--", linewidth=1.2, label="budget")
        top = max(top, 1.08 * budget)
    else:
        axis.plot([], [], color="#a02020", linestyle="--", label=f"budget {budget:.1f} GB, above")
    axis.set_ylim(0, 1.12 * top)


def _names(axis: Any, shown: list[Band]) -> None:
    """Each component's name in its band; upright in short bands, so that names do not overlap."""
    whole = shown[-1].end or 1
    for band in shown:
        short = (band.end - band.begin) / whole < 0.11
        axis.annotate(
            label(band.component),
            ((band.begin + band.end) / 2, 0.04 if short else 0.98),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom" if short else "top",
            rotation=90 if short else 0,
            fontsize="small",
            color="#444444",
        )
