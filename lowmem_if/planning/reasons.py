"""Why a step is as it is, in words, and what would have been taken otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import Part
from lowmem_if.cascade.lora import Lora, of_stage
from lowmem_if.cascade.strategies import (
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
)
from lowmem_if.hardware.dtypes import doubt
from lowmem_if.hardware.machine import INSTALL_BITSANDBYTES, Machine
from lowmem_if.planning.candidates import compute_dtype
from lowmem_if.planning.estimates.compile_time import speedup
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.evaluate import Evaluation
from lowmem_if.request.request import Request
from lowmem_if.units import format_bytes, format_seconds


def reason(
    machine: Machine, request: Request, part: Part, chosen: Evaluation, pin: Pin | None
) -> str:
    """Why a config was chosen, and what is special about it."""
    config = chosen.config
    if config.device == "cpu":
        spare, what = machine.ram_bytes - chosen.estimate.ram_bytes, "RAM"
    else:
        spare, what = machine.vram_bytes - chosen.estimate.vram_bytes, "VRAM"
    words = ["pinned"] if pin else []
    words.append(f"{format_bytes(max(0, spare))} of {what} to spare")
    if config.component == catalog.POSTPROCESS:
        return "on the CPU, where the pictures are"
    lora = of_stage(request.lora, config.component)
    words += _cutting(config)
    words += _moving(part, config, lora)
    words += _merging(config, lora)
    if config.storage_dtype == "float32" and compute_dtype(machine, part)[1]:
        words.append("small, so float32")
    elif config.storage_dtype in QUANTISED:
        words.append("computes in " + config.compute_dtype)
    words += _lacking(machine, config)
    if config.device != "cpu" and (known := doubt(machine, config.compute_dtype)):
        words.append(f"{known}: every step is checked")
    return "; ".join([*words, *_compiling(machine, request, config)])


def _lacking(machine: Machine, config: ExecutionConfig) -> list[str]:
    """What would have been a way to run it if a package were installed."""
    may_quantise = config.component == catalog.TEXT_ENCODER and machine.kind in ("cuda", "xpu")
    if machine.has_bitsandbytes or not may_quantise:
        return []
    return [f"8-bit weights need bitsandbytes: `{INSTALL_BITSANDBYTES}`"]


def _cutting(config: ExecutionConfig) -> list[str]:
    words = ["VAE in tiles"] if config.vae_tiling else []
    return words + ([f"in tiles of {config.tile} pixels"] if config.tile else [])


def _moving(part: Part, config: ExecutionConfig, lora: Sequence[Lora]) -> list[str]:
    """How weights that do not stay come and go."""
    if config.strategy == SEQUENTIAL_OFFLOAD:
        return ["leaves move: slow"]
    if config.strategy != STREAM:
        return []
    casts = not lora and _casts_at_every_pass(part, config)
    again = ["they are cast each time unless `fetch --convert bf16` was run"] if casts else []
    return [_streaming(config), *again]


def _compiling(machine: Machine, request: Request, config: ExecutionConfig) -> list[str]:
    """What comes of the wish to compile."""
    if not request.compile or config.component not in catalog.IMAGE_STAGES:
        return []
    if config.speedup > 1:
        return [f"compiled: steps are {config.speedup:g} times as fast"]
    if speedup(machine, config.component) == 1:
        return ["not compiled: it gains nothing here"]
    if config.strategy != RESIDENT:
        return ["not compiled: weights must stay for that"]
    return ["not compiled: that takes longer than it saves, or too much RAM"]


def _merging(config: ExecutionConfig, lora: Sequence[Lora]) -> list[str]:
    if not lora:
        return []
    names = " and ".join(map(str, lora))
    return [f"LoRA {names}, merged with {format_bytes(config.merge_bytes)} of RAM"]


def _streaming(config: ExecutionConfig) -> str:
    """What of a streaming component comes from its file, and how often."""
    if config.component == catalog.TEXT_ENCODER:
        return "layers come from the file, once"
    stay = f"{format_bytes(config.resident_bytes)} stay, other " if config.resident_bytes else ""
    return stay + "layers come from the file at every pass"


def _casts_at_every_pass(part: Part, config: ExecutionConfig) -> bool:
    """Whether a bfloat16 copy of the UNet would spare a CPU work; if there is one is not looked up."""
    unets = [module for module in part.modules if module.folder == "unet"]
    on_cpu = (config.device, config.storage_dtype) == ("cpu", "bfloat16")
    return on_cpu and any(not unet.is_bfloat16 for unet in unets)


def runner_up(machine: Machine, candidates: list[Evaluation], chosen: Evaluation) -> str:
    """What would have been taken with more room, the quickest of it; else the next quickest."""
    others = [c for c in candidates if str(c.config) != str(chosen.config)]
    before = candidates.index(chosen)
    preferred = [
        candidate
        for place, candidate in enumerate(candidates)
        if candidate in others
        and candidate.short
        and (candidate.seconds, place) < (chosen.seconds, before)
    ]
    if preferred:
        best = min(preferred, key=lambda c: c.seconds)
        assert best.short is not None
        resource, needed, available = best.short
        return (
            f"{_named(machine, best)}: {format_seconds(best.seconds)}, but needs "
            f"{format_bytes(needed)} of {resource}, {format_bytes(available)} available"
        )
    fitting = [c for c in others if c.short is None]
    fitting = [c for c in fitting if _way(c.config) != _way(chosen.config)] or fitting
    if not fitting:
        return ""
    best = min(fitting, key=lambda c: c.seconds)
    slower = best.seconds > chosen.seconds
    return f"{_named(machine, best)}: {format_seconds(best.seconds)}" + ("" if slower else ", too")


def _way(config: ExecutionConfig) -> tuple[str, str, str]:
    return config.strategy, config.storage_dtype, config.device


def _named(machine: Machine, candidate: Evaluation) -> str:
    config = candidate.config
    place = " on the CPU" if config.device == "cpu" != machine.device else ""
    return f"{config}{place}"
