"""The machine's constants, measured as `lowmem-if probe --calibrate` does, against the assumed ones."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import TypeAdapter

from bench.gpu.rows import COUNT, RATE, SECONDS, Row, figure, row
from bench.gpu.setup import Setup
from lowmem_if.calibrate.measure import measure
from lowmem_if.engine.worker.command_loop import quiet_libraries
from lowmem_if.hardware.machine import Machine, probe
from lowmem_if.hardware.speeds import Speeds, assumed

_CONSTANTS = {
    "disk_bytes": RATE, "cached_bytes": RATE, "fill_bytes": RATE, "bus_bytes": RATE,
    "pageable_bytes": RATE, "launch_s": SECONDS,
}  # fmt: skip


def rows(setup: Setup) -> Iterator[Row]:
    """One row with all constants."""
    quiet_libraries()
    machine = probe(setup.device)
    yield compared(machine, measure(machine, report=print))


def compared(machine: Machine, rates: Speeds) -> Row:
    """Measured constants beside those that are assumed for the class of device."""
    guess = assumed(machine.kind, machine.capability)
    figures = [
        figure(name, getattr(rates, name), getattr(guess, name), unit)
        for name, unit in _CONSTANTS.items()
    ]
    for pace in rates.paces:
        expected = guess.flops_per_s(pace.place, pace.component, pace.dtype)
        what = f"{pace.component} in {pace.dtype} on the {pace.place}"
        figures.append(figure(f"{what}, TFLOPS", pace.flops_per_s / 1e12, expected / 1e12, COUNT))
    constants = {"rates": TypeAdapter(Speeds).dump_python(rates, mode="json")}
    return row("constants", *figures, constants=constants)
