"""Measure what a machine does in a second, in some twenty seconds, for the cost model.

Disk and cache are measured with a weight file of our own that our own reader reads and casts; the bus
with copies; computing with each component's own kind of network, of less layers and fewer pixels. Each
measurement has its share of time and ends with it, however slow the machine.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lowmem_if.cascade import catalog
from lowmem_if.errors import DeviceError
from lowmem_if.hardware.calibration import calibration_bytes, calibration_file, identity
from lowmem_if.hardware.machine import Machine, weights_folder
from lowmem_if.hardware.speeds import ACCELERATOR, ANY, CPU, Speeds, Throughput
from lowmem_if.system.file_operations import drop_cached
from lowmem_if.weights.files.atomic import write_bytes
from lowmem_if.weights.files.checkpoint import Checkpoint
from lowmem_if.weights.files.safetensors_writer import NewTensor, header_bytes
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.loading import DTYPES
from lowmem_if.weights.memory_readings import wake
from lowmem_if.weights.synthetic.architectures import networks

_FILE_BYTES = 256 * 2**20
_PIECES = 16
_SHARE_S = 1.0
"""Seconds that one measurement may go on; the last piece of work in it is finished."""
_LAUNCHES = 1500
"""Kernels that one pass of IF's UNets starts, about."""
_VAE = "vae"

Report = Callable[[str], None]
Work = Callable[[], object]
Clock = Callable[[], float]


def calibrate(machine: Machine, report: Report = lambda _what: None) -> Speeds:
    """Measure the machine's constants and keep them for the plans to come.

    Raises:
        DeviceError: the constants cannot be kept.
    """
    rates = measure(machine, report)
    keep(machine, rates)
    return rates


def measure(
    machine: Machine, report: Report = lambda _what: None, clock: Clock = time.perf_counter
) -> Speeds:
    """The machine's constants as they are now.

    Args:
        clock: what seconds are counted with; `time.process_time` on a machine that others use, too.
    """
    device = machine.device
    wake(device)
    assumed = machine.speeds
    with torch.no_grad(), _weight_file(report) as file:
        report("reading and casting")
        disk, cached, fill = _reading(file, DTYPES[_cpu_dtype(machine)], clock)
        bus = pageable = fill
        if device not in ("cpu", "mps"):
            report("the bus")
            bus, pageable = _bus(device, clock)
        return Speeds(
            disk_bytes=disk,
            cached_bytes=cached,
            fill_bytes=fill,
            bus_bytes=bus,
            pageable_bytes=pageable,
            launch_s=_launch_seconds(device, clock),
            start_s=assumed.start_s,
            paces=tuple(_paces(machine, report, clock)),
            origin=f"measured here on {time.strftime('%Y-%m-%d')}",
        )


def keep(machine: Machine, rates: Speeds) -> None:
    """Write constants beside the embeddings, whole or not at all.

    Raises:
        DeviceError: the folder cannot be written.
    """
    file = calibration_file(machine.device)
    accelerator = "" if machine.kind == "cpu" else machine.device_name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, calibration_bytes(identity(accelerator), rates))
    except OSError as error:
        raise DeviceError(
            f"{file.parent} cannot be written ({error.strerror or error}): "
            "set LOWMEM_IF_CACHE to another folder"
        ) from error


def _cpu_dtype(machine: Machine) -> str:
    return machine.compute_dtype if machine.kind == "cpu" else "float32"


# --- files


@contextmanager
def _weight_file(report: Report) -> Iterator[Path]:
    """A float16 weight file of noise where weights are kept, gone afterwards."""
    report("writing a file to read")
    with tempfile.TemporaryDirectory(prefix=".lowmem-if-", dir=_scratch()) as folder:
        file = Path(folder) / "model.safetensors"
        tensors = [NewTensor(str(n), "F16", (_FILE_BYTES // _PIECES // 2,)) for n in range(_PIECES)]
        with file.open("wb") as stream:
            stream.write(header_bytes(tensors))
            for _ in tensors:  # noise: a disk may compress, and denormal numbers are slow to cast
                stream.write(torch.randn(_FILE_BYTES // _PIECES // 2).half().numpy().tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        yield file


def _scratch() -> Path:
    """Where weights are kept if that can be written and has room, else where temporary files go."""
    folder = weights_folder()
    probe = folder / f".lowmem-if-{secrets.token_hex(4)}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return Path(tempfile.gettempdir())
    return folder


def _reading(file: Path, dtype: torch.dtype, clock: Clock) -> tuple[float, float, float]:
    """(cold, cached, cached into fresh memory): bytes a second of the file, the last of the result."""
    with Checkpoint((file,)) as checkpoint:
        names = [str(number) for number in range(_PIECES)]
        reader, count = Reader(checkpoint), _FILE_BYTES // _PIECES // 2
        again, fresh = torch.empty(count, dtype=dtype), []

        def cold(name: str) -> None:
            reader.read(checkpoint.stored(name), raw)

        def cast(name: str) -> None:
            reader.read(checkpoint.stored(name), again)

        def fill(name: str) -> None:
            fresh.append(torch.empty(count, dtype=dtype))
            reader.read(checkpoint.stored(name), fresh[-1])

        raw = torch.empty(count, dtype=torch.float16)
        _forget(file)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as our loaders' threads read
        try:
            disk, cached = (count * 2 * _each(names, work, clock) for work in (cold, cast))
            filled = count * dtype.itemsize * _each(names, fill, clock)
            fresh.clear()
            # Memory that a virtual machine has not had for long is slow to come: the quicker one counts.
            filled = max(filled, count * dtype.itemsize * _each(names, fill, clock))
        finally:
            torch.set_num_threads(threads)
        return disk, cached, filled


def _each(names: list[str], work: Callable[[str], None], clock: Clock) -> float:
    """Pieces a second that some work does, until its time is over."""
    begun, done = clock(), 0
    for done, name in enumerate(names, start=1):  # noqa: B007
        work(name)
        if clock() - begun > 2 * _SHARE_S:
            break
    return done / (clock() - begun)


def _forget(file: Path) -> None:
    """Ask the system to drop the file from its cache; where it cannot be asked, the disk looks fast."""
    with file.open("rb") as opened:
        drop_cached(opened.fileno())


# --- computing


def _bus(device: str, clock: Clock) -> tuple[float, float]:
    """Bytes a second to an accelerator from (pinned, pageable) memory; the same where none can pin."""
    size = 64 * 2**20
    target = torch.empty(size, dtype=torch.uint8, device=device)
    plain = torch.ones(size, dtype=torch.uint8)
    pageable = size / _seconds(lambda: target.copy_(plain), device, clock)
    try:
        pinned = plain.pin_memory()
    except RuntimeError:
        return pageable, pageable
    return size / _seconds(lambda: target.copy_(pinned, non_blocking=True), device, clock), pageable


def _launch_seconds(device: str, clock: Clock) -> float:
    """What a pass takes if nothing in it takes any time."""
    numbers = torch.ones(1, 8, device=device)
    layers = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(100)]).to(device)
    return _seconds(lambda: layers(numbers), device, clock) / 100 * _LAUNCHES


def _paces(machine: Machine, report: Report, clock: Clock) -> Iterator[Throughput]:
    """Of every component in the type it computes in, and of any in float32, here and on the CPU."""
    device, dtype = machine.device, machine.compute_dtype
    place = CPU if machine.kind == "cpu" else ACCELERATOR
    for component in (*_SHORTENED, _VAE):
        report(f"computing: {component.replace('_', ' ')}")
        own = "float32" if component == _VAE else dtype
        pace = _pace(component, device, own, clock)
        yield Throughput(place, own, component, pace)
        if component == catalog.STAGE_1:
            yield Throughput(place, own, ANY, pace)
    others = {(place, device, "float32"), (CPU, "cpu", "float32")} - {(place, device, dtype)}
    for where, on, kind in sorted(others):
        report(f"computing: {kind} on {where}")
        yield Throughput(where, kind, ANY, _pace(catalog.STAGE_1, on, kind, clock))
        if on == "cpu":  # where the encoder goes that has no room elsewhere
            pace = _pace(catalog.TEXT_ENCODER, on, kind, clock)
            yield Throughput(where, kind, catalog.TEXT_ENCODER, pace)


def _pace(component: str, device: str, dtype: str, clock: Clock) -> float:
    """Operations a second of a component's own kind of network with less layers than it has."""
    forward, inputs = _network(component, device, DTYPES[dtype])
    with FlopCounterMode(display=False) as counter:  # and what is done once is done
        forward(**inputs)
    flops = float(counter.get_total_flops())
    return flops / _seconds(lambda: forward(**inputs), device, clock, _SHARE_S)


def _network(
    component: str, device: str, dtype: torch.dtype
) -> tuple[Callable[..., object], dict[str, torch.Tensor]]:
    """A shortened network with weights that mean nothing, and inputs for a step of it, not guided."""
    part = catalog.UPSCALER if component == _VAE else component
    which = next(n for n in networks("if-m")[part] if n.folder.endswith(_FOLDERS[component]))
    network = replace(which, config=which.config | _SHORTENED.get(component, {})).skeleton()
    module = network.to_empty(device=device).to(dtype).eval()
    for numbers in (*module.parameters(), *module.buffers()):
        numbers.fill_(1)
    if component == catalog.TEXT_ENCODER:
        ids = torch.ones(1, catalog.MAX_TOKENS, dtype=torch.long, device=device)
        return module, {"input_ids": ids}
    if component == _VAE:
        latents = torch.ones(1, 4, _VAE_SIDE, _VAE_SIDE, device=device, dtype=dtype)
        return module.decode, {"z": latents}
    return module, _unet_inputs(which.config, _SIDES[component], device, dtype)


def _unet_inputs(
    config: dict[str, Any], side: int, device: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    width = config.get("encoder_hid_dim") or config["cross_attention_dim"]
    of = {"device": device, "dtype": dtype}
    inputs = {
        "sample": torch.ones(1, config["in_channels"], side, side, **of),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.ones(1, catalog.MAX_TOKENS, width, **of),
    }
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        inputs["class_labels"] = torch.tensor([100], device=device)
    return inputs


def _seconds(work: Work, device: str, clock: Clock, share_s: float = _SHARE_S / 4) -> float:
    """Of one piece of work: the quickest, for what else the machine does only ever slows it."""
    best, begun = float("inf"), clock()
    while best == float("inf") or clock() - begun < share_s:
        start = clock()
        work()
        if device != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, clock() - start)
    return best


_FOLDERS = {
    catalog.TEXT_ENCODER: "text_encoder",
    catalog.STAGE_1: "unet",
    catalog.STAGE_2: "unet",
    catalog.UPSCALER: "unet",
    _VAE: "vae",
}
_SHORTENED: dict[str, dict[str, Any]] = {
    catalog.TEXT_ENCODER: {"num_layers": 2, "vocab_size": 64},
    catalog.STAGE_1: {"layers_per_block": 1},
    catalog.STAGE_2: {"layers_per_block": 1},
    catalog.UPSCALER: {"layers_per_block": 1},
}
"""What is changed in a network's configuration, so that it is measured within seconds."""
_SIDES = {catalog.STAGE_1: 64, catalog.STAGE_2: 128, catalog.UPSCALER: 64}
_VAE_SIDE = 16
"""Pixels or latents of what is drawn: half or a sixteenth of the real, which is slow enough already."""
