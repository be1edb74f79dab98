"""List the configs that a component could run under, fastest and simplest first; they may not fit."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.lora.adapter import merge_bytes_of, of_stage
from lowmem_if.cascade.parts import Part
from lowmem_if.cascade.strategies import (
    BALANCED,
    FAITHFUL,
    FLOATS,
    MODEL_OFFLOAD,
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
    Pin,
    allows,
)
from lowmem_if.errors import CheckpointError, DeviceError, MissingPackage, RequestError
from lowmem_if.hardware.dtypes import compute_dtype
from lowmem_if.hardware.machine import INSTALL_BITSANDBYTES, Machine
from lowmem_if.planning.estimates.activations import texts_together
from lowmem_if.planning.estimates.compile_time import speedup
from lowmem_if.planning.estimates.execution import RAM_STRIPS, STRIPS, WHOLE, ExecutionConfig
from lowmem_if.planning.estimates.memory_layout import CONTIGUOUS, layout_of
from lowmem_if.planning.estimates.weight_bytes import bytes_a_pass, resident_choices
from lowmem_if.planning.estimates.workload import images_of, workloads_of
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.input_tiles import TILES, UPSCALER_SIDE, WHOLE_AREA, aligned
from lowmem_if.request.request import Request

_MAX_BATCH = 8


def configs_for(
    machine: Machine,
    request: Request,
    location: Location,
    component: str,
    prefer: str,
    pin: Pin | None,
) -> list[ExecutionConfig]:
    """Every config of a component to evaluate for a request, best first.

    Raises:
        RequestError, DeviceError: the component or this device does not support the pin.
        MissingPackage: the pin or the only files need bitsandbytes, and it is not installed.
        CheckpointError: the pin asks for weights that a local cascade does not contain.
    """
    specs = images_of(request, component)
    configs = _placements(machine, location, component, prefer=prefer, pin=pin, images=len(specs))
    if catalog.facts(component).encodes:
        (workload,) = workloads_of(request, location.cascade, component)
        return _batched(configs, workload.texts)
    configs = _sized(configs, component, specs)
    if merging := merge_bytes_of(of_stage(request.lora, component)):
        if any(config.quantises_unet and config.strategy == STREAM for config in configs):
            raise RequestError(
                f"a LoRA cannot be merged into 8-bit weights that stream: pin {component}="
                "resident:int8, or stream another type"
            )
        configs = [replace(config, merge_bytes=merging) for config in configs]
    # Shapes and calls of a compiled UNet are fixed, and `fast` changes both.
    compiles = request.compile and not request.sampling.fast
    return configs + (_compiled(machine, configs) if compiles else [])


def pins_of(machine: Machine, component: str, storage: str, prefer: str) -> list[Pin]:
    """Every way to keep a component's weights in one number type, best first."""
    pairs = _pairs(machine, component, storage, prefer, small=True)
    return [Pin(strategy, storage) for strategy, _storage in pairs]


def _compiled(machine: Machine, configs: list[ExecutionConfig]) -> list[ExecutionConfig]:
    """The configs with a resident UNet, with compiling: weights must not move for that."""
    gains = {component: speedup(machine, component) for component in catalog.IMAGE_STAGES}
    return [
        replace(config, speedup=gains[config.component], layout=CONTIGUOUS)
        for config in configs
        if config.strategy == RESIDENT
        and not config.quantises_unet
        and gains.get(config.component, 1) > 1
    ]


def _batched(configs: list[ExecutionConfig], texts: int) -> list[ExecutionConfig]:
    """The configs with the number of prompts that a streaming encoder processes per pass."""
    together = texts_together(texts)
    return [replace(c, batch=together) if c.strategy == STREAM else c for c in configs]


def _sized(
    configs: list[ExecutionConfig], component: str, specs: list[ImageSpec]
) -> list[ExecutionConfig]:
    """The configs with the area of the largest image, and tiles for the user's own images."""
    area = max((spec.area_in(component) for spec in specs), default=1.0)
    if area != 1.0:
        configs = [replace(config, area=area) for config in configs]
    own = [spec for spec in specs if spec.is_enlarged_as_it_is]
    if not (catalog.facts(component).decodes and own):
        return configs
    others = max((spec.area for spec in specs if not spec.is_enlarged_as_it_is), default=0.0)
    least = ceil(UPSCALER_SIDE * others**0.5)  # memory must suffice for images that are never tiled
    sides = [side for side in TILES if side >= least] or [aligned(least)]
    sides = [0, *sides] if area <= WHOLE_AREA else sides
    return [replace(config, tile=side) for side in sides for config in configs]


def _placements(
    machine: Machine,
    location: Location,
    component: str,
    *,
    prefer: str,
    pin: Pin | None,
    images: int,
) -> list[ExecutionConfig]:
    """Where its weights could be kept and in which types, for any request; never empty."""
    if catalog.facts(component).postprocesses:
        return _postprocess_configs(component, pin)
    part = location.cascade.parts[component]
    compute, small = compute_dtype(machine, part)
    pairs = _pinned_pairs(machine, component, compute, pin) or _pairs(
        machine, component, compute, prefer, small=small
    )
    configs = [
        ExecutionConfig(
            component,
            strategy,
            storage,
            _compute_for(storage, compute),
            batch,
            machine.device,
            decoding,
            layout=layout_of(component, machine.device, prefer),
        )
        for strategy, storage in pairs
        for decoding in decodings(machine, component, prefer)
        for batch in _batches(component, prefer, images)
    ]
    streams = [config for config in configs if config.strategy == STREAM]
    configs = [config for config in configs if config.strategy != STREAM]
    configs += _with_residents(streams, part, images)
    encodes = catalog.facts(component).encodes
    if machine.kind == "mps" and encodes and pin and pin.storage in QUANTISED:
        # bitsandbytes' int8 does not run on Apple GPUs; their memory is unified, so the CPU computes.
        configs = [replace(c, device="cpu", compute_dtype="float32") for c in configs]
    if encodes and machine.kind != "cpu" and not pin:
        # One pass on the CPU takes seconds; cards that are too small for the encoder then suffice.
        if machine.has_bitsandbytes:
            configs.append(ExecutionConfig(component, RESIDENT, "int8", "float32", 1, "cpu"))
        configs.append(ExecutionConfig(component, STREAM, "float32", "float32", 1, "cpu"))
    return _allowed_by_files(configs, location, pin, has_bitsandbytes=machine.has_bitsandbytes)


def _with_residents(
    streams: list[ExecutionConfig], part: Part, images: int
) -> list[ExecutionConfig]:
    """Streaming configs with every resident share, sorted by the bytes that they transfer.

    Configs that decode in strips are the last. A larger batch saves passes and a larger resident share
    saves bytes per pass. Both need the same memory, so neither alone measures speed. How much of the
    file remains in the page cache is not known here.
    """

    def transferred(config: ExecutionConfig) -> tuple[bool, float]:
        return config.decoding != WHOLE, -(-images // config.batch) * bytes_a_pass(part, config)

    return sorted(
        (
            replace(config, resident_bytes=resident)
            for config in streams
            for resident in resident_choices(part, config)
        ),
        key=transferred,
    )


def _allowed_by_files(
    configs: list[ExecutionConfig], location: Location, pin: Pin | None, *, has_bitsandbytes: bool
) -> list[ExecutionConfig]:
    """The configs that a local cascade has files for; it may contain only an 8-bit text encoder."""
    first = configs[0]
    published = location.cascade.parts[first.component].repository is not None
    if published or not first.facts.encodes:
        return configs
    allowed = [c for c in configs if location.folder(first.component, storage=c.storage_dtype)]
    if allowed or pin in (None, Pin(RESIDENT)):
        if not allowed and not has_bitsandbytes:
            raise _lacks_bitsandbytes(f"{location.cascade.name} has only 8-bit weights")
        return allowed or [replace(first, storage_dtype="int8", strategy=RESIDENT)]
    raise CheckpointError(
        f"{location.cascade.name} has no {first.component} files for {first.storage_dtype}, "
        f"only 8-bit ones: pin {first.component}=resident:int8"
    )


def _postprocess_configs(component: str, pin: Pin | None) -> list[ExecutionConfig]:
    """The safety checker and the watermark run on the CPU: they are small, and the images are there."""
    if pin and (pin.strategy != RESIDENT or pin.storage not in (None, "float32")):
        raise RequestError(
            "postprocess runs on the CPU: pin it to resident:float32, or remove the pin"
        )
    return [ExecutionConfig(component, RESIDENT, "float32", "float32", 1, "cpu")]


def _compute_for(storage: str, compute: str) -> str:
    """The compute dtype for a storage dtype: floats keep theirs, quantised weights use the machine's."""
    return storage if storage in FLOATS else compute


def _pinned_pairs(
    machine: Machine, component: str, compute: str, pin: Pin | None
) -> list[tuple[str, str]]:
    """The (strategy, storage dtype) of a pin; empty without a pin."""
    if pin is None:
        return []
    if machine.kind == "cpu" and pin.strategy not in (RESIDENT, STREAM):
        raise DeviceError(
            f"{pin.strategy} moves weights to an accelerator, and this machine has none: "
            f"pin {component}=resident or {component}=stream, or remove the pin"
        )
    if machine.kind == "cpu" and pin.storage == "float16":
        raise DeviceError(
            "float16 is about 400 times slower than bfloat16 on a CPU: "
            f"pin {component}={pin.strategy}:bfloat16 or :float32"
        )
    if pin.storage in QUANTISED and catalog.facts(component).encodes:
        _check_quantised_encoder(machine, component, pin)
    return [(pin.strategy, pin.storage or compute)]


def _check_quantised_encoder(machine: Machine, component: str, pin: Pin) -> None:
    """Raise an error unless bitsandbytes can keep the text encoder as the pin says."""
    if not machine.has_bitsandbytes:
        raise _lacks_bitsandbytes(f"{component}={pin} is pinned")
    if pin.storage == "int8" and machine.kind != "mps" and not machine.multiplies_int8:
        raise DeviceError(
            f"{machine.device_name} cannot multiply int8: "
            f"pin {component}=resident:nf4, or remove the pin"
        )


def _lacks_bitsandbytes(what: str) -> MissingPackage:
    return MissingPackage(
        f"{what}, and 8-bit and 4-bit weights need bitsandbytes, which is not installed: "
        f"run `{INSTALL_BITSANDBYTES}`"
    )


def _pairs(
    machine: Machine, component: str, compute: str, prefer: str, *, small: bool
) -> list[tuple[str, str]]:
    """(strategy, storage dtype) in order: first the exact and fast ones, then those that save memory."""
    pairs = [(RESIDENT, compute)]
    facts = catalog.facts(component)
    offloads = machine.kind in ("cuda", "xpu")
    if facts.encodes and not small:
        eight_bit = [(RESIDENT, "int8")] if machine.multiplies_int8 else []
        four_bit = machine.kind != "mps" and machine.has_bitsandbytes
        quantised = [*eight_bit, (RESIDENT, "nf4")] if four_bit else []
        if offloads:
            # IF's low-memory recipe has always used the 8-bit encoder on a GPU.
            pairs = [*(quantised if allows(prefer, BALANCED) else eight_bit), *pairs]
        elif allows(prefer, BALANCED):
            pairs += quantised
    if facts.draws and not small and allows(prefer, BALANCED):
        pairs.append((RESIDENT, "int8"))
    if offloads and len(facts.networks) > 1:
        pairs.append((MODEL_OFFLOAD, compute))
    if offloads:
        pairs.append((SEQUENTIAL_OFFLOAD, compute))
    return [*pairs, (STREAM, compute)]


def decodings(machine: Machine, component: str, prefer: str) -> tuple[str, ...]:
    """How the VAE may decode: strips save memory and only round otherwise.

    With an accelerator, RAM may keep what strips are cut from, unless both are one memory.
    """
    if not (catalog.facts(component).decodes and allows(prefer, FAITHFUL)):
        return (WHOLE,)
    separate = machine.kind != "cpu" and not machine.unified
    return (WHOLE, STRIPS, RAM_STRIPS) if separate else (WHOLE, STRIPS)


def _batches(component: str, prefer: str, images: int) -> list[int]:
    """Batch sizes to try: one image at a time is exact; larger batches save passes but change rounding.

    Prompts are always encoded one at a time, so that every run can reuse an embedding.
    """
    if not allows(prefer, FAITHFUL) or catalog.facts(component).encodes:
        return [1]
    return [batch for batch in (_MAX_BATCH, 4, 2) if batch <= images] + [1]
