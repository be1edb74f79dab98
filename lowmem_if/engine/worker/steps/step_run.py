"""One step of a plan while it runs: its component is loaded, kept in the cache or released."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowmem_if.cascade.locate import Location
from lowmem_if.cascade.parts import Place
from lowmem_if.engine.events import CacheHit, Notice, Report, StepResumed
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.run_record import Measured, Released
from lowmem_if.engine.worker.model_cache import CacheKey, ModelCache, left_behind
from lowmem_if.engine.worker.recorder import Recorder
from lowmem_if.errors import CascadeError
from lowmem_if.planning.estimates.weight_bytes import at_rest, in_place_bytes
from lowmem_if.planning.eviction import CacheEntry
from lowmem_if.planning.plan import Step
from lowmem_if.request.texts.given_embeddings import GivenEmbeddings
from lowmem_if.stages.compiling import why_not
from lowmem_if.stages.components import STAGES
from lowmem_if.stages.lifetime import Lifetime, closed_on_error
from lowmem_if.stages.stage import StageConfig
from lowmem_if.system.paths import quoted
from lowmem_if.weights.files.fingerprint import fingerprint
from lowmem_if.weights.memory_readings import Release, VramTaken, free_vram


class StepRun:
    """A step, its folder, and its component's stay in memory.

    Attributes:
        folder: the run folder.
        step: the plan's step.
        tasks: the images that its component draws; empty for the text encoder and postprocessing.
        place: where the component's folders are.
        weights: the fingerprint of the files in it.
        recorder: measures the step.
        release: the proof that the component was released; None until then.
        kept_loaded: whether the component remains loaded after the step.
    """

    def __init__(
        self, folder: RunFolder, step: Step, location: Location, report: Report, cache: ModelCache
    ) -> None:
        self.folder, self.step, self.report = folder, step, report
        self._cache = cache
        request = folder.plan.request
        self.tasks = [task for task in request.images if step.component in task.stages]
        self.place = place_of(location, step, request.embeds)
        self._part = location.cascade.parts[step.component]
        self.recorder = Recorder(
            step, folder.memory_file, report, counts_reserve=folder.plan.machine.counts_reserve
        )
        self.weights = weights_fingerprint(location, step)
        self.release: Release | None = None
        self.kept_loaded = False
        self._cached_bytes = cache.held_bytes()

    @contextmanager
    def loaded(self, *, checks: bool = True, marks: bool = True) -> Iterator[Any]:
        """Inside, the component's stage is loaded; afterwards it is kept in the cache or released.

        Args:
            checks, marks: as in `StageConfig`.
        """
        step, cache = self.step, self._cache
        key = CacheKey.of(self.place.root, self.weights, step, (checks, marks))
        self._evict(key)
        life: Lifetime[Any] = self._cached() or Lifetime(
            lambda: self._load(checks=checks, marks=marks),
            device=step.config.device,
            weight_bytes=in_place_bytes(self._part, step.config),
        )
        with closed_on_error(life):
            self.folder.keep_weights(step.component, self.weights)  # they could be used
            yield life.component
        if cache.keeps:
            entry = CacheEntry(step.component, *self._at_rest(), step.estimate.read_bytes)
            cache.put(key, entry, life)
            self.kept_loaded = True
        else:
            self.release = life.end()

    def measured(self) -> Measured:
        """The peaks and the time of the step, and the memory of cached components during it."""
        measured = self.recorder.measured()
        if not any(self._cached_bytes):
            return measured
        names = ("warm_vram_bytes", "warm_ram_bytes")
        return measured.model_copy(update=dict(zip(names, self._cached_bytes, strict=True)))

    def notice(self, text: str) -> None:
        """Note a sentence for the user in the run folder, and report it unless it is noted already."""
        if self.folder.note(text):
            self.report(Notice(text, self.step.component))

    def report_resumed(self, count: int, total: int) -> None:
        """Report how many images exist from before, for the estimate of the remaining time."""
        if count:
            self.report(StepResumed(self.step.component, count, total))

    def _evict(self, key: CacheKey) -> None:
        """Release the cached components that the step has no memory for, and prove it."""
        for component, release in self._cache.clear(key, self.step, self.folder.plan):
            self.folder.keep_release(component, Released(**asdict(release)))
            self.recorder.restart()
            if not release.complete:
                self.notice(left_behind(component, release))

    def _cached(self) -> Lifetime[Any] | None:
        """The component, if it is in the cache."""
        life = self._cache.take(self.step.component)
        self._cached_bytes = self._cache.held_bytes()
        if life is not None:
            self.report(CacheHit(self.step.component, sum(self._at_rest())))
        return life

    def _load(self, *, checks: bool, marks: bool) -> Any:
        step = self.step
        self._check_vram()
        if step.config.speedup > 1 and (why := why_not(step.config.device)):
            self.notice(f"not compiled, since torch.compile does not work here: {why}")
            step = step.with_config(speedup=1.0)
        with self.recorder.loading(in_place_bytes(self._part, step.config)):
            config = StageConfig(
                self.place.root, step, checks=checks, marks=marks, elsewhere=self.place.elsewhere
            )
            return STAGES[step.component].load(config)

    def _check_vram(self) -> None:
        """Check the free VRAM again; the plan has already left a reserve.

        Raises:
            VramTaken: less is free than was predicted, and the user has not pinned the strategy.
        """
        step, available = self.step, free_vram(self.step.config.device)
        needed = step.estimate.vram_bytes
        if available is None or available >= needed or step.component in self.folder.plan.pins:
            return
        taken = VramTaken(available, needed)
        self.notice(f"{step.component.replace('_', ' ')}: {taken}")
        raise taken

    def _at_rest(self) -> tuple[int, int]:
        return at_rest(self._part, self.step.config)


def weights_fingerprint(location: Location, step: Step) -> str:
    """The fingerprint of all files of a step: weights, configurations, vocabulary and LoRAs."""
    root = place_of(location, step).root
    files = fingerprint(root, location.files(step.component, storage=step.config.storage_dtype))
    if not step.lora:
        return files
    merged = [[lora.digest, lora.scale] for lora in step.lora]
    return hashlib.sha256(json.dumps([files, merged]).encode()).hexdigest()


def place_of(location: Location, step: Step, embeds: GivenEmbeddings | None = None) -> Place:
    """Where the folders of a step's component are.

    Args:
        embeds: the run's own file of embeddings, with which less needs to be downloaded.

    Raises:
        CascadeError: they are not on this disk.
    """
    place = location.place(step.component, storage=step.config.storage_dtype)
    if place is None:
        choice = location.choice
        less = f" --embeds {quoted(Path(embeds.path))}" if embeds else ""
        raise CascadeError(
            f"the {step.component} of {choice} is not on this disk: "
            f"`lowmem-if fetch {choice.options}{less}` downloads it"
        )
    return place
