"""Plans, machines and runs as tables for people."""

from __future__ import annotations

import io
import os
import shlex
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowmem_if.planning.machine import Machine
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.planning.units import GIB, format_bytes, format_seconds
from lowmem_if.running.run_folder import RunFolder

_PLAIN_WIDTH = 120
"""Columns when nobody's terminal sets them."""
_WIDE = 100
"""From here on columns stand two spaces apart."""


def console(stream: TextIO | None) -> Console:
    """A console that never wraps at 80 columns only because there is no terminal."""
    stream = stream or io.StringIO()  # Python has none where the shell closed it
    # A notebook's shell cell looks like a terminal to us and cannot draw what one can.
    plain = not stream.isatty() or "JPY_PARENT_PID" in os.environ
    return Console(
        file=stream,
        width=_PLAIN_WIDTH if plain else None,
        force_terminal=False if plain else None,
        highlight=False,
        soft_wrap=False,
    )


def machine_line(machine: Machine) -> str:
    """One line: device, memory, number type and why."""
    vram = f" {machine.vram_bytes / GIB:.1f} GiB free," if machine.vram_total_bytes else ","
    return (
        f"{machine.name}: {machine.device_name}{vram} RAM {machine.ram_bytes / 1e9:.1f} GB free of "
        f"{machine.ram_total_bytes / 1e9:.1f}, {machine.compute_dtype} "
        f"({machine.compute_dtype_reason})"
    )


def print_machine(machine: Machine, out: Console) -> None:
    """What the machine has, what may be used, and why."""
    table = _table(out, "", "")
    table.add_row("device", f"{machine.device}, {machine.device_name}")
    if machine.vram_total_bytes:
        table.add_row("VRAM", _of(machine.vram_bytes, machine.vram_total_bytes))
    table.add_row("RAM", _of(machine.ram_bytes, machine.ram_total_bytes))
    table.add_row("disk", f"{format_bytes(machine.disk_free_bytes)} free for weights")
    table.add_row("computes in", f"{machine.compute_dtype}: {machine.compute_dtype_reason}")
    for note in machine.notes:
        table.add_row("note", note)
    out.print(table)


def print_plan(plan: Plan, out: Console) -> None:
    """Every step with its strategy, its peaks and its reason."""
    _line(out, f"{plan.request.cascade} on {machine_line(plan.machine)}")
    timed = ("time",) if any(step.predicted.seconds is not None for step in plan.steps) else ()
    table = _table(
        out, "step", "strategy", "storage", "batch", "VRAM peak", "RAM peak", *timed, "why"
    )
    for step in plan.steps:
        table.add_row(
            *_step_cells(step), str(step.batch), _bytes(step.predicted.vram_bytes),
            _bytes(step.predicted.ram_bytes), *[_least_time(step) for _ in timed], _why(step),
        )  # fmt: skip
    out.print(table)
    for note in plan.machine.notes:
        _line(out, f"note: {note}")
    fetch = f"{format_bytes(plan.download_bytes)} to download; " if plan.download_bytes else ""
    _line(out, f"{fetch}{len(plan.request.tasks)} image(s). It fits.")


def print_run(folder: RunFolder, out: Console) -> None:
    """Predicted against measured, step by step."""
    _line(out, f"{folder.plan.request.cascade} on {machine_line(folder.plan.machine)}")
    kinds = ("vram", "ram") if folder.plan.machine.kind != "cpu" else ("ram",)
    peaks = [f"{kind.upper()}\npredicted" for kind in kinds]
    headings = [heading for peak in peaks for heading in (peak, "\nmeasured")]
    table = _table(out, "step", "strategy", "storage", *headings, "time", "left\nbehind")
    for step in folder.plan.steps:
        table.add_row(*_step_cells(step), *_measured_cells(folder, step, kinds))
    out.print(table)
    for line in (*folder.log, *folder.notices):
        _line(out, f"note: {line}")
    again = f"lowmem-if resume {shlex.quote(str(folder.path))}"
    state = "complete" if folder.complete else f"not finished: `{again}`"
    _line(out, f"{len(folder.images)} of {len(folder.plan.request.tasks)} image(s), {state}")


def _line(out: Console, text: str) -> None:
    """A line that is never broken, so that what it says to type can be copied."""
    out.print(Text(text), soft_wrap=True)


def _least_time(step: Step) -> str:
    """What is predicted of a step's time: how long its weights are under way, and it takes longer."""
    seconds = step.predicted.seconds
    return "-" if seconds is None else f"over {format_seconds(seconds)}"


def _why(step: Step) -> str:
    """The reason, and what there was no room for."""
    dropped = "needs" in step.instead_of
    return f"{step.reason} ({step.instead_of})" if dropped else step.reason


def _measured_cells(folder: RunFolder, step: Step, kinds: tuple[str, ...]) -> list[str]:
    """The peaks of each kind of memory, predicted and measured, the time, and what was left."""
    measured = folder.measured(step.component)
    cells = []
    for kind in kinds:
        cells.append(_bytes(getattr(step.predicted, f"{kind}_bytes")))
        cells.append(_bytes(measured[f"{kind}_bytes"]) if measured else "-")
    if not measured:
        return [*cells, "-", "-"]
    released = folder.released(step.component)
    left = _left(released) if released else "not loaded"
    return [*cells, format_seconds(measured["seconds"]), left]


def _left(released: dict[str, object]) -> str:
    if released["alive"]:
        return f"alive: {released['alive']}"
    left = max(int(str(released["ram_left_bytes"])), int(str(released["vram_left_bytes"])))
    return format_bytes(left)


def _step_cells(step: Step) -> tuple[str, str, str]:
    return (
        step.component.replace("_", " "),
        step.strategy.replace("_", " "),
        step.storage_dtype,
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
