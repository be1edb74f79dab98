"""Seconds of a component under a config: bytes over the disk and the bus, operations over the pace.

    seconds = building + loading + passes + pictures

Loading and passes overlap what really overlaps: a file is read while it is cast, layers come to an
accelerator while others compute. On a CPU who casts takes cores from who computes, so that adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import Module, Part
from lowmem_if.cascade.strategies import (
    MODEL_OFFLOAD,
    QUANTISED,
    RESIDENT,
    SEQUENTIAL_OFFLOAD,
    STREAM,
)
from lowmem_if.hardware.speeds import ACCELERATOR, CPU, Speeds
from lowmem_if.planning.estimates.compile_time import compile_seconds
from lowmem_if.planning.estimates.execution import ExecutionConfig
from lowmem_if.planning.estimates.flops import pass_flops
from lowmem_if.planning.estimates.weight_bytes import bytes_a_pass, stored_bytes
from lowmem_if.planning.estimates.workload import Workload

_BUILD_S = 0.5
"""Skeleton, tokenizer, proof of release."""
_PICTURE_S = 0.2
"""A 1024 px picture as PNG; smaller ones in proportion."""
_QUANTISED_BYTES = 1.0e9
"""16-bit weights that bitsandbytes' CPU kernels quantise in a second: T5-XXL in 11 s (docs/log.md)."""

_STREAMED_COMPUTE = 1.07
"""Layers that are waited for and put in place: I-XL from files used as they are took 19.9 s a step, and
18.5 resident (bench/RESULTS.md)."""

_COPIES = 2
"""Copying a file out of the cache is so much faster than casting it: 5.1 to 2.6 GB/s (docs/log.md)."""


def predict_seconds(
    part: Part,
    config: ExecutionConfig,
    jobs: Sequence[Workload],
    rates: Speeds,
    ram_left_bytes: int,
    *,
    unified: bool,
) -> float:
    """Seconds that a component takes, to a tenth.

    Args:
        ram_left_bytes: what the system may use to keep files cached after the first pass.
        unified: the accelerator computes in RAM, so that nothing crosses a bus.
    """
    each = [_Work(part, config, job, rates, max(0, ram_left_bytes), unified) for job in jobs]
    drawing = sum(work.passes() + work.pictures() for work in each)
    compiling = compile_seconds(config.device, jobs, config.batch) if config.speedup > 1 else 0.0
    return round(_BUILD_S + each[0].loading() + compiling + drawing, 1)


def cast_bytes_per_s(module: Module, config: ExecutionConfig, rates: Speeds) -> float:
    """Of a cached file; what holds the right type already is copied, or used in place by a CPU."""
    on_file = "bfloat16" if module.is_bfloat16 else "float16"
    if on_file != config.storage_dtype:
        return rates.cached_bytes
    return inf if config.device == "cpu" else _COPIES * rates.cached_bytes


@dataclass(frozen=True, slots=True)
class _Work:
    part: Part
    config: ExecutionConfig
    job: Workload
    rates: Speeds
    ram_left_bytes: int
    unified: bool

    @property
    def _place(self) -> str:
        return CPU if self.config.device == "cpu" else ACCELERATOR

    @property
    def _large(self) -> Module:
        return max(self.part.modules, key=lambda module: module.file_bytes)

    @property
    def _crosses(self) -> bool:
        return self._place == ACCELERATOR and not self.unified

    def _stored(self, *modules: Module) -> int:
        config = self.config
        return sum(
            stored_bytes(m.weights, config.storage_dtype, config.compute_dtype) for m in modules
        )

    def loading(self) -> float:
        """Until the weights are where they wait: read, cast, filled in, brought over, all at once."""
        if self.config.strategy == STREAM:
            return self._loading_what_stays()
        stored, read = self._stored(*self.part.modules), self._read_bytes()
        ways = [read / self.rates.disk_bytes, stored / self.rates.fill_bytes]
        if self._crosses and self.config.strategy == RESIDENT:
            ways.append(stored / self.rates.pageable_bytes)
        return max(ways) + self._quantising()

    def _loading_what_stays(self) -> float:
        """Of a network that streams. An accelerator gets it beside computing, in the first pass; of a
        file that a CPU uses in place pages are only read.
        """
        if self._place == ACCELERATOR:
            return 0.0
        whole = self._stored(self._large)
        stays = min(self.config.resident_bytes, whole)
        ways = [stays / whole * self._large.file_bytes / self.rates.disk_bytes]
        if self._cast_bytes() < inf:
            ways.append(stays / self.rates.fill_bytes)
        return max(ways)

    def _read_bytes(self) -> int:
        eight_bit = self.part.eight_bit_file_bytes if self.config.storage_dtype == "int8" else 0
        return eight_bit or sum(module.file_bytes for module in self.part.modules)

    def _quantising(self) -> float:
        """The accelerator quantises in no time; an 8-bit file is quantised already."""
        done = self.config.storage_dtype == "int8" and self.part.eight_bit_file_bytes
        if self.config.storage_dtype not in QUANTISED or done or self._place == ACCELERATOR:
            return 0.0
        return 2 * sum(m.weights.linear for m in self.part.modules) / _QUANTISED_BYTES

    def passes(self) -> float:
        """All passes through the large network, with the bytes that come in each of them."""
        component, config = self.config.component, self.config
        if component == catalog.TEXT_ENCODER:
            return self._all_texts()
        if component == catalog.POSTPROCESS:
            return self.job.images * self._compute(self._large, 1)
        assert self.job.sampling is not None
        rounds = -(-self.job.images // config.batch) * self.job.parts(config.tile)
        count = self.job.sampling.count * rounds
        # All batches but the last are full; what is not drawn is not computed either.
        mean_batch = self._parts / rounds
        once = self._compute(self._large, mean_batch * self.job.guided * self._part_area)
        once /= self.config.speedup
        if config.strategy == STREAM:
            return self._streaming(once, count)
        return count * (once + self._moving()) + rounds * self._moving_modules()

    @property
    def _parts(self) -> int:
        """Pictures, those that are cut counted by tiles."""
        return self.job.images * self.job.parts(self.config.tile)

    @property
    def _part_area(self) -> float:
        return self.job.part_area(self.config.tile)

    def _compute(self, module: Module, pictures: float) -> float:
        component = "vae" if module.folder == "vae" else self.config.component
        dtype = "float32" if module.folder == "vae" else self.config.compute_dtype
        # In tiles, too: they overlap, but attend to themselves only (18.4e12 for 19.0e12 operations).
        flops = pictures * pass_flops(self.config.component, module)
        pace = self.rates.flops_per_s(self._place, component, dtype)
        return max(self.rates.launch_s, flops / pace)

    def _all_texts(self) -> float:
        """Resident: prompt by prompt. Streaming: many together in one pass over the file."""
        one = self._compute(self._large, 1)
        if self.config.strategy == STREAM:
            rounds = max(1, -(-self.job.texts // self.config.batch))
            return self._streaming(self.job.texts / rounds * one, rounds)
        return self.job.texts * (one + self._moving())

    def _moving(self) -> float:
        """Leaf by leaf nothing waits for the next leaf: the whole network, unpinned, in each pass."""
        if self.config.strategy != SEQUENTIAL_OFFLOAD:
            return 0.0
        return self._stored(self._large) / self.rates.pageable_bytes

    def _moving_modules(self) -> float:
        """Whole modules move once for each batch of pictures."""
        if self.config.strategy != MODEL_OFFLOAD:
            return 0.0
        return self._stored(*self.part.modules) / self.rates.pageable_bytes

    def _streaming(self, compute: float, count: int) -> float:
        """The first pass reads the file, the others what of it the system could not keep cached."""
        again = bytes_a_pass(self.part, self.config)
        uncached = max(0.0, again - self.ram_left_bytes)
        new = again if self._place == CPU else self._large.file_bytes
        first = self._one_pass(compute, new, new)
        return first + (count - 1) * self._one_pass(compute, again, uncached)

    def _one_pass(self, compute: float, bytes_: float, uncached: float) -> float:
        compute *= _STREAMED_COMPUTE
        disk = uncached / self.rates.disk_bytes
        if self._place == CPU:
            return max(compute + bytes_ / self._cast_bytes(), disk)
        bus = bytes_ / self.rates.bus_bytes if self._crosses else 0.0
        return max(compute, disk + (bytes_ - uncached) / self._cast_bytes(), bus)

    def _cast_bytes(self) -> float:
        return cast_bytes_per_s(self._large, self.config, self.rates)

    def pictures(self) -> float:
        """What comes once for each picture: the autoencoder, and a file."""
        if self.config.component == catalog.TEXT_ENCODER:
            return 0.0
        decoders = [module for module in self.part.modules if module.folder == "vae"]
        large = self.config.component in (catalog.UPSCALER, catalog.POSTPROCESS)
        saving = _PICTURE_S if large else _PICTURE_S / 16
        decoding = sum(self._compute(vae, self._part_area) for vae in decoders)
        return self.job.images * saving * self.job.area + self._parts * decoding
