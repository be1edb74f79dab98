"""Estimate the seconds of a component under a config, from bytes, operations and the machine's speeds.

    seconds = building + loading + passes + images

Work that runs in parallel counts once: a file is read while it is cast, and layers are copied to an
accelerator while others compute. On a CPU, casting and computing share the cores, so their times add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from lowmem_if.cascade.parts import Module, Part
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
)
from lowmem_if.hardware.speeds import ACCELERATOR, CPU, Speeds
from lowmem_if.planning.estimates.compile_time import compile_seconds
from lowmem_if.planning.estimates.execution import STRIPS, ExecutionConfig
from lowmem_if.planning.estimates.flops import pass_flops
from lowmem_if.planning.estimates.memory_layout import time_share
from lowmem_if.planning.estimates.strip_memory import bus_bytes
from lowmem_if.planning.estimates.weight_bytes import bytes_a_pass, stored_bytes
from lowmem_if.planning.estimates.workload import Workload

_BUILD_S = 0.5
"""Seconds to build a network without weights, load the tokenizer and check the release."""
_PNG_S = 0.2
"""Seconds to write an image of 1024 pixels as PNG; smaller ones take proportionally less."""
_QUANTISED_BYTES = 1.0e9
"""16-bit bytes per second that bitsandbytes quantises on a CPU: T5-XXL takes 11 s (docs/log.md)."""
_DEQUANTISED = {CPU: 1.4e9, ACCELERATOR: 5e10}
"""Numbers per second that are made from whole numbers while a UNet computes: on two threads of a CPU
(docs/log.md). The accelerator's is assumed: 150 GB a second, half of a T4's memory bandwidth."""

_STREAMED_COMPUTE = 1.07
"""Factor for waiting for layers and placing them. A step of I-XL took 19.9 s with files used in place,
and 18.5 s resident (bench/RESULTS.md)."""

_STRIPS_ON_A_CPU = 0.9
"""Decoding in strips over decoding as a whole: 0.81 to 0.91 of the time, since strips stay in the caches
and touch less fresh memory (docs/log.md). An accelerator is assumed to take the same time."""

_COPY_SPEEDUP = 2
"""Copying a file from the page cache is faster than casting it: 5.1 GB/s to 2.6 GB/s (docs/log.md)."""


def predict_seconds(
    part: Part,
    config: ExecutionConfig,
    workloads: Sequence[Workload],
    speeds: Speeds,
    ram_left_bytes: int,
    *,
    unified: bool,
) -> float:
    """Seconds that a component needs for all its workloads, rounded to a tenth.

    Args:
        ram_left_bytes: RAM that the system can use to cache files after the first pass.
        unified: whether the accelerator computes in RAM, so that no data crosses a bus.
    """
    models = [
        _RuntimeModel(part, config, workload, speeds, max(0, ram_left_bytes), unified)
        for workload in workloads
    ]
    drawing = sum(model.passes() + model.images() for model in models)
    compiling = (
        compile_seconds(config.device, workloads, config.batch) if config.speedup > 1 else 0.0
    )
    return round(_BUILD_S + models[0].loading() + compiling + drawing, 1)


def cast_bytes_per_s(module: Module, config: ExecutionConfig, speeds: Speeds) -> float:
    """Bytes per second from a cached file to the storage dtype.

    A file in this dtype already is copied to an accelerator, and a CPU uses it in place.
    """
    if (
        config.quantises_unet
    ):  # streaming reads whole numbers; making numbers of them is counted apart
        return inf if config.device == "cpu" else _COPY_SPEEDUP * speeds.cached_bytes
    dtype_in_file = "bfloat16" if module.is_bfloat16 else "float16"
    if dtype_in_file != config.storage_dtype:
        return speeds.cached_bytes
    return inf if config.device == "cpu" else _COPY_SPEEDUP * speeds.cached_bytes


@dataclass(frozen=True, slots=True)
class _RuntimeModel:
    """The terms of the cost model for one component and workload, in seconds."""

    part: Part
    config: ExecutionConfig
    workload: Workload
    speeds: Speeds
    ram_left_bytes: int
    unified: bool

    @property
    def _place(self) -> str:
        return CPU if self.config.device == "cpu" else ACCELERATOR

    @property
    def _crosses_bus(self) -> bool:
        return self._place == ACCELERATOR and not self.unified

    def _stored(self, *modules: Module) -> int:
        config = self.config
        return sum(
            stored_bytes(m.weights, config.storage_dtype, config.compute_dtype) for m in modules
        )

    def loading(self) -> float:
        """Seconds to load the weights: reading, casting and copying run in parallel."""
        if self.config.strategy == STREAM:
            return self._loading_resident_share()
        stored, read = (
            self._stored(*self.part.modules),
            self.part.read_bytes(self.config.storage_dtype),
        )
        times = [read / self.speeds.disk_bytes, stored / self.speeds.fill_bytes]
        if self._crosses_bus and self.config.strategy == RESIDENT:
            times.append(stored / self.speeds.pageable_bytes)
        return max(times) + self._quantising()

    def _loading_resident_share(self) -> float:
        """Seconds to load the resident share of a streaming network.

        An accelerator loads it during the first pass. If a CPU uses the file in place, its pages are
        only read.
        """
        if self._place == ACCELERATOR:
            return 0.0
        whole = self._stored(self.part.largest)
        resident = min(self.config.resident_bytes, whole)
        times = [resident / whole * self.part.largest.file_bytes / self.speeds.disk_bytes]
        if self._cast_bytes() < inf:
            times.append(resident / self.speeds.fill_bytes)
        return max(times)

    def _quantising(self) -> float:
        """Seconds to quantise on a CPU; an accelerator takes no time, and an 8-bit file needs none."""
        done = self.config.storage_dtype == "int8" and self.part.eight_bit_file_bytes
        done = done or self.config.strategy == STREAM
        if self.config.storage_dtype not in QUANTISED or done or self._place == ACCELERATOR:
            return 0.0
        return 2 * sum(m.weights.linear for m in self.part.modules) / _QUANTISED_BYTES

    def passes(self) -> float:
        """Seconds of all passes through the largest network, including the bytes loaded in each."""
        config = self.config
        if config.facts.encodes:
            return self._all_texts()
        if config.facts.postprocesses:
            return self.workload.images * self._compute(self.part.largest, 1)
        assert self.workload.sampling is not None
        rounds = -(-self.workload.images // config.batch) * self.workload.parts(config.tile)
        inputs = self.workload.sampling.passes
        count = len(inputs) * rounds
        # The last batch may be smaller, so the mean batch counts.
        mean_batch, mean_inputs = self._parts / rounds, sum(inputs) / len(inputs)
        once = self._compute(self.part.largest, mean_batch * mean_inputs * self._part_area)
        once /= self.config.speedup
        if config.strategy == STREAM:
            return self._streaming(once, count)
        return count * (once + self._moving()) + rounds * self._moving_modules()

    @property
    def _parts(self) -> int:
        """How many images or tiles are drawn."""
        return self.workload.images * self.workload.parts(self.config.tile)

    @property
    def _part_area(self) -> float:
        return self.workload.part_area(self.config.tile)

    def _compute(self, module: Module, images: float) -> float:
        """Seconds to compute one pass of a network with `images` images."""
        component = "vae" if module.is_vae else self.config.component
        dtype = "float32" if module.is_vae else self.config.compute_dtype
        flops = images * pass_flops(self.config.component, module)
        throughput = self.speeds.flops_per_s(self._place, component, dtype)
        share = time_share(component, self.config.layout, dtype)
        return max(self.speeds.launch_s, share * flops / throughput) + self._dequantising(module)

    def _dequantising(self, module: Module) -> float:
        """Seconds to make numbers of a quantised UNet's weights, once a pass."""
        if not (self.config.quantises_unet and module.is_unet):
            return 0.0
        return module.weights.linear / _DEQUANTISED[self._place]

    def _decoding(self, vae: Module) -> float:
        """Seconds to decode one image or tile; strips that are kept in RAM travel at every layer."""
        seconds = self._compute(vae, self._part_area)
        if self.config.decoding == STRIPS and self._place == CPU:
            seconds *= _STRIPS_ON_A_CPU
        return seconds + bus_bytes(vae, self.config) / self.speeds.pageable_bytes

    def _all_texts(self) -> float:
        """Seconds to encode all texts: one by one if resident, many per pass if streaming."""
        one = self._compute(self.part.largest, 1)
        if self.config.strategy == STREAM:
            rounds = max(1, -(-self.workload.texts // self.config.batch))
            return self._streaming(self.workload.texts / rounds * one, rounds)
        return self.workload.texts * (one + self._moving())

    def _moving(self) -> float:
        """Seconds to copy all leaves in one pass of sequential offload: unpinned, and not prefetched."""
        if self.config.strategy != SEQUENTIAL_OFFLOAD:
            return 0.0
        return self._stored(self.part.largest) / self.speeds.pageable_bytes

    def _moving_modules(self) -> float:
        """Seconds to copy all modules for one batch of images, with model offload."""
        if self.config.strategy != MODEL_OFFLOAD:
            return 0.0
        return self._stored(*self.part.modules) / self.speeds.pageable_bytes

    def _streaming(self, compute: float, count: int) -> float:
        """Seconds of all passes: the first reads the file, the others read only what is not cached."""
        again = bytes_a_pass(self.part, self.config)
        uncached = max(0.0, again - self.ram_left_bytes)
        new = again if self._place == CPU else self.part.largest.file_bytes
        first = self._one_pass(compute, new, new)
        return first + (count - 1) * self._one_pass(compute, again, uncached)

    def _one_pass(self, compute: float, bytes_: float, uncached: float) -> float:
        compute *= _STREAMED_COMPUTE
        disk = uncached / self.speeds.disk_bytes
        if self._place == CPU:
            return max(compute + bytes_ / self._cast_bytes(), disk)
        bus = bytes_ / self.speeds.bus_bytes if self._crosses_bus else 0.0
        return max(compute, disk + (bytes_ - uncached) / self._cast_bytes(), bus)

    def _cast_bytes(self) -> float:
        return cast_bytes_per_s(self.part.largest, self.config, self.speeds)

    def images(self) -> float:
        """Seconds of the work once per image: decoding by the VAE, and writing a file."""
        if self.config.facts.encodes:
            return 0.0
        decoders = [module for module in self.part.modules if module.is_vae]
        large = self.config.facts.decodes or self.config.facts.postprocesses
        saving = _PNG_S if large else _PNG_S / 16
        decoding = sum(self._decoding(vae) for vae in decoders)
        return self.workload.images * saving * self.workload.area + self._parts * decoding
