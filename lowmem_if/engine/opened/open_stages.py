"""The stages that are open in this process, and what the next one may use.

A plan counts memory as a worker needs it, which holds nothing else. The user's process holds torch,
results, and the stages that are open already. So the budget is reduced by what the process holds now,
and by what each open stage may still take until its planned peak.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.strategies import STREAM, Pin
from lowmem_if.engine.embedding import embed_texts
from lowmem_if.engine.opened.stage_plan import StagePlan
from lowmem_if.engine.opened.stage_request import StageRequest
from lowmem_if.errors import CascadeError, DeviceError, DoesNotFit
from lowmem_if.hardware.machine import Machine
from lowmem_if.hardware.profiles import choose_machine
from lowmem_if.planning.estimates.execution import Estimate
from lowmem_if.planning.estimates.memory import PROCESS_RAM_BYTES
from lowmem_if.planning.estimates.weight_bytes import in_place_bytes
from lowmem_if.planning.plan import Step
from lowmem_if.stages.lifetime import Lifetime, closed_on_error
from lowmem_if.stages.opened.open_pipeline import Encode, OpenPipeline
from lowmem_if.stages.opened.opened_networks import OpenedNetworks
from lowmem_if.stages.stage import StageConfig
from lowmem_if.system.process_memory import keep_heap_small
from lowmem_if.weights.allocator import sees, used_accelerator
from lowmem_if.weights.embedding_files.embedding_reader import opened_embeddings
from lowmem_if.weights.embedding_files.embedding_tensors import Embeddings, load_embeddings
from lowmem_if.weights.hub import repository
from lowmem_if.weights.hub.transfer import Progress
from lowmem_if.weights.memory_readings import (
    MemoryReading,
    Release,
    read_memory,
    release_memory,
    wake,
)

_OPEN: dict[int, _Promise] = {}
"""The open stages, numbered in the order in which they were opened."""

_KEYS = count()

Report = Callable[[str, int, int], None]
"""Called with a file's name, the bytes done and the bytes in all."""

_LOCK = threading.RLock()
"""One stage is opened or closed at a time."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """What an open stage may still take.

    Attributes:
        name: the stage in words.
        stage: the user's object, which may be collected.
        vram_bytes, ram_bytes: until its planned peak, in addition to what it took when it was loaded.
    """

    name: str
    stage: weakref.ref[OpenPipeline]
    vram_bytes: int
    ram_bytes: int


def open_one(wanted: StageRequest, given: Mapping[str, Any]) -> OpenPipeline:
    """Plan, download if need be, and load one stage in this process.

    Args:
        given: the options that name machine and budgets, and `report`.

    Raises:
        DoesNotFit: the stage needs more than the remaining memory; the message says what to close.
        LowmemError: device, files or network fail.
    """
    with _LOCK:
        machine, pins = _left(given)
        wanted = wanted.with_default(pins.get(wanted.component))
        step, location = _planned(wanted, machine)
        if location.folder(step.component) is None:
            _download(wanted, location, given.get("report"))
            step, location = _planned(wanted, machine)
        plan = StagePlan(wanted.name, step, machine, _names())
        return _load(wanted, plan, location, _encoder(wanted, given))


def close_all() -> None:
    """Close every open stage."""
    with _LOCK:
        for promise in list(_OPEN.values()):
            if (stage := promise.stage()) is not None:
                stage.close()


def _names() -> tuple[str, ...]:
    return tuple(promise.name for promise in _OPEN.values())


def _left(given: Mapping[str, Any]) -> tuple[Machine, dict[str, Pin]]:
    """The machine with its remaining memory, or the rest of the user's budgets; a profile's pins."""
    release_memory(used_accelerator())
    profile, ram, vram = given.get("profile"), given.get("ram"), given.get("vram")
    machine, pins = choose_machine(profile, device=given.get("device", "auto"), ram=ram, vram=vram)
    left = left_of(
        machine, read_memory(used_accelerator()),
        ram_is_budget=ram is not None or profile is not None,
        vram_is_budget=vram is not None or profile is not None,
    )  # fmt: skip
    return left, pins


def left_of(
    machine: Machine, held: MemoryReading, *, ram_is_budget: bool, vram_is_budget: bool
) -> Machine:
    """The machine less what is in use or promised.

    Args:
        held: what this process holds.
        ram_is_budget, vram_is_budget: whether the machine's figure is for this process as a whole. If
            not it was measured now, and lacks what the process holds already.
    """
    ram = machine.ram_bytes - (held.ram_anon if ram_is_budget else 0)
    vram = machine.vram_bytes - (held.vram_reserved if vram_is_budget else 0)
    promised = list(_OPEN.values())
    return replace(
        machine,
        # A plan counts an empty process, which this one has paid for already.
        ram_bytes=max(0, ram + PROCESS_RAM_BYTES - sum(one.ram_bytes for one in promised)),
        vram_bytes=max(0, vram - sum(one.vram_bytes for one in promised)),
    )


def _planned(wanted: StageRequest, machine: Machine) -> tuple[Step, Location]:
    try:
        return wanted.planned(machine)
    except DoesNotFit as error:
        if not _OPEN:
            raise
        first = f"Close {' and '.join(_names())} with close(), or all with lm.close_stages()."
        raise DoesNotFit(
            error.component, error.resource, error.needed_bytes, error.available_bytes,
            f"{first} {error.nearest}",
        ) from None  # fmt: skip


def _download(wanted: StageRequest, location: Location, report: Report | None) -> None:
    """Download what this stage lacks, and nothing of the others; without `report` a bar shows it."""
    request = wanted.request
    if location.cascade.parts[wanted.component].repository is None:
        raise CascadeError(f"the {wanted.component} of {location.cascade.name} is not on this disk")
    files = repository.list_files(
        location.cascade, (wanted.component,), eight_bit=False, revision=request.revision
    )
    if report is not None:
        repository.fetch(files, report=lambda p: report(p.file, p.done_bytes, p.total_bytes))
        return
    with tqdm(desc=f"downloading {wanted.name}", unit="B", unit_scale=True) as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total_bytes
            bar.update(progress.done_bytes - bar.n)

        repository.fetch(files, report=show)


def _encoder(wanted: StageRequest, given: Mapping[str, Any]) -> Encode:
    """Encodes texts in a process of its own, with what this one leaves; known texts only once."""
    if file := given.get("embeds"):
        return _reader(Path(file).expanduser())
    known: Embeddings = {}

    def encode(texts: Iterable[str]) -> Embeddings:
        if missing := [text for text in texts if text not in known]:
            left, _pins = _left(given)
            known.update(embed_texts(missing, **wanted.text_options(left)))
        return known

    return encode


def _reader(file: Path) -> Encode:
    """Reads the embeddings of texts from a file, which is checked now and whenever it is read."""

    def read(texts: Iterable[str]) -> Embeddings:
        with opened_embeddings(file) as opened:
            for text in texts:
                opened.check(text)
        return load_embeddings(file)

    read(())
    return read


def _load(
    wanted: StageRequest, plan: StagePlan, location: Location, encode: Encode
) -> OpenPipeline:
    step, device = plan.step, plan.step.config.device
    if not sees(device):
        raise DeviceError(
            f"{plan.name} is planned for {device}, which torch does not see here: "
            "open it with device='cpu'"
        )
    place = location.place(step.component)
    if place is None:
        raise CascadeError(f"{plan.name} is not on this disk: check the folder of the cascade")
    if (step.config.strategy, device) == (STREAM, "cpu"):
        keep_heap_small()
    config = StageConfig(place.root, step, elsewhere=place.elsewhere)
    wake(device, step.config.compute_dtype)
    before = release_memory(device)
    life = Lifetime(
        lambda: OpenedNetworks.load(config, plan.name),
        device=device,
        weight_bytes=in_place_bytes(location.cascade.parts[step.component], step.config),
    )
    with closed_on_error(life):
        stage = life.component.pipeline(step.component, wanted.mode, place)
        key = next(_KEYS)
        stage.begin(plan, encode, partial(_end, key, life), partial(_release, key, life))
        grown = release_memory(device) - before
        _OPEN[key] = _Promise(plan.name, weakref.ref(stage), *_outstanding(step.estimate, grown))
        return stage


def _outstanding(estimate: Estimate, grown: MemoryReading) -> tuple[int, int]:
    """(VRAM, RAM) that a stage may still take, after loading has taken `grown`."""
    vram = estimate.vram_bytes - max(0, grown.vram_allocated)
    ram = estimate.ram_bytes - PROCESS_RAM_BYTES - max(0, grown.ram_anon)
    return max(0, vram), max(0, ram)


def _end(key: int, life: Lifetime[OpenedNetworks]) -> Release:
    with _LOCK:
        _OPEN.pop(key, None)
        return life.end()


def _release(key: int, life: Lifetime[OpenedNetworks]) -> None:
    """Called when the user's object is collected, on any thread: it must not wait for the lock."""
    _OPEN.pop(key, None)
    life.close()
