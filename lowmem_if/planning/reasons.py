"""Describe in words why a config was chosen, and which one was the runner-up."""

from __future__ import annotations

from collections.abc import Sequence

from lowmem_if.cascade import catalog
from lowmem_if.cascade.lora.adapter import Lora, of_stage
from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.strategies import (
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
)
from lowmem_if.hardware.dtypes import compute_dtype, doubt
from lowmem_if.hardware.machine import INSTALL_BITSANDBYTES, Machine
from lowmem_if.planning.estimates.activations import TEXTS_A_PASS
from lowmem_if.planning.estimates.compile_time import speedup
from lowmem_if.planning.estimates.execution import RAM_STRIPS, STRIPS, ExecutionConfig
from lowmem_if.planning.evaluate import Evaluation
from lowmem_if.request.request import Request
from lowmem_if.units import format_bytes, format_seconds


def reason(
    machine: Machine, request: Request, part: Part, chosen: Evaluation, pin: Pin | None
) -> str:
    """Why a config was chosen, and what a reader should know about it."""
    config = chosen.config
    if config.device == "cpu":
        spare, what = machine.ram_bytes - chosen.estimate.ram_bytes, "RAM"
    else:
        spare, what = machine.vram_bytes - chosen.estimate.vram_bytes, "VRAM"
    words = ["pinned"] if pin else []
    words.append(f"{format_bytes(max(0, spare))} of {what} to spare")
    if config.facts.postprocesses:
        return "on the CPU, where the images are"
    lora = of_stage(request.lora, config.component)
    words += _tiles(config)
    words += _movement(part, config, lora)
    words += _merging(config, lora)
    if config.storage_dtype == "float32" and compute_dtype(machine, part)[1]:
        words.append("small, so float32")
    elif config.storage_dtype in QUANTISED:
        words.append("computes in " + config.compute_dtype)
    words += _missing_package(machine, config)
    if config.device != "cpu" and (known := doubt(machine, config.compute_dtype)):
        words.append(f"{known}: every step is checked")
    return "; ".join([*words, *_compiling(machine, request, config)])


def _missing_package(machine: Machine, config: ExecutionConfig) -> list[str]:
    """The package that would make 8-bit weights possible, if it is missing."""
    may_quantise = config.facts.encodes and machine.kind in ("cuda", "xpu")
    if machine.has_bitsandbytes or not may_quantise:
        return []
    return [f"8-bit weights need bitsandbytes: `{INSTALL_BITSANDBYTES}`"]


def _tiles(config: ExecutionConfig) -> list[str]:
    words = {STRIPS: ["VAE in strips"], RAM_STRIPS: ["VAE in strips from RAM"]}
    tiles = [f"in tiles of {config.tile} pixels"] if config.tile else []
    return words.get(config.decoding, []) + tiles


def _movement(part: Part, config: ExecutionConfig, lora: Sequence[Lora]) -> list[str]:
    """How weights that are not resident are moved."""
    if config.strategy == SEQUENTIAL_OFFLOAD:
        return ["weights are moved leaf by leaf: slow"]
    if config.strategy != STREAM:
        return []
    casts = not lora and _casts_in_every_pass(part, config)
    advice = (
        ["weights are cast in every pass unless you run `fetch --convert bf16`"] if casts else []
    )
    return [_streaming(config), *advice]


def _compiling(machine: Machine, request: Request, config: ExecutionConfig) -> list[str]:
    """Whether a UNet is compiled, if the user asked for it, and why not."""
    if not request.compile or config.component not in catalog.IMAGE_STAGES:
        return []
    if config.speedup > 1:
        return [f"compiled: steps are {config.speedup:g} times as fast"]
    if request.sampling.fast:
        return ["not compiled: passes are left out instead"]
    if speedup(machine, config.component) == 1:
        return ["not compiled: no gain on this device"]
    if config.strategy != RESIDENT:
        return ["not compiled: only resident weights can be"]
    if config.quantises_unet:
        return ["not compiled: 8-bit and 4-bit weights become numbers layer by layer"]
    return ["not compiled: compiling needs more time than it saves, or too much RAM"]


def _merging(config: ExecutionConfig, lora: Sequence[Lora]) -> list[str]:
    if not lora:
        return []
    names = " and ".join(map(str, lora))
    return [f"LoRA {names}, merged with {format_bytes(config.merge_bytes)} of RAM"]


def _streaming(config: ExecutionConfig) -> str:
    """Which layers of a streaming component are read from its file, and how often."""
    if config.facts.encodes:
        more = f" for every {TEXTS_A_PASS} prompts" if config.batch == TEXTS_A_PASS else ""
        return f"layers are read from the file once{more}"
    resident = config.resident_bytes
    others = f"{format_bytes(resident)} resident, other " if resident else ""
    return others + "layers are read from the file in every pass"


def _casts_in_every_pass(part: Part, config: ExecutionConfig) -> bool:
    """Whether a bfloat16 copy of the UNet would save a CPU work; existing copies are not considered."""
    unets = [module for module in part.modules if module.is_unet]
    on_cpu = (config.device, config.storage_dtype) == ("cpu", "bfloat16")
    return on_cpu and any(not unet.is_bfloat16 for unet in unets)


def runner_up(machine: Machine, candidates: list[Evaluation], chosen: Evaluation) -> str:
    """The fastest config that would be chosen with more memory; else the next fastest that fits."""
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
    fitting = [c for c in fitting if _placement(c.config) != _placement(chosen.config)] or fitting
    if not fitting:
        return ""
    best = min(fitting, key=lambda c: c.seconds)
    also = "" if best.seconds > chosen.seconds else "also "
    return f"{_named(machine, best)}: {also}{format_seconds(best.seconds)}"


def _placement(config: ExecutionConfig) -> tuple[str, str, str]:
    return config.strategy, config.storage_dtype, config.device


def _named(machine: Machine, candidate: Evaluation) -> str:
    config = candidate.config
    place = " on the CPU" if config.device == "cpu" != machine.device else ""
    return f"{config}{place}"
