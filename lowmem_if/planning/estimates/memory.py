"""Peak memory of a component under a config, predicted without torch.

The memory table (`memory_table.py`) holds whole steps of the published components on an accelerator,
with hooks and allocator. A step that it lacks is composed from the passes of its networks
(`activations.py`) and their weights (`weight_bytes.py`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.strategies import FLOATS, MODEL_OFFLOAD, RESIDENT, STRATEGIES, STREAM
from lowmem_if.planning.estimates.activations import (
    activation_bytes,
    cpu_working_bytes,
    result_bytes,
    waiting_bytes,
)
from lowmem_if.planning.estimates.execution import WHOLE, Estimate, ExecutionConfig
from lowmem_if.planning.estimates.memory_table import StepProfile, look_up_step
from lowmem_if.planning.estimates.pass_lookup import attention_of, pass_of
from lowmem_if.planning.estimates.strip_memory import ram_bytes
from lowmem_if.planning.estimates.weight_bytes import (
    ALLOCATOR_ROUNDING,
    STAGING_RAM_BYTES,
    in_place_bytes,
    layer_bytes,
    module_bytes,
    pinned_bytes,
    upcast_bytes,
)

PROCESS_RAM_BYTES = 400_000_000
"""Anonymous memory of the worker before a component loads: interpreter, torch, diffusers (measured)."""

ACCELERATOR_RAM_BYTES = 700_000_000
"""Host memory that the first use of an accelerator adds: driver, kernels, staging."""

COMPILER_RAM_BYTES = 600_000_000
"""What compiling adds: 0.1 GB in the process, and the C++ compiler's own memory (docs/log.md)."""

RAM_SAFETY_BYTES = 300_000_000
VRAM_WORKSPACE_BYTES = 300_000_000
"""cuBLAS and cuDNN workspaces, which no dry run sees."""
VRAM_SAFETY_BYTES = 300_000_000

_UNUSED_SHARE = 1.6
"""What torch's allocator reserves and cannot use, since its free blocks are too small, over the
activations: for steps that the table lacks. The table's steps of stage 2 and of the upscaler (float16,
fused attention) have 0.9 to 1.6."""


def headroom(device: str) -> tuple[int, int]:
    """Bytes to leave free of (VRAM, RAM): workspaces that no prediction sees, and safety."""
    vram = 0 if device == "cpu" else VRAM_WORKSPACE_BYTES + VRAM_SAFETY_BYTES
    return vram, RAM_SAFETY_BYTES


def predict(part: Part, config: ExecutionConfig, *, reserve: bool = False) -> Estimate:
    """Peak bytes of one component under one config.

    Args:
        reserve: count all that torch's allocator holds from the driver, not only what is in use.
    """
    simulated = _as_simulated(config)
    plain = _predict(part, simulated, _REMEMBERED.get((part, simulated)))
    if reserve and config.device != "cpu":
        unused = _unused_bytes(part, simulated)
        plain = replace(plain, vram_bytes=plain.vram_bytes + unused)
    more = config.merge_bytes + (COMPILER_RAM_BYTES if config.speedup > 1 else 0)
    return replace(plain, ram_bytes=plain.ram_bytes + more) if more else plain


_REMEMBERED: dict[tuple[Part, ExecutionConfig], tuple[int, int, int]] = {}
"""Dry runs of this process: VRAM in use, VRAM reserved by the allocator, host memory."""


def remember(
    part: Part, config: ExecutionConfig, *, vram_bytes: int, reserved_bytes: int, host_bytes: int
) -> None:
    """From now on predict this config as a dry run found it.

    Args:
        vram_bytes, reserved_bytes: in use on the accelerator, and reserved by torch's allocator.
        host_bytes: host memory in addition to the process.
    """
    _REMEMBERED[part, _as_simulated(config)] = vram_bytes, reserved_bytes, host_bytes


def is_simulated(part: Part, config: ExecutionConfig) -> bool:
    """Whether a dry run has covered this very config."""
    config = _as_simulated(config)
    plain = config.at_once == 1 and not config.resident_bytes and config.drawn_area == 1
    plain = plain and config.decoding == WHOLE
    return (part, config) in _REMEMBERED or (plain and config.strategy in _profiles(part, config))


def _as_simulated(config: ExecutionConfig) -> ExecutionConfig:
    """The config that dry runs and the table know: nothing is merged or compiled there."""
    if not config.merge_bytes and config.speedup == 1.0:
        return config
    return replace(config, merge_bytes=0, speedup=1.0)


@lru_cache(maxsize=1024)  # the search for requests that fit asks for the same ones again and again
def _predict(
    part: Part, config: ExecutionConfig, remembered: tuple[int, int, int] | None
) -> Estimate:
    read = part.read_bytes(config.storage_dtype)
    if config.device == "cpu":
        ram = (
            PROCESS_RAM_BYTES
            + in_place_bytes(part, config)
            + upcast_bytes(part, config)
            + max(cpu_working_bytes(module, config) for module in part.modules)
            + waiting_bytes(config)
            + result_bytes(config)
        )
        return Estimate(0, ram, read)
    vram, host = _simulated(part, config, remembered) or _composed(part, config)
    host += PROCESS_RAM_BYTES + ACCELERATOR_RAM_BYTES + result_bytes(config)
    host += sum(ram_bytes(module, config) for module in part.modules if module.is_vae)
    return Estimate(vram + waiting_bytes(config), host, read)


def _profiles(part: Part, config: ExecutionConfig) -> dict[str, StepProfile]:
    """The table's steps by strategy; none if one that others are compared with is missing."""
    profiles = {
        strategy: look_up_step(
            part, config.component, strategy, config.storage_dtype,
            attention=attention_of(config.device),
        )
        for strategy in (STRATEGIES if config.storage_dtype in FLOATS else (RESIDENT,))
    }  # fmt: skip
    known = {strategy: profile for strategy, profile in profiles.items() if profile is not None}
    return known if profiles.keys() - known.keys() <= {STREAM} else {}


def _simulated(
    part: Part, config: ExecutionConfig, remembered: tuple[int, int, int] | None
) -> tuple[int, int] | None:
    """(VRAM, host memory in addition to the process) of a step that a dry run has covered."""
    if remembered:
        vram, _reserved, host = remembered
        return vram, host
    if config.drawn_area != 1:
        return None  # the table is about squares, drawn as a whole
    profiles = _profiles(part, config)
    if config.strategy not in profiles:
        return None
    own, resident = profiles[config.strategy], profiles[RESIDENT]
    vram = _profile_bytes(part, config, own)
    if config.strategy == STREAM:
        least = in_place_bytes(part, replace(config, resident_bytes=0))
        kept = in_place_bytes(part, config) - least
        vram = min(_profile_bytes(part, config, resident), vram + kept)
    return vram, own.anonymous_bytes + own.pinned_bytes


def _unused_bytes(part: Part, config: ExecutionConfig) -> int:
    """What torch's allocator reserves at most, beyond what is in use at most.

    It is assumed to grow like the activations, whose blocks leave the gaps.
    """
    if (part, config) in _REMEMBERED:
        vram, reserved, _host = _REMEMBERED[part, config]
        return reserved - vram
    share, profile = _UNUSED_SHARE, _profiles(part, config).get(config.strategy)
    if profile is not None:
        single = replace(config, batch=1, area=1.0, tile=0, decoding=WHOLE)
        unused = profile.reserved_bytes - _profile_bytes(part, single, profile)
        share = unused / max(activation_bytes(module, single) for module in part.modules)
    return round(share * max(activation_bytes(module, config) for module in part.modules))


def _profile_bytes(part: Part, config: ExecutionConfig, profile: StepProfile) -> int:
    """The peak of a step with the config's batch: further images add to it linearly."""
    rows = {module.folder: pass_of(module, config) for module in part.modules}
    more = {folder: row.more_bytes if row else 0 for folder, row in rows.items()}
    others = config.at_once - 1
    decoding = profile.decoding_bytes + others * more.pop("vae", 0)
    decoding -= _saved_by_strips(part, config)
    drawing = profile.drawing_bytes + others * max(more.values())
    return max(profile.loading_bytes, drawing, decoding)


def _saved_by_strips(part: Part, config: ExecutionConfig) -> int:
    """What strips save of the peak of decoding, which the table knows for the whole decoder only."""
    if config.decoding == WHOLE:
        return 0
    whole = replace(config, decoding=WHOLE, batch=1)
    decoders = [module for module in part.modules if module.is_vae]
    return sum(activation_bytes(m, whole) - activation_bytes(m, config) for m in decoders)


def _composed(part: Part, config: ExecutionConfig) -> tuple[int, int]:
    """(VRAM, host memory in addition to the process) of a step, from its networks."""
    weights, upcast = in_place_bytes(part, config), upcast_bytes(part, config)
    activations = {module.folder: activation_bytes(module, config) for module in part.modules}
    if config.strategy in (RESIDENT, STREAM):
        vram = int(ALLOCATOR_ROUNDING * (weights + upcast + max(activations.values())))
        resident = _profiles(part, config).get(RESIDENT)
        if resident and config.drawn_area == 1:
            vram = min(vram, _profile_bytes(part, config, resident))
        return vram, pinned_bytes(part) if config.strategy == STREAM else STAGING_RAM_BYTES
    measure = module_bytes if config.strategy == MODEL_OFFLOAD else layer_bytes
    held = {module.folder: measure(module, config) for module in part.modules}
    if config.strategy == MODEL_OFFLOAD and "vae" in held:
        held["vae"] += upcast
    peak = max(held[folder] + activations[folder] for folder in activations)
    return int(ALLOCATOR_ROUNDING * peak), weights
