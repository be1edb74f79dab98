"""Measure what a machine does in a second, in some twenty seconds, for the cost model.

`disk` measures reading and casting, `compute` the networks and the bus. Each measurement has its share
of time and ends with it, however slow the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from lowmem_if.calibrate.clock import Clock
from lowmem_if.calibrate.compute import (
    SHORTENED,
    VAE,
    bus_speeds,
    flops_per_second,
    launch_seconds,
)
from lowmem_if.calibrate.disk import reading_speeds, weight_file
from lowmem_if.cascade import catalog
from lowmem_if.errors import DeviceError
from lowmem_if.hardware.calibration_file import calibration_bytes, calibration_file, machine_key
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.speeds import ACCELERATOR, ANY, CPU, Speeds, Throughput
from lowmem_if.weights.files.atomic import write_bytes
from lowmem_if.weights.loading import DTYPES
from lowmem_if.weights.memory_readings import wake

Report = Callable[[str], None]


def calibrate(machine: Machine, report: Report = lambda _what: None) -> Speeds:
    """Measure the machine's speeds and keep them for later plans.

    Raises:
        DeviceError: the file cannot be written.
    """
    rates = measure(machine, report)
    keep(machine, rates)
    return rates


def measure(
    machine: Machine, report: Report = lambda _what: None, clock: Clock = time.perf_counter
) -> Speeds:
    """The machine's speeds as they are now.

    Args:
        clock: counts seconds; `time.process_time` on a machine that other programs use, too.
    """
    device = machine.device
    wake(device)
    assumed = machine.speeds
    report("writing a file to read")
    with torch.no_grad(), weight_file() as file:
        report("reading and casting")
        disk, cached, fill = reading_speeds(file, DTYPES[_cpu_dtype(machine)], clock)
        bus = pageable = fill
        if device not in ("cpu", "mps"):
            report("the bus")
            bus, pageable = bus_speeds(device, clock)
        return Speeds(
            disk_bytes=disk,
            cached_bytes=cached,
            fill_bytes=fill,
            bus_bytes=bus,
            pageable_bytes=pageable,
            launch_s=launch_seconds(device, clock),
            start_s=assumed.start_s,
            paces=tuple(_paces(machine, report, clock)),
            origin=f"measured here on {time.strftime('%Y-%m-%d')}",
        )


def keep(machine: Machine, rates: Speeds) -> None:
    """Write speeds into the cache folder, as a whole or not at all.

    Raises:
        DeviceError: the folder cannot be written.
    """
    file = calibration_file(machine.device)
    accelerator = "" if machine.kind == "cpu" else machine.device_name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, calibration_bytes(machine_key(accelerator), rates))
    except OSError as error:
        raise DeviceError(
            f"{file.parent} cannot be written ({error.strerror or error}): "
            "set LOWMEM_IF_CACHE to another folder"
        ) from error


def _cpu_dtype(machine: Machine) -> str:
    return machine.compute_dtype if machine.kind == "cpu" else "float32"


def _paces(machine: Machine, report: Report, clock: Clock) -> Iterator[Throughput]:
    """Throughputs of every component in its compute type, and of any in float32, here and on the CPU."""
    device, dtype = machine.device, machine.compute_dtype
    place = CPU if machine.kind == "cpu" else ACCELERATOR
    for component in (*SHORTENED, VAE):
        report(f"computing: {component.replace('_', ' ')}")
        own = "float32" if component == VAE else dtype
        pace = flops_per_second(component, device, own, clock)
        yield Throughput(place, own, component, pace)
        if component == catalog.STAGE_1:
            yield Throughput(place, own, ANY, pace)
    others = {(place, device, "float32"), (CPU, "cpu", "float32")} - {(place, device, dtype)}
    for where, on, kind in sorted(others):
        report(f"computing: {kind} on {where}")
        yield Throughput(where, kind, ANY, flops_per_second(catalog.STAGE_1, on, kind, clock))
        if on == "cpu":  # the text encoder runs here if it fits nowhere else
            pace = flops_per_second(catalog.TEXT_ENCODER, on, kind, clock)
            yield Throughput(where, kind, catalog.TEXT_ENCODER, pace)
