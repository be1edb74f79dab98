"""What to try after memory ran out: one rung down at a time, whatever was predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lowmem_if.planning import catalog
from lowmem_if.planning.catalog import Part
from lowmem_if.planning.footprint import (
    RESIDENT_GRAIN_BYTES,
    Footprint,
    Setting,
    predict,
    texts_together,
)
from lowmem_if.planning.jobs import Job
from lowmem_if.planning.machine import Machine, cpu_compute_dtype
from lowmem_if.planning.plan import Prediction, Step
from lowmem_if.planning.seconds import predict_seconds
from lowmem_if.planning.strategies import (
    FLOATS,
    MODEL_OFFLOAD,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
)
from lowmem_if.planning.tiling import TILES

RAM, VRAM = "RAM", "VRAM"


def cheaper(
    step: Step,
    machine: Machine,
    part: Part,
    jobs: Sequence[Job],
    *,
    short_of: str = VRAM,
    pinned: bool = False,
) -> Step | None:
    """The next rung down the ladder after memory ran out; None at the bottom.

    Smaller batch, tiled VAE, weights in RAM, leaf by leaf, from the file, at last the CPU.

    Args:
        jobs: what the component has to do, for the seconds of the rung.
        short_of: what ran out. Short of RAM, a rung must take less of it; short of VRAM, it must take
            no more of that, nor more RAM than there is: the system's killer is worse than an exception.
        pinned: the user chose where the weights live; only batch, tiles and how much of a streaming
            component stays may change then.
    """
    short_of = RAM if step.device == "cpu" else short_of
    allowed_ram = machine.ram_bytes if short_of == VRAM else step.predicted.ram_bytes - 1
    allowed_vram = step.predicted.vram_bytes if short_of == VRAM else machine.vram_bytes
    for setting in _rungs(step.setting, machine, texts_together(jobs[0].texts)):
        if pinned and (setting.strategy, setting.device) != (step.strategy, step.device):
            return None
        footprint = predict(part, setting)
        if footprint.ram_bytes <= allowed_ram and footprint.vram_bytes <= allowed_vram:
            return replace(
                step,
                strategy=setting.strategy,
                storage_dtype=setting.storage,
                compute_dtype=setting.compute,
                device=setting.device,
                batch=setting.batch,
                vae_tiling=setting.vae_tiling,
                resident_bytes=setting.resident_bytes,
                tile=setting.tile,
                speedup=setting.speedup,
                predicted=_predicted(machine, part, setting, jobs, footprint),
                reason=f"{short_of} ran out with {step.setting} on {step.device}",
                instead_of=str(step.setting),
            )
    return None


def _predicted(
    machine: Machine, part: Part, setting: Setting, jobs: Sequence[Job], footprint: Footprint
) -> Prediction:
    shared = footprint.vram_bytes if machine.unified else 0
    left = machine.ram_bytes - footprint.ram_bytes - shared
    seconds = predict_seconds(part, setting, jobs, machine.speeds, left, unified=machine.unified)
    return Prediction(footprint.vram_bytes, footprint.ram_bytes, seconds, footprint.read_bytes)


def changed_pixels(before: Step, after: Step) -> str:
    """Why the cheaper step draws other pixels; empty if only where weights live has changed."""
    if after.speedup < before.speedup:
        return "it is no longer compiled"
    if after.vae_tiling and not before.vae_tiling:
        return "the VAE now works in tiles"
    if after.tile != before.tile:
        return f"it now draws in tiles of {after.tile} pixels"
    if after.compute_dtype != before.compute_dtype:
        return f"it now computes in {after.compute_dtype}"
    if after.batch != before.batch and after.component != catalog.TEXT_ENCODER:
        return f"it now draws {after.batch} at a time"
    return f"it now works on {after.device}" if after.device != before.device else ""


def _rungs(setting: Setting, machine: Machine, texts: int) -> Iterator[Setting]:
    """Every setting below this one, the nearest first; so many texts share a pass where that begins."""
    below = _next(setting, machine)
    while below is not None:
        if below.component == catalog.TEXT_ENCODER and STREAM == below.strategy != setting.strategy:
            below = replace(below, batch=texts)
        yield below
        setting, below = below, _next(below, machine)


def _next(setting: Setting, machine: Machine) -> Setting | None:
    if setting.speedup > 1:
        return replace(setting, speedup=1.0)
    if setting.batch > 1:
        return replace(setting, batch=setting.batch // 2)
    if setting.tile > min(TILES):
        return replace(setting, tile=max(t for t in TILES if t < setting.tile))
    if setting.component == catalog.UPSCALER and not setting.vae_tiling:
        return replace(setting, vae_tiling=True)
    if setting.strategy == STREAM and setting.resident_bytes:
        grains = setting.resident_bytes // 2 // RESIDENT_GRAIN_BYTES
        return replace(setting, resident_bytes=grains * RESIDENT_GRAIN_BYTES)
    streams = setting.storage in FLOATS and setting.component != catalog.FINISH
    if setting.device == "cpu":
        stays = setting.strategy == RESIDENT
        return replace(setting, strategy=STREAM) if stays and streams else None
    offloads = machine.kind in ("cuda", "xpu") and setting.storage in FLOATS
    if offloads and setting.strategy == RESIDENT and setting.component == catalog.UPSCALER:
        return replace(setting, strategy=MODEL_OFFLOAD)
    if offloads and setting.strategy not in (SEQUENTIAL_OFFLOAD, STREAM):
        return replace(setting, strategy=SEQUENTIAL_OFFLOAD)
    if streams and setting.strategy != STREAM:
        return replace(setting, strategy=STREAM)
    compute = setting.compute if setting.compute != "float16" else cpu_compute_dtype(frozenset())[0]
    storage = compute if setting.storage in FLOATS else setting.storage
    return replace(setting, strategy=RESIDENT, storage=storage, compute=compute, device="cpu")
