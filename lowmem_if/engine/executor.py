"""What a worker does: every component in turn, from folder to folder.

A turn loads its component if there is anything to do, does it image by image, writes each result as
it comes, and proves that the component has left, unless a session keeps it on its shelf. Of a run
nothing is kept but what is in its folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locate import Location, locate
from lowmem_if.cascade.lora import file_digest
from lowmem_if.cascade.modes import UPSCALE
from lowmem_if.engine.embedding_cache import EmbeddingCache
from lowmem_if.engine.events import Event, Report
from lowmem_if.engine.input_copies import KINDS, read_source
from lowmem_if.engine.model_cache import CacheKey, ModelCache, closed_on_error, left_behind
from lowmem_if.engine.recorder import Recorder
from lowmem_if.engine.run_folder import RunFolder, is_whole_png
from lowmem_if.errors import CascadeError, DeviceError, NotFinite, RunFolderError
from lowmem_if.hardware.dtypes import likely_cause
from lowmem_if.planning.eviction import CacheEntry
from lowmem_if.planning.memory import VRAM_WORKSPACE_BYTES, at_rest, in_place_bytes
from lowmem_if.planning.plan import Step
from lowmem_if.planning.plan_json import flat_step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.request_json import request_to_json
from lowmem_if.stages.compiling import why_not
from lowmem_if.stages.finite import check_finite, is_finite
from lowmem_if.stages.lifetime import C, Lifetime
from lowmem_if.stages.pipelines import Batch, DrawingStage
from lowmem_if.stages.postprocess import Postprocessor, to_image, to_unit_range
from lowmem_if.stages.previews import Watching
from lowmem_if.stages.stage_1 import Stage1
from lowmem_if.stages.stage_2 import Stage2
from lowmem_if.stages.text_encoder import CleanedText, TextCleaner, TextEncoder, cut_off
from lowmem_if.stages.upscaler import Upscaler
from lowmem_if.units import shorten
from lowmem_if.weights.allocator import limit, try_segments
from lowmem_if.weights.files.fingerprint import identity
from lowmem_if.weights.files.tensor_file import is_sound, load_tensor, tensor_bytes
from lowmem_if.weights.loading import load_tokenizer
from lowmem_if.weights.memory_readings import Release, VramTaken, free_vram, wake

S = TypeVar("S", bound=DrawingStage)

_READ_T5 = {catalog.STAGE_1, catalog.STAGE_2}


def work(
    folder: RunFolder, report: Report, *, preview_every: int = 0, shelf: ModelCache | None = None
) -> None:
    """Do every step of the folder's plan that is not done.

    Args:
        preview_every: steps after which pictures in the making are written; 0: never.
        shelf: with what is loaded already, and for what may stay; None: nothing.

    Raises:
        LowmemError: weights, device or folder cannot be used; what is done stays done.
    """
    folder.prepare(previews=preview_every > 0)
    request = folder.plan.request
    location = locate(request.cascade, components=request.components, revision=request.revision)
    todo = _todo(folder)
    shelf = shelf or ModelCache()
    for step in folder.plan.steps:
        if step.component in todo:
            _StepRunner(folder, step, location, report, preview_every, shelf).take()
        else:
            report(Event("skipped", step.component))


def _todo(folder: RunFolder) -> set[str]:
    """The components that must have a turn: not done, or done and then lost while still needed."""
    request = folder.plan.request
    todo = {component for component in request.components if not folder.is_done(component)}
    if len(folder.images) < len(request.images):
        todo.add(catalog.POSTPROCESS)
    for stage in reversed(catalog.IMAGE_STAGES):
        tasks = [task for task in request.images if stage in task.stages]
        needed = [task for task in tasks if _follower(task, stage) in todo]
        if not all(is_sound(folder.tensor_file(stage, task)) for task in needed):
            todo.add(stage)
    texts = [folder.embedding_file(text) for text in texts_of(folder)]
    if _READ_T5 & todo and not all(map(is_sound, texts)):
        todo.add(catalog.TEXT_ENCODER)
    return todo


def _follower(task: ImageSpec, stage: str) -> str:
    """The component that takes a picture on after `stage`."""
    return dict(pairwise((*task.stages, catalog.POSTPROCESS)))[stage]


def texts_of(folder: RunFolder) -> list[str]:
    """Every text that a stage of the run needs an embedding of, once; negative ones come last."""
    positive, negative = [], []
    for task in folder.plan.request.images:
        steps = [folder.plan.step(stage) for stage in task.stages if stage in _READ_T5]
        if steps:
            positive += [task.words, task.style_prompt] if task.is_styled else [task.words]
        if any(step.sampling_of(task).guidance_scale > 1 for step in steps):
            negative.append(task.negative_prompt)
    return list(dict.fromkeys([*positive, *negative]))


def micro_batches(tasks: Sequence[ImageSpec], size: int) -> list[list[ImageSpec]]:
    """Neighbours that a stage can draw at once, up to `size` of them.

    They are cut by image number, so that a continued run cuts them the same way.
    """
    batches: list[list[ImageSpec]] = []
    for task in tasks:
        if batches and len(batches[-1]) < size and batches[-1][0].drawn_with(task):
            batches[-1].append(task)
        else:
            batches.append([task])
    return batches


class _StepRunner:
    """One component's turn: load it if there is anything to do, do it, prove that it has left."""

    def __init__(
        self,
        folder: RunFolder,
        step: Step,
        location: Location,
        report: Report,
        preview_every: int,
        shelf: ModelCache,
    ) -> None:
        self._folder, self._step, self._report = folder, step, report
        self._preview_every, self._shelf = preview_every, shelf
        self._request = folder.plan.request
        self._tasks = [task for task in self._request.images if step.component in task.stages]
        self._root = _root(location, step)
        self._part = location.cascade.parts[step.component]
        self._recorder = Recorder(
            step, folder.memory_file, report, counts_reserve=folder.plan.machine.counts_reserve
        )
        self._weights = weights_identity(location, step)
        self._release: Release | None = None
        self._beside = shelf.held_bytes()
        self._stays = False

    def take(self) -> None:
        component = self._step.component
        _check_device(self._step)
        _check_lora(self._step, self._folder)
        self._folder.check_weights(component, self._weights)
        images = len(self._tasks or self._request.images)
        self._report(Event("started", component, total=images, batch=self._step.config.batch))
        self._wake()
        turns = {
            catalog.TEXT_ENCODER: self._encode,
            catalog.STAGE_1: self._draw_first,
            catalog.STAGE_2: self._enlarge,
            catalog.UPSCALER: self._upscale,
            catalog.POSTPROCESS: self._finish,
        }
        with self._recorder.recording(), self._finite():
            turns[component]()
        released = asdict(self._release) if self._release else None
        self._folder.finish_step(component, self._measured(), released, stays=self._stays)
        self._report(Event("finished", component))
        if self._release and not self._release.complete:
            self._notice(left_behind(component, self._release))

    def _wake(self) -> None:
        """Use the device for the first time, in the step's turn: it may be short of memory even here."""
        device, machine = self._step.config.device, self._folder.plan.machine
        try_segments(device)
        if machine.spills_vram and device == machine.device:
            limit(device, machine.vram_bytes - VRAM_WORKSPACE_BYTES, machine.vram_total_bytes)
        wake(device, self._step.config.compute_dtype)

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Say of numbers that are not finite whose they are and what the likely cause is."""
        step = self._step
        try:
            yield
        except NotFinite as error:
            machine = self._folder.plan.machine
            cause = likely_cause(machine, step.config.compute_dtype, str(self._root))
            raise NotFinite(
                f"{step.component.replace('_', ' ')}: {error} holds NaN or infinite numbers, computed "
                f"in {step.config.compute_dtype} on {step.config.device}; {cause}"
            ) from error

    def _measured(self) -> dict[str, Any]:
        measured = self._recorder.measured()
        if any(self._beside):
            names = ("warm_vram_bytes", "warm_ram_bytes")
            measured |= dict(zip(names, self._beside, strict=True))
        return measured

    @contextmanager
    def _loaded(
        self, make: Callable[[Path, Step], C], made_with: tuple[object, ...] = ()
    ) -> Iterator[C]:
        """The component, loaded now or still; `made_with`: what `make` knows beside the step."""
        step, shelf = self._step, self._shelf
        form = CacheKey.of(self._root, self._weights, step, made_with)
        self._make_room(form)
        life: Lifetime[C] = self._taken() or Lifetime(
            lambda: self._load(make),
            device=step.config.device,
            weight_bytes=in_place_bytes(self._part, step.config),
        )
        with closed_on_error(life):
            self._folder.keep_weights(step.component, self._weights)  # they could be used
            yield life.component
        if shelf.keeps:
            shelf.put(form, self._kept(), life)
            self._stays = True
        else:
            self._release = life.end()

    def _make_room(self, form: CacheKey) -> None:
        """Let go of what the step has no room beside, and say what was left of it."""
        for component, release in self._shelf.clear(form, self._step, self._folder.plan):
            self._folder.keep_release(component, asdict(release))
            self._recorder.restart()
            if not release.complete:
                self._notice(left_behind(component, release))

    def _taken(self) -> Lifetime[Any] | None:
        """The component, if it is loaded."""
        life = self._shelf.take(self._step.component)
        self._beside = self._shelf.held_bytes()
        if life is not None:
            self._report(Event("warm", self._step.component, total=sum(self._at_rest())))
        return life

    def _load(self, make: Callable[[Path, Step], C]) -> C:
        step = self._step
        self._check_room()
        if step.config.speedup > 1 and (why := why_not(step.config.device)):
            self._notice(f"not compiled, for torch.compile does not work here: {why}")
            step = step.with_config(speedup=1.0)
        with self._recorder.loading(in_place_bytes(self._part, step.config)):
            return make(self._root, step)

    def _check_room(self) -> None:
        """Look at the free VRAM once more; nothing is left free on top, the plan has done that.

        Raises:
            VramTaken: less is free than was predicted. What the user has pinned is tried all the same.
        """
        step, available = self._step, free_vram(self._step.config.device)
        needed = step.estimate.vram_bytes
        if available is None or available >= needed or step.component in self._folder.plan.pins:
            return
        taken = VramTaken(available, needed)
        self._notice(f"{step.component.replace('_', ' ')}: {taken}")
        raise taken

    def _kept(self) -> CacheEntry:
        return CacheEntry(self._step.component, *self._at_rest(), self._step.estimate.read_bytes)

    def _at_rest(self) -> tuple[int, int]:
        return at_rest(self._part, self._step.config)

    def _encode(self) -> None:
        texts = texts_of(self._folder)
        cleaner = TextCleaner(self._root)
        cleaned = {text: cleaner.clean(text) for text in texts}
        self._warn_of(cleaned, cleaner.known_words)
        cache = EmbeddingCache(self._weights, self._step)
        for text in (t for t in texts if not self._is_embedded(t)):
            kept = cache.get(cleaned[text].text)
            if kept is not None:
                self._folder.keep_weights(catalog.TEXT_ENCODER, self._weights)
                self._folder.write(self._folder.embedding_file(text), tensor_bytes(kept))
        missing = [text for text in texts if not self._is_embedded(text)]
        if not missing:
            return
        with self._loaded(TextEncoder) as encoder:
            embeddings = encoder.encode(missing, self._step.config.batch, self._on_texts)
            for text, embedding in zip(missing, embeddings, strict=True):
                check_finite(embedding, f"the embedding of {shorten(text, 40)!r}")
                self._folder.write(self._folder.embedding_file(text), tensor_bytes(embedding))
                if trouble := cache.put(cleaned[text].text, embedding):
                    self._notice(f"embeddings are not kept for later runs: {trouble}")

    def _is_embedded(self, text: str) -> bool:
        return is_sound(self._folder.embedding_file(text))

    def _on_texts(self, done: int, total: int) -> None:
        self._report(Event("drawing", catalog.TEXT_ENCODER, done=done, total=total))

    def _warn_of(self, cleaned: dict[str, CleanedText], known: dict[str, list[str]]) -> None:
        """Say what of the texts cannot show in the pictures."""
        for text, seen in cleaned.items():
            if seen.cut:
                self._notice(
                    f"{shorten(text, 40)!r} has over {catalog.MAX_TOKENS} tokens, left out: {seen.cut!r}"
                )
            if text.strip() and not seen.text:
                self._notice(f"IF's caption cleaning leaves nothing of the prompt {text!r}")
        unknown = dict.fromkeys(word for seen in cleaned.values() for word in seen.unknown)
        if unknown:
            language = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in known.items())
            self._notice(f"this cascade never learnt {', '.join(unknown)}; it knows {language}")

    def _draw_first(self) -> None:
        def draw(stage: Stage1, batch: Batch) -> torch.Tensor:
            return stage.draw(batch, *self._embeds(batch))

        self._draw_all(Stage1, draw, to_unit_range)

    def _enlarge(self) -> None:
        def draw(stage: Stage2, batch: Batch) -> torch.Tensor:
            own = batch.mode == UPSCALE
            pictures = list(batch.images) if own else self._pictures(catalog.STAGE_1, batch.tasks)
            return stage.draw(batch, pictures, *self._embeds(batch))

        self._draw_all(Stage2, draw, to_unit_range)

    def _upscale(self) -> None:
        tokenizer = load_tokenizer(self._root / "tokenizer")
        texts = [text for task in self._tasks for text in (task.words, task.negative_prompt)]
        for text in dict.fromkeys(texts):
            if cut := cut_off(tokenizer, text):
                self._notice(
                    f"{shorten(text, 40)!r} is too long for the upscaler's own encoder, "
                    f"which does without: {cut!r}"
                )

        def draw(stage: Upscaler, batch: Batch) -> torch.Tensor:
            if batch.tasks[0].is_enlarged_as_it_is:
                return stage.draw_own(batch)
            return stage.draw(batch, self._pictures(catalog.STAGE_2, batch.tasks))

        self._draw_all(Upscaler, draw, lambda picture: picture)

    def _draw_all(
        self,
        make: Callable[[Path, Step], S],
        draw: Callable[[S, Batch], torch.Tensor],
        show: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Draw what is not on disk yet, a micro-batch at a time, and keep each picture at once."""
        stage = self._step.component
        batches = micro_batches(self._tasks, self._step.config.batch)
        undone = [b for b in batches if not all(self._is_drawn(task) for task in b)]
        self._tell_of_done(len(self._tasks) - sum(map(len, undone)), len(self._tasks))
        if not undone:
            return
        with self._loaded(make) as component:
            for tasks in undone:
                for task, picture in zip(tasks, draw(component, self._batch(tasks)), strict=True):
                    check_finite(picture, f"image {task.name}")
                    # The preview first: with its tensor there a picture counts as drawn.
                    image = to_image(show(picture))
                    self._folder.write(self._folder.preview_file(stage, task), _png(image))
                    self._folder.write(self._folder.tensor_file(stage, task), tensor_bytes(picture))
                    file = str(self._folder.preview_file(stage, task))
                    self._report(Event("saved", stage, number=task.number, text=file))

    def _batch(self, tasks: Sequence[ImageSpec]) -> Batch:
        """Tasks with what a pipeline needs to draw them together."""
        sampling = self._step.sampling_of(tasks[0])
        images, masks = (self._sources(tasks, kind) for kind in KINDS)
        tile = self._step.config.tile
        total = sampling.count * tasks[0].parts(tile)
        return Batch(
            tasks, sampling, self._on_step(tasks, total), images, masks, tile,
            style=self._style(tasks), watching=self._watching(tasks, total),
        )  # fmt: skip

    def _style(self, tasks: Sequence[ImageSpec]) -> torch.Tensor | None:
        if self._step.component not in _READ_T5 or not tasks[0].is_styled:
            return None
        return torch.cat([self._embedding(task.style_prompt) for task in tasks])

    def _watching(self, tasks: Sequence[ImageSpec], total: int) -> Watching | None:
        """What writes the pictures in the making, if they were asked for."""

        def show(done: int, pictures: torch.Tensor) -> None:
            for task, picture in zip(tasks, pictures, strict=True):
                file = self._folder.in_making_file(task)
                self._folder.write(file, _png(to_image(picture)))
                place: dict[str, Any] = {"number": task.number, "done": done, "total": total}
                self._report(Event("preview", self._step.component, text=str(file), **place))

        return Watching(self._preview_every, show) if self._preview_every else None

    def _tell_of_done(self, count: int, total: int) -> None:
        """Say how many pictures are there from before, for the time that the others take."""
        if count:
            self._report(Event("going_on", self._step.component, done=count, total=total))

    def _sources(self, tasks: Sequence[ImageSpec], kind: str) -> list[Image.Image]:
        files = [self._folder.source_file(task, kind) for task in tasks if getattr(task, kind)]
        return [read_source(file) for file in files]

    def _finish(self) -> None:
        request = self._request
        undone = [t for t in request.images if not is_whole_png(self._folder.image_file(t))]
        self._tell_of_done(len(request.images) - len(undone), len(request.images))
        if not undone:
            return
        check, mark = request.safety_checker, request.watermark
        with self._loaded(
            partial(Postprocessor, check=check, mark=mark), (check, mark)
        ) as finisher:
            for task in undone:
                picture = self._pictures(task.stages[-1], [task])[0]
                shown = picture if task.stages[-1] == catalog.UPSCALER else to_unit_range(picture)
                finished = finisher.finish(shown)
                if finished.flagged:
                    self._notice(f"the safety checker blackened image {task.name}")
                content = _png(finished.image, self._description(task))
                file = self._folder.image_file(task)
                self._folder.write(file, content)
                self._folder.in_making_file(task).unlink(missing_ok=True)
                self._report(
                    Event("saved", catalog.POSTPROCESS, number=task.number, text=str(file))
                )

    def _embeds(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(prompts', negative prompts') embeddings, each (n, 77, width); None without guidance."""
        embeds = torch.cat([self._embedding(task.words) for task in batch.tasks])
        if batch.sampling.guidance_scale <= 1:
            return embeds, None
        return embeds, torch.cat([self._embedding(task.negative_prompt) for task in batch.tasks])

    def _embedding(self, text: str) -> torch.Tensor:
        return _there(load_tensor(file := self._folder.embedding_file(text)), file)

    def _pictures(self, stage: str, tasks: Sequence[ImageSpec]) -> torch.Tensor:
        files = [self._folder.tensor_file(stage, task) for task in tasks]
        return torch.stack([_there(load_tensor(file), file) for file in files])

    def _is_drawn(self, task: ImageSpec) -> bool:
        return is_sound(self._folder.tensor_file(self._step.component, task))

    def _on_step(self, tasks: Sequence[ImageSpec], total: int) -> Callable[[int], None]:
        number = tasks[0].number
        return lambda done: self._report(
            Event("drawing", self._step.component, number=number, done=done, total=total)
        )

    def _notice(self, text: str) -> None:
        if self._folder.note(text):
            self._report(Event("notice", self._step.component, text=text))

    def _description(self, task: ImageSpec) -> dict[str, object]:
        """What a finished picture says about itself, and nothing of its neighbours.

        Nothing in it changes when a run is continued.
        """
        request = request_to_json(self._request.alone(task))
        for source in filter(None, (request[kind] for kind in KINDS)):
            source["path"] = Path(source["path"]).name  # where it lay is nobody's business
        steps = [flat_step(asdict(step)) for step in self._folder.plan.steps]
        for lora in (one for user in (request, *steps) for one in user["lora"]):
            lora["path"] = Path(lora["path"]).name
        return {
            "prompt": task.prompt,
            "seed": task.seed,
            "cascade": self._request.cascade,
            "request": request,
            "plan": steps,
            "versions": self._folder.versions,
        }


def weights_identity(location: Location, step: Step) -> str:
    """Which files a step works with, by content: weights, configurations, vocabulary and LoRAs."""
    root = _root(location, step)
    files = identity(root, location.files(step.component, storage=step.config.storage_dtype))
    if not step.lora:
        return files
    merged = [[lora.digest, lora.scale] for lora in step.lora]
    return hashlib.sha256(json.dumps([files, merged]).encode()).hexdigest()


def _there(tensor: torch.Tensor | None, file: Path) -> torch.Tensor:
    if tensor is None:
        raise RunFolderError(f"{file} is gone or broken: `lowmem-if resume` makes it again")
    if not is_finite(tensor):  # earlier releases wrote what they had
        raise RunFolderError(
            f"{file} holds NaN or infinite numbers: delete it, and `lowmem-if resume` makes it again"
        )
    return tensor


def _root(location: Location, step: Step) -> Path:
    folder = location.folder(step.component, storage=step.config.storage_dtype)
    if folder is None:
        name = location.cascade.name
        raise CascadeError(
            f"the {step.component} of {name} is not on this disk: `lowmem-if fetch {name}` downloads it"
        )
    return folder


def _check_device(step: Step) -> None:
    kind = step.config.device.partition(":")[0]
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind != "cpu" and (current is None or current.type != kind):
        raise DeviceError(
            f"the plan is for {step.config.device}, which torch does not see here: "
            "run it where it was begun, or start a new folder"
        )


def _check_lora(step: Step, folder: RunFolder) -> None:
    """Raise `RunFolderError` unless the LoRAs of a step are the files that it was planned with."""
    for lora in step.lora:
        if file_digest(lora.path) != lora.digest:
            raise RunFolderError(
                f"the LoRA {lora.path} has changed since {folder.path} was begun: "
                "put the old one back or start a new folder"
            )


def _png(image: object, description: dict[str, object] | None = None) -> bytes:
    """A picture as PNG bytes, with its description as international text."""
    info = PngInfo()
    for key, value in (description or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        info.add_itxt(key, text)
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=info)  # type: ignore[attr-defined]
    return stream.getvalue()
