"""Memory over time: samples into `memory.jsonl`, peaks and seconds of each step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from lowmem_if.engine.events import Loading, Report
from lowmem_if.engine.run_folder.run_record import Measured
from lowmem_if.engine.run_folder.writing import writing
from lowmem_if.planning.plan import Step
from lowmem_if.weights.memory_readings import MemoryReading, Sampler, read_memory

_REPORT_EVERY_S = 0.25


class Recorder:
    """Samples one step's memory while it runs; also the source of its loading progress."""

    def __init__(
        self, step: Step, file: Path, report: Report, *, counts_reserve: bool = False
    ) -> None:
        """Begin with nothing measured.

        Args:
            counts_reserve: whether VRAM was predicted as torch's allocator holds it from the driver.
        """
        self._step, self._file, self._report = step, file, report
        self._counts_reserve = counts_reserve
        self._peak_ram = self._peak_vram = 0
        self._loading: tuple[int, int] | None = None
        self._reported = 0.0
        self._began = time.monotonic()

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Sample from here to the end of the block, both ends included whatever the sampler's beat."""
        self._reset_device()
        with writing(self._file.parent):
            stream = self._file.open("ab", buffering=0)  # what a full disk refuses is not kept back
        with stream as self._stream:
            self._record(read_memory(self._step.config.device))
            sampler = Sampler(self._step.config.device, self._record)
            sampler.start()
            try:
                yield self
            finally:
                sampler.stop()
                self._record(read_memory(self._step.config.device))

    def restart(self) -> None:
        """Let peaks count from here on: what was in the way before is not this step's."""
        self._peak_ram = self._peak_vram = 0
        self._reset_device()

    def _reset_device(self) -> None:
        if self._step.config.device not in ("cpu", "mps"):
            torch.accelerator.reset_peak_memory_stats(self._step.config.device)

    @contextmanager
    def loading(self, weight_bytes: int) -> Iterator[None]:
        """Report the growth of memory as the progress of loading `weight_bytes`."""
        now = read_memory(self._step.config.device)
        self._loading = (now.ram_anon + now.vram_allocated, weight_bytes)
        self._report(Loading(self._step.component, 0, weight_bytes))
        try:
            yield
        finally:
            self._loading = None
        self._report(Loading(self._step.component, weight_bytes, weight_bytes))

    def measured(self) -> Measured:
        """The peaks and the seconds of the step so far."""
        if self._step.config.device not in ("cpu", "mps"):
            ask = torch.accelerator.max_memory_allocated
            if self._counts_reserve:
                ask = torch.accelerator.max_memory_reserved
            self._peak_vram = max(self._peak_vram, ask(self._step.config.device))
        return Measured(
            vram_bytes=self._peak_vram,
            ram_bytes=self._peak_ram,
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _record(self, reading: MemoryReading) -> None:
        self._peak_ram = max(self._peak_ram, reading.ram_anon)
        vram = reading.vram_reserved if self._counts_reserve else reading.vram_allocated
        self._peak_vram = max(self._peak_vram, vram)
        line = {"t": round(time.time(), 3), "step": self._step.component, **asdict(reading)}
        with suppress(OSError):  # a full disk is told by whoever writes results, not by samples
            self._stream.write(json.dumps(line).encode() + b"\n")
        if self._loading and time.monotonic() - self._reported > _REPORT_EVERY_S:
            start, total = self._loading
            done = min(total, max(0, reading.ram_anon + reading.vram_allocated - start))
            self._reported = time.monotonic()
            self._report(Loading(self._step.component, done, total))
