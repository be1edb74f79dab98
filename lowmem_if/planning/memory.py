"""Bytes that a component takes under a strategy: weights from its headers, the rest from dry runs.

On an accelerator the shipped table (`footprint_table.py`) knows whole turns of the published components,
hooks and allocator included; of a turn that it lacks, the passes of its networks are put together; and
for a network that it lacks, too, activations are taken to grow with width x pixels x number size x batch
like those of its largest published relative. On a CPU factors are measured ones, since heap and oneDNN
take more than tensors do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
from lowmem_if.planning.memory_table import (
    FUSED,
    MATH,
    PassProfile,
    StepProfile,
    look_up,
    look_up_step,
)
from lowmem_if.request.tiling import UPSCALER_SIDE

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

_PINNED_BYTES = 2 * 2**25
"""The two buffers of loading to an accelerator (`files/staging.py`), for each streaming network."""

_BLOCK_WINDOW, _CLIP_WINDOW = 0.082, 0.31
"""Of a text encoder, room for what streams: of T5-XXL for two of its 24 blocks, of the upscaler's CLIP
for its embedding and the next layer. Of other networks there is room for two of the largest layers."""

RESIDENT_GRAIN_BYTES = 10**8
"""What of a streaming network stays is told to a tenth of a GB, and chosen no finer."""

_RESIDENT_SHARES = tuple(eighths / 8 for eighths in range(8))

_LEAST_WINDOW_BYTES = 64 * 2**20

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

_UNET_SIDE = {catalog.STAGE_1: 64, catalog.STAGE_2: 256, catalog.UPSCALER: 256}
_VAE_FACTOR, _VAE_SIDE = 6.0, 1024
_VAE_TILED_SIDE = 256
"""diffusers tiles a picture of any size into pieces of 64 latents, 256 pixels."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Peak bytes while a component loads and runs: on the accelerator, in RAM, and read from disk.

    `vram_bytes` are tensors, or all that torch's allocator holds from the driver where plans count that.
    """

    vram_bytes: int
    ram_bytes: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """Everything of a plan's step that its bytes depend on."""

    component: str
    strategy: str
    storage: str
    compute: str
    batch: int
    """Pictures that are drawn together, or texts that share one pass over an encoder that streams."""
    device: str
    vae_tiling: bool = False
    resident_bytes: int = 0
    """Of a network that streams: weights that stay where they compute."""
    area: float = 1.0
    """Pixels of the picture over those of the square that the stage was made for."""
    tile: int = 0
    """Side of the tiles that the user's own pictures are enlarged in; 0: whole."""
    speedup: float = 1.0
    """How many times as fast its steps are for being compiled; 1: it is not."""
    merge_bytes: int = 0
    """Of RAM while LoRAs are merged into the weights, which is done before they leave for a device."""

    def __str__(self) -> str:
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        tiled = ", tiled VAE" if self.vae_tiling else ""
        resident = f", {self.resident_bytes / 1e9:.1f} GB resident" if self.resident_bytes else ""
        parts = f", tiles of {self.tile}" if self.tile else ""
        compiled = ", compiled" if self.speedup > 1 else ""
        words = f"{self.strategy} {self.storage}{resident}{batch}{tiled}{parts}{compiled}"
        return words.replace("_", " ")

    @property
    def at_once(self) -> int:
        """Pictures that are drawn at once, or texts: those that wait for each other go one by one."""
        return 1 if self.component == catalog.TEXT_ENCODER else self.batch

    @property
    def drawn_area(self) -> float:
        """Of what is drawn at once, over the square that the stage was made for."""
        return min(self.area, (self.tile / UPSCALER_SIDE) ** 2) if self.tile else self.area


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


def in_place_bytes(part: Part, setting: ExecutionConfig) -> int:
    """What a component's weights take once it has loaded; of a streaming one, what is in place."""
    modules = {
        m.folder: stored_bytes(m.weights, setting.storage, setting.compute) for m in part.modules
    }
    if setting.strategy == STREAM:
        return _streamed_weights(part, modules, setting)
    return sum(modules.values())


def at_rest(part: Part, setting: ExecutionConfig) -> tuple[int, int]:
    """(VRAM, RAM) that a component takes while it is loaded and does nothing."""
    weights = in_place_bytes(part, setting)
    if setting.storage == "bfloat16":
        weights += _upcast_bytes(part, setting)  # for good; from float16 only while it decodes
    if setting.device == "cpu":
        return 0, weights
    if setting.strategy in (RESIDENT, STREAM):
        return int(_ALLOCATOR * weights), _pinned_bytes(part) if setting.strategy == STREAM else 0
    # A pipeline sends its networks back to RAM at its end, but a text encoder works without one.
    stays = setting.strategy == MODEL_OFFLOAD and setting.component == catalog.TEXT_ENCODER
    return weights if stays else 0, weights


def predict(part: Part, setting: ExecutionConfig, *, reserve: bool = False) -> MemoryEstimate:
    """Peak bytes of one component under one setting.

    Args:
        reserve: count all that torch's allocator holds from the driver, not only what is in use.
    """
    plain = _predict(part, _as_simulated(setting))
    if reserve and setting.device != "cpu":
        unused = _unused_bytes(part, _as_simulated(setting))
        plain = replace(plain, vram_bytes=plain.vram_bytes + unused)
    compiler = COMPILER_RAM_BYTES if setting.speedup > 1 else 0
    return replace(plain, ram_bytes=plain.ram_bytes + setting.merge_bytes + compiler)


def _as_simulated(setting: ExecutionConfig) -> ExecutionConfig:
    """What dry runs and the table know: there nothing is merged or compiled."""
    return replace(setting, merge_bytes=0, speedup=1.0)


def _predict(part: Part, setting: ExecutionConfig) -> MemoryEstimate:
    modules = {
        m.folder: stored_bytes(m.weights, setting.storage, setting.compute) for m in part.modules
    }
    activations = {m.folder: _activation_bytes(m, setting) for m in part.modules}
    weights = in_place_bytes(part, setting)
    read = part.eight_bit_file_bytes if setting.storage == "int8" else 0
    read = read or sum(module.file_bytes for module in part.modules)
    if setting.device == "cpu":
        ram = (
            PROCESS_RAM_BYTES
            + weights
            + _upcast_bytes(part, setting)
            + max(_cpu_working_bytes(m, activations[m.folder], setting) for m in part.modules)
            + _waiting_bytes(setting)
            + _result_bytes(setting)
        )
        return MemoryEstimate(0, ram, read)
    vram, host = _simulated(part, setting) or _put_together(part, setting, modules, activations)
    vram += _waiting_bytes(setting)
    host += PROCESS_RAM_BYTES + ACCELERATOR_RAM_BYTES + _result_bytes(setting)
    return MemoryEstimate(vram, host, read)


def attention_of(device: str) -> str:
    """The attention kernel that torch takes there: Apple's multiplies the whole table of weights."""
    return MATH if device.startswith("mps") else FUSED


_REMEMBERED: dict[tuple[Part, ExecutionConfig], tuple[int, int, int]] = {}
"""What was simulated since this process began: VRAM in use, VRAM held by the allocator, host memory."""


def remember(
    part: Part, setting: ExecutionConfig, *, vram_bytes: int, reserved_bytes: int, host_bytes: int
) -> None:
    """From now on predict this setting as a dry run found it.

    Args:
        vram_bytes, reserved_bytes: on the accelerator in use, and held by torch's allocator.
        host_bytes: in host memory beside the process.
    """
    _REMEMBERED[part, _as_simulated(setting)] = vram_bytes, reserved_bytes, host_bytes


def is_simulated(part: Part, setting: ExecutionConfig) -> bool:
    """Whether a dry run has seen this very setting."""
    setting = _as_simulated(setting)
    plain = setting.at_once == 1 and not setting.resident_bytes and setting.drawn_area == 1
    return (part, setting) in _REMEMBERED or (plain and setting.strategy in _turns(part, setting))


def _turns(part: Part, setting: ExecutionConfig) -> dict[str, StepProfile]:
    """The table's turns by strategy; none if one that others are compared with is not there."""
    turns = {
        strategy: look_up_step(
            part, setting.component, strategy, setting.storage,
            attention=attention_of(setting.device), tiled=setting.vae_tiling,
        )
        for strategy in (STRATEGIES if setting.storage in FLOATS else (RESIDENT,))
    }  # fmt: skip
    known = {strategy: turn for strategy, turn in turns.items() if turn is not None}
    return known if turns.keys() - known.keys() <= {STREAM} else {}


def _simulated(part: Part, setting: ExecutionConfig) -> tuple[int, int] | None:
    """(VRAM, host memory beside the process) of a turn that a dry run has seen."""
    if (part, setting) in _REMEMBERED:
        vram, _reserved, host = _REMEMBERED[part, setting]
        return vram, host
    if setting.drawn_area != 1:
        return None  # the table is of squares, drawn as a whole
    turns = _turns(part, setting)
    if setting.strategy not in turns:
        return None
    its, resident = turns[setting.strategy], turns[RESIDENT]
    vram = _turn_bytes(part, setting, its)
    if setting.strategy == STREAM:
        nothing = replace(setting, resident_bytes=0)
        stays = in_place_bytes(part, setting) - in_place_bytes(part, nothing)
        vram = min(_turn_bytes(part, setting, resident), vram + stays)
    return vram, its.anonymous_bytes + its.pinned_bytes


def _unused_bytes(part: Part, setting: ExecutionConfig) -> int:
    """What torch's allocator holds from the driver at most, beyond what is in use at most.

    It is taken to grow like the activations, whose blocks leave the gaps.
    """
    if (part, setting) in _REMEMBERED:
        vram, reserved, _host = _REMEMBERED[part, setting]
        return reserved - vram
    share, turn = _UNUSED_SHARE, _turns(part, setting).get(setting.strategy)
    if turn is not None:
        its = replace(setting, batch=1, area=1.0, tile=0)
        unused = turn.reserved_bytes - _turn_bytes(part, its, turn)
        share = unused / max(_activation_bytes(module, its) for module in part.modules)
    return round(share * max(_activation_bytes(module, setting) for module in part.modules))


def _turn_bytes(part: Part, setting: ExecutionConfig, turn: StepProfile) -> int:
    """The peak of a turn with the setting's batch: what further pictures add is linear."""
    rows = {module.folder: _pass_of(module, setting) for module in part.modules}
    more = {folder: row.more_bytes if row else 0 for folder, row in rows.items()}
    others = setting.at_once - 1
    decoding = turn.decoding_bytes + others * more.pop("vae", 0)
    return max(turn.loading_bytes, turn.drawing_bytes + others * max(more.values()), decoding)


def _put_together(
    part: Part, setting: ExecutionConfig, modules: dict[str, int], activations: dict[str, int]
) -> tuple[int, int]:
    """(VRAM, host memory beside the process) of a turn, from its networks."""
    weights, upcast = in_place_bytes(part, setting), _upcast_bytes(part, setting)
    if setting.strategy in (RESIDENT, STREAM):
        vram = int(_ALLOCATOR * (weights + upcast + max(activations.values())))
        resident = _turns(part, setting).get(RESIDENT)
        if resident and setting.drawn_area == 1:
            vram = min(vram, _turn_bytes(part, setting, resident))
        return vram, _pinned_bytes(part) if setting.strategy == STREAM else _PINNED_BYTES
    sizes = modules | {"vae": modules.get("vae", 0) + upcast}
    layers = {module.folder: _layer_bytes(module, setting) for module in part.modules}
    held = sizes if setting.strategy == MODEL_OFFLOAD else layers
    return int(_ALLOCATOR * max(held[name] + activations[name] for name in activations)), weights


def _pinned_bytes(part: Part) -> int:
    return len(part.modules) * _PINNED_BYTES


def _layer_bytes(module: Module, setting: ExecutionConfig) -> int:
    row = _pass_of(module, setting)
    if row is not None:
        return row.largest_layer_bytes
    return int(_LARGEST_LAYER * stored_bytes(module.weights, setting.storage, setting.compute))


def _pass_of(module: Module, setting: ExecutionConfig) -> PassProfile | None:
    """The table's row of a network in the type that it computes in."""
    item = ITEM_BYTES[
        "float32" if module.folder == "vae" or module.weights.kept else setting.compute
    ]
    return look_up(
        module,
        item_bytes=item,
        attention=attention_of(setting.device),
        tiled=setting.vae_tiling and module.folder == "vae",
    )


def bytes_a_pass(part: Part, setting: ExecutionConfig) -> float:
    """Of the files of a component that streams, the bytes that come anew in each of its passes."""
    large = _largest(part)
    whole = stored_bytes(large.weights, setting.storage, setting.compute)
    return (1 - min(setting.resident_bytes, whole) / whole) * large.file_bytes


def resident_choices(part: Part, setting: ExecutionConfig) -> list[int]:
    """How much of a component to keep in place while the rest streams, most first.

    Nothing of the text encoder, which needs each of its weights once.
    """
    if setting.component == catalog.TEXT_ENCODER:
        return [0]
    whole = stored_bytes(_largest(part).weights, setting.storage, setting.compute)
    grains = {int(share * whole) // RESIDENT_GRAIN_BYTES for share in _RESIDENT_SHARES}
    return [grain * RESIDENT_GRAIN_BYTES for grain in sorted(grains, reverse=True)]


def _largest(part: Part) -> Module:
    return max(part.modules, key=lambda module: module.file_bytes)


def _streamed_weights(part: Part, sizes: dict[str, int], setting: ExecutionConfig) -> int:
    """In place of a component that streams: what stays of its largest network, and a window of each."""
    windows = {module.folder: _window_bytes(module, setting) for module in part.modules}
    large = max(sizes, key=lambda name: sizes[name])
    return sum(windows.values()) + min(sizes[large] - windows[large], setting.resident_bytes)


def _window_bytes(module: Module, setting: ExecutionConfig) -> int:
    """Room for what of a network comes and goes; all of a small one."""
    size = stored_bytes(module.weights, setting.storage, setting.compute)
    if module.folder == "text_encoder":
        share = _CLIP_WINDOW if setting.component == catalog.UPSCALER else _BLOCK_WINDOW
        window = int(share * size)
    else:
        window = 2 * _layer_bytes(module, setting)
    return min(size, max(window, _LEAST_WINDOW_BYTES))


def _cpu_working_bytes(module: Module, activations: int, setting: ExecutionConfig) -> int:
    """What a network takes beside its weights while a CPU computes it."""
    if module.folder == "vae":
        return int(_CPU_VAE_SLACK * activations)
    size = stored_bytes(module.weights, setting.storage, setting.compute)
    streams = setting.strategy == STREAM and _window_bytes(module, setting) < size
    layers = _CPU_STREAMED_LAYERS if streams else _CPU_LAYERS
    again = int(layers * _layer_bytes(module, setting)) if module.folder == "unet" else 0
    return int((1 if streams else _HEAP_SLACK) * activations) + again


def _result_bytes(setting: ExecutionConfig) -> int:
    """Of a finished picture larger than 1024 x 1024: its numbers, and their copies for writing them."""
    large = setting.component in (catalog.UPSCALER, catalog.FINISH)
    return int(_RESULT_BYTES * max(0.0, setting.area - 1)) if large else 0


def headroom(device: str) -> tuple[int, int]:
    """Bytes to leave free of (VRAM, RAM): workspaces that no prediction sees, and safety."""
    vram = 0 if device == "cpu" else VRAM_WORKSPACE_BYTES + VRAM_SAFETY_BYTES
    return vram, RAM_SAFETY_BYTES


def _waiting_bytes(setting: ExecutionConfig) -> int:
    """Of the texts that wait for each other between the blocks of an encoder that streams."""
    together = setting.component == catalog.TEXT_ENCODER and setting.strategy == STREAM
    return setting.batch * _TEXT_NUMBERS * _STATE_BYTES[setting.compute] if together else 0


def _growth(module: Module, setting: ExecutionConfig) -> float:
    """How much more a network's activations take for what is drawn than for the table's square.

    They grow with the pixels; attention that multiplies the whole table of weights, with their square.
    """
    if module.folder not in ("unet", "vae") or (module.folder == "vae" and setting.vae_tiling):
        return 1.0
    area = setting.drawn_area
    return area**2 if attention_of(setting.device) == MATH and area > 1 else area


def _upcast_bytes(part: Part, setting: ExecutionConfig) -> int:
    """The VAE always decodes in float32: 16-bit weights of it double, for that time or for good."""
    vae = next((m for m in part.modules if m.folder == "vae"), None)
    if setting.strategy == STREAM:
        return 0  # its layers are upcast as they come
    return 2 * vae.weights.parameters if vae and ITEM_BYTES[setting.storage] == 2 else 0


def _activation_bytes(module: Module, setting: ExecutionConfig) -> int:
    row = _pass_of(module, setting)
    if row is not None:
        return int(row.activations(setting.at_once) * _growth(module, setting))
    item = ITEM_BYTES[setting.compute]
    if module.folder == "vae":
        side = _VAE_TILED_SIDE if setting.vae_tiling else _VAE_SIDE
        area = 1.0 if setting.vae_tiling else setting.drawn_area
        return int(_VAE_FACTOR * module.channels * side**2 * area * ITEM_BYTES["float32"])
    if module.folder == "unet":
        side = _UNET_SIDE[setting.component]
        factor = _UNET_FACTOR[setting.component]
        return int(factor * module.channels * side**2 * setting.drawn_area * item * setting.batch)
    if setting.component == catalog.TEXT_ENCODER:
        return _TEXT_ACTIVATION_BYTES
    return _SMALL_ACTIVATION_BYTES
