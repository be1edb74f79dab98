"""Plans, machines and runs as tables for people."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowmem_if.cascade.catalog import label
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.run_record import Released
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.speeds import ACCELERATOR, ANY, CPU
from lowmem_if.planning.levels import Saving
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.system.paths import quoted
from lowmem_if.units import GIB, format_bytes, format_seconds

if TYPE_CHECKING:
    from lowmem_if.api.rehearse import Rehearsal  # which imports the libraries

_PLAIN_WIDTH = 120
"""How many columns a table has without a terminal."""
_LEAST_BYTES = 50_000_000
"""Savings below this would be printed as 0.0 GB."""
_WIDE = 100
"""From this width on, columns have two spaces between them."""


def console(stream: TextIO | None) -> Console:
    """A console that does not wrap at 80 columns where there is no terminal."""
    stream = stream or io.StringIO()  # the shell may have closed it
    # A notebook's shell cell looks like a terminal, but has no bars.
    plain = not stream.isatty() or "JPY_PARENT_PID" in os.environ
    return Console(
        file=stream,
        width=_PLAIN_WIDTH if plain else None,
        force_terminal=False if plain else None,
        highlight=False,
        soft_wrap=False,
    )


def machine_line(machine: Machine) -> str:
    """One line: device, memory, compute dtype and its reason."""
    vram = f" {machine.vram_bytes / GIB:.1f} GiB free," if machine.vram_total_bytes else ","
    return (
        f"{machine.name}: {_device_name(machine)}{vram} RAM {machine.ram_bytes / 1e9:.1f} GB free of "
        f"{machine.ram_total_bytes / 1e9:.1f}, {machine.compute_dtype} "
        f"({machine.compute_dtype_reason})"
    )


def print_machine(machine: Machine, out: Console) -> None:
    """Print what the machine has, what may be used, and why."""
    table = _table(out, "", "")
    table.add_row("device", f"{machine.device}, {_device_name(machine)}")
    if machine.vram_total_bytes:
        table.add_row("VRAM", _of(machine.vram_bytes, machine.vram_total_bytes))
    table.add_row("RAM", _of(machine.ram_bytes, machine.ram_total_bytes))
    table.add_row("disk", f"{format_bytes(machine.disk_free_bytes)} free for weights")
    table.add_row("computes in", f"{machine.compute_dtype}: {machine.compute_dtype_reason}")
    speeds = machine.speeds
    table.add_row("disk reads", f"{format_bytes(int(speeds.disk_bytes))} a second")
    throughput = speeds.flops_per_s(
        CPU if machine.kind == CPU else ACCELERATOR, ANY, machine.compute_dtype
    )
    table.add_row("computes", f"{throughput / 1e12:.2f} TFLOP a second in {machine.compute_dtype}")
    table.add_row("times", _times(machine).removeprefix("times: "))
    out.print(table)
    for note in machine.notes:
        _line(out, f"note: {note}")


def print_plan(plan: Plan, out: Console, savings: Sequence[Saving] = ()) -> None:
    """Print every step with its strategy, peaks and reason, and what looser levels would save."""
    _line(out, f"{plan.request.weights} on {machine_line(plan.machine)}")
    table = _table(
        out, "step", "strategy", "storage", "batch", "VRAM peak", "RAM peak", "time", "why"
    )
    for step in plan.steps:
        table.add_row(
            *_step_cells(step), str(step.config.batch), _bytes(step.estimate.vram_bytes),
            _bytes(step.estimate.ram_bytes), format_seconds(step.estimate.seconds), _why(step),
        )  # fmt: skip
    out.print(table)
    for note in plan.machine.notes:
        _line(out, f"note: {note}")
    _line(out, f"level: {plan.loosened or plan.prefer}")
    for step in plan.steps:
        if step.sampling and step.sampling.shortened:
            _line(out, f"{label(step.component)}: {step.sampling.shortened}")
    for line in _savings(savings):
        _line(out, line)
    _line(out, f"{_times(plan.machine)}")
    _line(out, _total(plan))


def print_run(folder: RunFolder, out: Console) -> None:
    """Print the predicted and the measured figures of each step."""
    _line(out, f"{folder.plan.request.weights} on {machine_line(folder.plan.machine)}")
    kinds = ("vram", "ram") if folder.plan.machine.kind != "cpu" else ("ram",)
    peaks = [f"{kind.upper()}\npredicted" for kind in kinds]
    headings = [heading for peak in peaks for heading in (peak, "\nmeasured")]
    table = _table(out, "step", "strategy", "storage", *headings, "time", "left\nbehind")
    for step in folder.plan.steps:
        table.add_row(*_step_cells(step), *_measured_cells(folder, step, kinds))
    out.print(table)
    loosened = [folder.plan.loosened] if folder.plan.loosened else []
    for line in (*loosened, *_kept_loaded(folder), *folder.log, *folder.notices):
        _line(out, f"note: {line}")
    again = f"lowmem-if resume {quoted(folder.path)}"
    state = "complete" if folder.complete else f"not finished: `{again}`"
    _line(out, f"{len(folder.images)} of {len(folder.plan.request.images)} image(s), {state}")


def print_rehearsal(rehearsal: Rehearsal, out: Console) -> None:
    """Print what a few denoising steps took, and the prediction for the real run."""
    plan = rehearsal.plan
    _line(out, f"{plan.request.weights} rehearsed on {machine_line(plan.machine)}")
    vram = ("VRAM\nmeasured",) if plan.machine.vram_total_bytes else ()
    table = _table(
        out, "step", "strategy", "storage", *vram, "RAM\npredicted", "RAM\nmeasured",
        "a step\nmeasured", "in all\npredicted",
    )  # fmt: skip
    for each, planned in zip(rehearsal.components, plan.steps, strict=True):
        cells = [_bytes(each.vram_bytes)] if vram else []
        cells += [_bytes(planned.estimate.ram_bytes), _bytes(each.ram_bytes)]
        step = format_seconds(each.step_s) if each.step_s else "-"
        table.add_row(
            *_step_cells(each.step), *cells, step, format_seconds(planned.estimate.seconds)
        )
    out.print(table)
    now = [(step.config.strategy, step.config.storage_dtype) for step in plan.steps]
    steps = [each.step.config for each in rehearsal.components]
    if now != [(config.strategy, config.storage_dtype) for config in steps]:
        _line(out, "note: by these figures other strategies are faster now: see `lowmem-if plan`")
    peaks = f"peak RAM {format_bytes(rehearsal.ram_bytes)}"
    peaks += f", peak VRAM {format_bytes(rehearsal.vram_bytes)}" if rehearsal.vram_bytes else ""
    each_image = format_seconds(plan.seconds / len(plan.request.images))
    _line(out, f"{plan.request.weights} at {plan.request.size} px: {each_image} an image, {peaks}")


def _device_name(machine: Machine) -> str:
    """The maker's name of the device; only one of several is used."""
    others = f" (one of {machine.devices})" if machine.devices > 1 else ""
    return f"{machine.device_name}{others}"


def _line(out: Console, text: str) -> None:
    """Print a line that is never broken, so that commands in it can be copied."""
    out.print(Text(text), soft_wrap=True)


def _total(plan: Plan) -> str:
    """`total 3 min 4 s an image, 21.3 GB to download, 70.0 GB of disk free. It fits.`"""
    images = len(plan.request.images)
    each = f", {format_seconds(plan.seconds / images)} an image" if images > 1 else " an image"
    if not plan.request.pictures:
        each = ""
    words = [f"total {format_seconds(plan.seconds)}{each}"]
    if plan.download_bytes:
        free = format_bytes(plan.machine.disk_free_bytes)
        words.append(f"{format_bytes(plan.download_bytes)} to download, {free} of disk free")
        if plan.download_bytes > plan.machine.disk_free_bytes:
            return ", ".join(words) + ". It fits the memory, not the disk: free some space."
    return ", ".join(words) + ". It fits."


def _savings(savings: Sequence[Saving]) -> Iterator[str]:
    """One line for levels that save the same: `--prefer balanced: 12 s and 0.4 GB of RAM less`."""
    for words, group in groupby(savings, _saved):
        yield f"--prefer {' or '.join(saving.level for saving in group)}: {words}"


def _saved(saving: Saving) -> str:
    """What a level would save, in words."""
    amounts = []
    if abs(saving.seconds) >= 1:
        amounts.append((saving.seconds, format_seconds(abs(saving.seconds))))
    for kind, size in (("VRAM", saving.vram_bytes), ("RAM", saving.ram_bytes)):
        if abs(size) >= _LEAST_BYTES:
            amounts.append((size, f"{format_bytes(abs(size))} of {kind}"))
    parts = [
        f"{' and '.join(texts)} {word}"
        for word, sign in (("less", 1), ("more", -1))
        if (texts := [text for amount, text in amounts if amount * sign > 0])
    ]
    return ", ".join(parts) or "saves nothing here"


def _times(machine: Machine) -> str:
    """Which measurements the predicted times are based on."""
    measure = "; `lowmem-if probe --calibrate` measures yours" if machine.rates is None else ""
    return f"times: {machine.speeds.origin}{measure}"


def _why(step: Step) -> str:
    """The reason, and the alternative that was not chosen."""
    return f"{step.reason} ({step.instead_of})" if step.instead_of else step.reason


def _measured_cells(folder: RunFolder, step: Step, kinds: tuple[str, ...]) -> list[str]:
    """The peaks of each kind of memory, predicted and measured, the time, and what was not freed."""
    measured = folder.measured(step.component)
    cells = []
    for kind in kinds:
        cells.append(_bytes(getattr(step.estimate, f"{kind}_bytes")))
        cells.append(_bytes(measured.own_bytes(kind)) if measured else "-")
    if not measured:
        return [*cells, "-", "-"]
    released = folder.released(step.component)
    left = "kept loaded" if folder.kept_loaded(step.component) else "not loaded"
    return [*cells, format_seconds(measured.seconds), _left(released) if released else left]


def _kept_loaded(folder: RunFolder) -> list[str]:
    """One line about components that were kept loaded during steps, if any were."""
    kept = []
    for step in folder.plan.steps:
        measured = folder.measured(step.component)
        sizes = [(kind, measured.warm_bytes(kind) if measured else 0) for kind in ("vram", "ram")]
        words = " and ".join(
            f"{format_bytes(size)} of {kind.upper()}" for kind, size in sizes if size
        )
        if words:
            kept.append(f"{step.component.replace('_', ' ')}: {words}")
    if not kept:
        return []
    during = f"during {', '.join(kept)}"
    return [f"excluded from the peaks, memory of components kept loaded from before: {during}"]


def _left(released: Released) -> str:
    if released.alive:
        return f"alive: {list(released.alive)}"
    return format_bytes(max(released.ram_left_bytes, released.vram_left_bytes))


def _step_cells(step: Step) -> tuple[str, str, str]:
    return (
        label(step.component),
        step.config.strategy.replace("_", " "),
        step.config.storage_dtype,
    )


def _bytes(size: int) -> str:
    return format_bytes(size) if size else "-"


def _of(free: int, total: int) -> str:
    return f"{format_bytes(free)} may be used of {format_bytes(total)}"


def _table(out: Console, *headings: str) -> Table:
    gap = (0, 2 if out.width >= _WIDE else 1)
    table = Table(box=None, pad_edge=False, collapse_padding=True, padding=gap, header_style="bold")
    for heading in headings:
        numeric = heading.endswith(("peak", "predicted", "measured", "time", "batch"))
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table
