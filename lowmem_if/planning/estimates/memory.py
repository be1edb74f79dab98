"""Bytes that a component takes under a strategy: weights from its headers, the rest from dry runs.

On an accelerator the shipped table (`footprint_table.py`) knows whole turns of the published components,
hooks and allocator included; of a turn that it lacks, the passes of its networks are put together; and
for a network that it lacks, too, activations are taken to grow with width x pixels x number size x batch
like those of its largest published relative. On a CPU factors are measured ones, since heap and oneDNN
take more than tensors do.
"""

from __future__ import annotations

from dataclasses import replace

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import Module, Part, Weights
from lowmem_if.cascade.strategies import (
    FLOATS,
    MODEL_OFFLOAD,
    QUANTISED,
    RESIDENT,
    STRATEGIES,
    STREAM,
)
from lowmem_if.cascade.transfer_sizes import (
    LEAST_WINDOW_BYTES,
    STAGING_BUFFERS,
    STAGING_BYTES,
    WINDOW_UNITS,
)
from lowmem_if.planning.estimates.execution import Estimate, ExecutionConfig
from lowmem_if.planning.estimates.memory_table import (
    FUSED,
    MATH,
    PassProfile,
    StepProfile,
    look_up,
    look_up_step,
)

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

PROCESS_RAM_BYTES = 400_000_000
"""Anonymous memory of the worker before a component loads: interpreter, torch, diffusers (measured)."""

ACCELERATOR_RAM_BYTES = 700_000_000
"""Host memory that the first use of an accelerator adds: driver, kernels, staging."""

COMPILER_RAM_BYTES = 600_000_000
"""What compiling adds: 0.1 GB stay in the process, and the C++ compiler has its own (docs/log.md)."""

RAM_SAFETY_BYTES = 300_000_000
VRAM_WORKSPACE_BYTES = 300_000_000
"""cuBLAS and cuDNN workspaces, which no dry run sees."""
VRAM_SAFETY_BYTES = 300_000_000

_UNUSED_SHARE = 1.6
"""Of the activations, what torch's allocator holds beside them and cannot use, since its free blocks are
too small: for turns that the table lacks. In the table's rows of stage 2 and of the upscaler (float16,
fused attention) it is 0.9 to 1.6."""

_LARGEST_LAYER = 0.04
"""Of a module's bytes, where the table does not know its largest layer (I-XL 3.3 %, T5-XXL 2.8 %)."""

_ALLOCATOR = 1.015
"""torch's allocator counts rests of blocks that it does not split: up to 1.2 % in dry runs."""

_PINNED_BYTES = STAGING_BUFFERS * STAGING_BYTES
"""The two buffers of loading to an accelerator (`files/staging.py`), for each streaming network."""

_BLOCK_WINDOW, _CLIP_WINDOW = 0.082, 0.31
"""Of a text encoder, room for what streams: of T5-XXL for two of its 24 blocks, of the upscaler's CLIP
for its embedding and the next layer. Of other networks there is room for two of the largest layers."""

RESIDENT_GRAIN_BYTES = 10**8
"""What of a streaming network stays is told to a tenth of a GB, and chosen no finer."""

_RESIDENT_SHARES = tuple(eighths / 8 for eighths in range(8))

_TEXT_ACTIVATION_BYTES = 25_000_000
"""For one prompt of 77 tokens through T5-XXL."""

TEXTS_A_PASS = 256
"""Prompts that go through a text encoder together while its weights stream by."""

_TEXT_NUMBERS = 77 * 4096
"""Of the hidden states of each, T5-XXL's, between the blocks."""

_STATE_BYTES = {"float16": 4, "bfloat16": 2, "float32": 4}
"""Bytes of each number of these states: beside float16 transformers keeps them in float32."""

_SMALL_ACTIVATION_BYTES = 50_000_000
"""Of the safety checker and the picture it looks at."""

_RESULT_BYTES = 3 * 3 * 4 * 1024**2
"""Three copies of a square picture's float32 numbers."""

_HEAP_SLACK, _CPU_VAE_SLACK = 1.15, 1.3
"""A CPU run's anonymous memory over its activations' bytes: freed ones stay in the heap for a while, if
weights do not stream, and oneDNN's convolutions of 1024 pixels have scratch memory of their own."""

_CPU_LAYERS, _CPU_STREAMED_LAYERS = 2.6, 1.75
"""Largest layers of a UNet that a CPU holds once more, since oneDNN orders weights anew at every call;
where weights stream the heap gives freed memory back. With all these I-M, I-L, I-XL, II-M, II-L and x4
come out 0.94 to 1.09 times what was measured (bench/RESULTS.md)."""

_UNET_FACTOR = {catalog.STAGE_1: 30.2, catalog.STAGE_2: 28.1, catalog.UPSCALER: 30.6}
"""Of a guided picture in the dry runs of I-XL (173,918,976 bytes in 16 bits), II-L (587,612,800) and the
x4 UNet (1,023,419,392)."""

_VAE_FACTOR, _VAE_SIDE = 6.0, 1024
_VAE_TILED_SIDE = 256
"""diffusers tiles a picture of any size into pieces of 64 latents, 256 pixels."""


def texts_together(texts: int) -> int:
    """Of so many texts those that share a pass over an encoder that streams."""
    return max(1, min(texts, TEXTS_A_PASS))


def stored_bytes(weights: Weights, storage: str, compute: str) -> int:
    """What a module's weights take in memory, by number type.

    transformers keeps T5's `wo` in float32 beside float16 and int8 (`_keep_in_fp32_modules`), but not
    beside bfloat16. int8 adds one float32 scale a row, nf4 one float32 scale for 64 numbers.
    """
    rest = ITEM_BYTES[compute if storage in QUANTISED else storage]
    kept = 2 if "bfloat16" in (storage, compute) and storage != "float32" else 4
    linear = {
        "int8": weights.linear + 4 * weights.linear_rows,
        "nf4": weights.linear // 2 + 4 * weights.linear // 64,
    }.get(storage, rest * weights.linear)
    return linear + kept * weights.kept + rest * weights.other


def in_place_bytes(part: Part, config: ExecutionConfig) -> int:
    """What a component's weights take once it has loaded; of a streaming one, what is in place."""
    modules = {
        m.folder: stored_bytes(m.weights, config.storage_dtype, config.compute_dtype)
        for m in part.modules
    }
    if config.strategy == STREAM:
        return _streamed_weights(part, modules, config)
    return sum(modules.values())


def at_rest(part: Part, config: ExecutionConfig) -> tuple[int, int]:
    """(VRAM, RAM) that a component takes while it is loaded and does nothing."""
    weights = in_place_bytes(part, config)
    if config.storage_dtype == "bfloat16":
        weights += _upcast_bytes(part, config)  # for good; from float16 only while it decodes
    if config.device == "cpu":
        return 0, weights
    if config.strategy in (RESIDENT, STREAM):
        return int(_ALLOCATOR * weights), _pinned_bytes(part) if config.strategy == STREAM else 0
    # A pipeline sends its networks back to RAM at its end, but a text encoder works without one.
    stays = config.strategy == MODEL_OFFLOAD and config.component == catalog.TEXT_ENCODER
    return weights if stays else 0, weights


def predict(part: Part, config: ExecutionConfig, *, reserve: bool = False) -> Estimate:
    """Peak bytes of one component under one config.

    Args:
        reserve: count all that torch's allocator holds from the driver, not only what is in use.
    """
    plain = _predict(part, _as_simulated(config))
    if reserve and config.device != "cpu":
        unused = _unused_bytes(part, _as_simulated(config))
        plain = replace(plain, vram_bytes=plain.vram_bytes + unused)
    compiler = COMPILER_RAM_BYTES if config.speedup > 1 else 0
    return replace(plain, ram_bytes=plain.ram_bytes + config.merge_bytes + compiler)


def _as_simulated(config: ExecutionConfig) -> ExecutionConfig:
    """The config that dry runs and the table know: nothing is merged or compiled there."""
    return replace(config, merge_bytes=0, speedup=1.0)


def _predict(part: Part, config: ExecutionConfig) -> Estimate:
    modules = {
        m.folder: stored_bytes(m.weights, config.storage_dtype, config.compute_dtype)
        for m in part.modules
    }
    activations = {m.folder: _activation_bytes(m, config) for m in part.modules}
    weights = in_place_bytes(part, config)
    read = part.eight_bit_file_bytes if config.storage_dtype == "int8" else 0
    read = read or sum(module.file_bytes for module in part.modules)
    if config.device == "cpu":
        ram = (
            PROCESS_RAM_BYTES
            + weights
            + _upcast_bytes(part, config)
            + max(_cpu_working_bytes(m, activations[m.folder], config) for m in part.modules)
            + _waiting_bytes(config)
            + _result_bytes(config)
        )
        return Estimate(0, ram, read)
    vram, host = _simulated(part, config) or _put_together(part, config, modules, activations)
    vram += _waiting_bytes(config)
    host += PROCESS_RAM_BYTES + ACCELERATOR_RAM_BYTES + _result_bytes(config)
    return Estimate(vram, host, read)


def attention_of(device: str) -> str:
    """The attention kernel that torch takes there: Apple's multiplies the whole table of weights."""
    return MATH if device.startswith("mps") else FUSED


_REMEMBERED: dict[tuple[Part, ExecutionConfig], tuple[int, int, int]] = {}
"""What was simulated since this process began: VRAM in use, VRAM held by the allocator, host memory."""


def remember(
    part: Part, config: ExecutionConfig, *, vram_bytes: int, reserved_bytes: int, host_bytes: int
) -> None:
    """From now on predict this config as a dry run found it.

    Args:
        vram_bytes, reserved_bytes: on the accelerator in use, and held by torch's allocator.
        host_bytes: in host memory beside the process.
    """
    _REMEMBERED[part, _as_simulated(config)] = vram_bytes, reserved_bytes, host_bytes


def is_simulated(part: Part, config: ExecutionConfig) -> bool:
    """Whether a dry run has seen this very config."""
    config = _as_simulated(config)
    plain = config.at_once == 1 and not config.resident_bytes and config.drawn_area == 1
    return (part, config) in _REMEMBERED or (plain and config.strategy in _turns(part, config))


def _turns(part: Part, config: ExecutionConfig) -> dict[str, StepProfile]:
    """The table's turns by strategy; none if one that others are compared with is not there."""
    turns = {
        strategy: look_up_step(
            part, config.component, strategy, config.storage_dtype,
            attention=attention_of(config.device), tiled=config.vae_tiling,
        )
        for strategy in (STRATEGIES if config.storage_dtype in FLOATS else (RESIDENT,))
    }  # fmt: skip
    known = {strategy: turn for strategy, turn in turns.items() if turn is not None}
    return known if turns.keys() - known.keys() <= {STREAM} else {}


def _simulated(part: Part, config: ExecutionConfig) -> tuple[int, int] | None:
    """(VRAM, host memory beside the process) of a turn that a dry run has seen."""
    if (part, config) in _REMEMBERED:
        vram, _reserved, host = _REMEMBERED[part, config]
        return vram, host
    if config.drawn_area != 1:
        return None  # the table is of squares, drawn as a whole
    turns = _turns(part, config)
    if config.strategy not in turns:
        return None
    its, resident = turns[config.strategy], turns[RESIDENT]
    vram = _turn_bytes(part, config, its)
    if config.strategy == STREAM:
        nothing = replace(config, resident_bytes=0)
        stays = in_place_bytes(part, config) - in_place_bytes(part, nothing)
        vram = min(_turn_bytes(part, config, resident), vram + stays)
    return vram, its.anonymous_bytes + its.pinned_bytes


def _unused_bytes(part: Part, config: ExecutionConfig) -> int:
    """What torch's allocator holds from the driver at most, beyond what is in use at most.

    It is taken to grow like the activations, whose blocks leave the gaps.
    """
    if (part, config) in _REMEMBERED:
        vram, reserved, _host = _REMEMBERED[part, config]
        return reserved - vram
    share, turn = _UNUSED_SHARE, _turns(part, config).get(config.strategy)
    if turn is not None:
        its = replace(config, batch=1, area=1.0, tile=0)
        unused = turn.reserved_bytes - _turn_bytes(part, its, turn)
        share = unused / max(_activation_bytes(module, its) for module in part.modules)
    return round(share * max(_activation_bytes(module, config) for module in part.modules))


def _turn_bytes(part: Part, config: ExecutionConfig, turn: StepProfile) -> int:
    """The peak of a turn with the config's batch: what further pictures add is linear."""
    rows = {module.folder: _pass_of(module, config) for module in part.modules}
    more = {folder: row.more_bytes if row else 0 for folder, row in rows.items()}
    others = config.at_once - 1
    decoding = turn.decoding_bytes + others * more.pop("vae", 0)
    return max(turn.loading_bytes, turn.drawing_bytes + others * max(more.values()), decoding)


def _put_together(
    part: Part, config: ExecutionConfig, modules: dict[str, int], activations: dict[str, int]
) -> tuple[int, int]:
    """(VRAM, host memory beside the process) of a turn, from its networks."""
    weights, upcast = in_place_bytes(part, config), _upcast_bytes(part, config)
    if config.strategy in (RESIDENT, STREAM):
        vram = int(_ALLOCATOR * (weights + upcast + max(activations.values())))
        resident = _turns(part, config).get(RESIDENT)
        if resident and config.drawn_area == 1:
            vram = min(vram, _turn_bytes(part, config, resident))
        return vram, _pinned_bytes(part) if config.strategy == STREAM else _PINNED_BYTES
    sizes = modules | {"vae": modules.get("vae", 0) + upcast}
    layers = {module.folder: _layer_bytes(module, config) for module in part.modules}
    held = sizes if config.strategy == MODEL_OFFLOAD else layers
    return int(_ALLOCATOR * max(held[name] + activations[name] for name in activations)), weights


def _pinned_bytes(part: Part) -> int:
    return len(part.modules) * _PINNED_BYTES


def _layer_bytes(module: Module, config: ExecutionConfig) -> int:
    row = _pass_of(module, config)
    if row is not None:
        return row.largest_layer_bytes
    return int(
        _LARGEST_LAYER * stored_bytes(module.weights, config.storage_dtype, config.compute_dtype)
    )


def _pass_of(module: Module, config: ExecutionConfig) -> PassProfile | None:
    """The table's row of a network in the type that it computes in."""
    item = ITEM_BYTES[
        "float32" if module.folder == "vae" or module.weights.kept else config.compute_dtype
    ]
    return look_up(
        module,
        item_bytes=item,
        attention=attention_of(config.device),
        tiled=config.vae_tiling and module.folder == "vae",
    )


def bytes_a_pass(part: Part, config: ExecutionConfig) -> float:
    """Of the files of a component that streams, the bytes that come anew in each of its passes."""
    large = _largest(part)
    whole = stored_bytes(large.weights, config.storage_dtype, config.compute_dtype)
    return (1 - min(config.resident_bytes, whole) / whole) * large.file_bytes


def resident_choices(part: Part, config: ExecutionConfig) -> list[int]:
    """How much of a component to keep in place while the rest streams, most first.

    Nothing of the text encoder, which needs each of its weights once.
    """
    if config.component == catalog.TEXT_ENCODER:
        return [0]
    whole = stored_bytes(_largest(part).weights, config.storage_dtype, config.compute_dtype)
    grains = {int(share * whole) // RESIDENT_GRAIN_BYTES for share in _RESIDENT_SHARES}
    return [grain * RESIDENT_GRAIN_BYTES for grain in sorted(grains, reverse=True)]


def _largest(part: Part) -> Module:
    return max(part.modules, key=lambda module: module.file_bytes)


def _streamed_weights(part: Part, sizes: dict[str, int], config: ExecutionConfig) -> int:
    """In place of a component that streams: what stays of its largest network, and a window of each."""
    windows = {module.folder: _window_bytes(module, config) for module in part.modules}
    large = max(sizes, key=lambda name: sizes[name])
    return sum(windows.values()) + min(sizes[large] - windows[large], config.resident_bytes)


def _window_bytes(module: Module, config: ExecutionConfig) -> int:
    """Room for what of a network comes and goes; all of a small one."""
    size = stored_bytes(module.weights, config.storage_dtype, config.compute_dtype)
    if module.folder == "text_encoder":
        share = _CLIP_WINDOW if config.component == catalog.UPSCALER else _BLOCK_WINDOW
        window = int(share * size)
    else:
        window = WINDOW_UNITS * _layer_bytes(module, config)
    return min(size, max(window, LEAST_WINDOW_BYTES))


def _cpu_working_bytes(module: Module, activations: int, config: ExecutionConfig) -> int:
    """What a network takes beside its weights while a CPU computes it."""
    if module.folder == "vae":
        return int(_CPU_VAE_SLACK * activations)
    size = stored_bytes(module.weights, config.storage_dtype, config.compute_dtype)
    streams = config.strategy == STREAM and _window_bytes(module, config) < size
    layers = _CPU_STREAMED_LAYERS if streams else _CPU_LAYERS
    again = int(layers * _layer_bytes(module, config)) if module.folder == "unet" else 0
    return int((1 if streams else _HEAP_SLACK) * activations) + again


def _result_bytes(config: ExecutionConfig) -> int:
    """Of a finished picture larger than 1024 x 1024: its numbers, and their copies for writing them."""
    large = config.component in (catalog.UPSCALER, catalog.POSTPROCESS)
    return int(_RESULT_BYTES * max(0.0, config.area - 1)) if large else 0


def headroom(device: str) -> tuple[int, int]:
    """Bytes to leave free of (VRAM, RAM): workspaces that no prediction sees, and safety."""
    vram = 0 if device == "cpu" else VRAM_WORKSPACE_BYTES + VRAM_SAFETY_BYTES
    return vram, RAM_SAFETY_BYTES


def _waiting_bytes(config: ExecutionConfig) -> int:
    """Of the texts that wait for each other between the blocks of an encoder that streams."""
    together = config.component == catalog.TEXT_ENCODER and config.strategy == STREAM
    return config.batch * _TEXT_NUMBERS * _STATE_BYTES[config.compute_dtype] if together else 0


def _growth(module: Module, config: ExecutionConfig) -> float:
    """How much more a network's activations take for what is drawn than for the table's square.

    They grow with the pixels; attention that multiplies the whole table of weights, with their square.
    """
    if module.folder not in ("unet", "vae") or (module.folder == "vae" and config.vae_tiling):
        return 1.0
    area = config.drawn_area
    return area**2 if attention_of(config.device) == MATH and area > 1 else area


def _upcast_bytes(part: Part, config: ExecutionConfig) -> int:
    """The VAE always decodes in float32: 16-bit weights of it double, for that time or for good."""
    vae = next((m for m in part.modules if m.folder == "vae"), None)
    if config.strategy == STREAM:
        return 0  # its layers are upcast as they come
    return 2 * vae.weights.parameters if vae and ITEM_BYTES[config.storage_dtype] == 2 else 0


def _activation_bytes(module: Module, config: ExecutionConfig) -> int:
    row = _pass_of(module, config)
    if row is not None:
        return int(row.activations(config.at_once) * _growth(module, config))
    item = ITEM_BYTES[config.compute_dtype]
    if module.folder == "vae":
        side = _VAE_TILED_SIDE if config.vae_tiling else _VAE_SIDE
        area = 1.0 if config.vae_tiling else config.drawn_area
        return int(_VAE_FACTOR * module.channels * side**2 * area * ITEM_BYTES["float32"])
    if module.folder == "unet":
        side = catalog.COMPONENT[config.component].side
        factor = _UNET_FACTOR[config.component]
        return int(factor * module.channels * side**2 * config.drawn_area * item * config.batch)
    if config.component == catalog.TEXT_ENCODER:
        return _TEXT_ACTIVATION_BYTES
    return _SMALL_ACTIVATION_BYTES
