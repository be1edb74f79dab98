"""What is asked for: prompts, seeds, size, sampling. Checked once, when it is made."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lowmem_if.cascade import catalog
from lowmem_if.cascade.catalog import StageDefaults
from lowmem_if.cascade.locate import existing_folder
from lowmem_if.cascade.lora import Lora, loras
from lowmem_if.cascade.modes import TEXT
from lowmem_if.errors import RequestError
from lowmem_if.request.batch_row import BatchRow
from lowmem_if.request.image_spec import ImageSpec, Sampling
from lowmem_if.request.input_images import Picture, look_at
from lowmem_if.request.noise_scheduler import DDPM, SCHEDULERS
from lowmem_if.request.seeds import MAX_SEED, MOST, check_series

_MAX_STEPS = {catalog.STAGE_1: 1000, catalog.STAGE_2: 1000, catalog.UPSCALER: 999}
"""The schedulers have 1000 training timesteps; the upscaler's begins one later (`steps_offset`)."""
_KINDS = {
    "negative_prompt": str,
    "style_prompt": str,
    "cascade": str,
    "revision": str,
    "watermark": bool,
    "safety_checker": bool,
    "compile": bool,
}
_SEVERAL = ("seed", "steps", "guidance_scale", "strength", "aspect", "lines")
_KIND_NAMES = {str: "text", bool: "True or False"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `prompts` may be given as one string and `seed` as one number.

    Attributes:
        prompts: one or more texts.
        seed: one number for each prompt; image k of a prompt gets seed + k. One number serves every
            prompt, None draws one. So a picture depends on its prompt and seed, not on its neighbours.
            A series is as many numbers for each prompt, in the prompts' order, a picture each; a
            `range` serves every prompt.
        images: pictures for each prompt.
        size: side of the finished pictures in pixels: 64, 256 or 1024.
        steps: denoising steps, one number for every stage or one for each; None: the cascade's own.
        timesteps: one of diffusers' named lists, for stages 1 and 2, instead of `steps` there.
        guidance_scale: one number for every stage or one for each; 1 or less switches guidance off.
        watermark, safety_checker: whether the finished pictures get IF's mark and check.
        mode: `text`, `vary` (draw a picture again), `inpaint` (a part of one) or `upscale`.
        image, mask: the picture to begin with, and white where `inpaint` repaints; paths may be given.
        strength: how much of `image` is noised away, above 0 up to 1: one number for both stages or one
            for each; None: the mode's own.
        style_prompt: for `vary`: how it is drawn, where the prompt says what; that may be empty then.
        aspect: width and height, like (3, 2), of pictures from text alone; `size` is the shorter side.
        noise_level: of stage 2, 0 to 999: how much of stage 1's detail it may replace.
        scheduler: of stages 1 and 2: `ddpm`, their own, or `dpmsolver++`, made for few steps.
        thresholding: of stages 1 and 2: the ratio of dynamic thresholding, above 0 up to 1, and the
            largest value it may scale down from; the cascade's own if None.
        compile: whether UNets may be compiled (`torch.compile`), where that pays: a picture differs by
            roundings then.
        lora: LoRAs for stages 1 and 2, which add up; texts like `FILE:SCALE` and paths may be given.
        lines: instead of `prompts`: a batch, each line with what is its own; the rest is as said here,
            `seed` and `images` included. The pictures are numbered through.

    Raises:
        RequestError: a value that no cascade could run.
        PictureError: a picture that cannot be used.
        LoraError, CheckpointError: a LoRA that cannot be used.
    """

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    cascade: str = catalog.DEMO
    revision: str = "main"
    seed: tuple[int, ...] | None = None
    images: int = 1
    size: int = 1024
    steps: tuple[int, ...] | None = None
    timesteps: str | None = None
    guidance_scale: tuple[float, ...] | None = None
    watermark: bool = True
    safety_checker: bool = True
    mode: str = TEXT
    image: Picture | None = None
    mask: Picture | None = None
    strength: tuple[float, ...] | None = None
    style_prompt: str = ""
    aspect: tuple[int, int] | None = None
    noise_level: int | None = None
    scheduler: str = DDPM
    thresholding: tuple[float, ...] | None = None
    lines: tuple[BatchRow, ...] = ()
    compile: bool = False
    lora: tuple[Lora, ...] = ()

    def __post_init__(self) -> None:
        self._settle("prompts", _tuple(self.prompts))
        self._settle(
            "cascade", str(self.cascade) if isinstance(self.cascade, Path) else self.cascade
        )
        self._check_kinds()
        if _index(self.size) not in catalog.SIZES:
            raise RequestError(f"size {self.size!r} is not one of 64, 256 and 1024")
        if self.cascade not in catalog.CASCADES and (folder := existing_folder(self.cascade)):
            # A run may be continued from another folder than it was begun in.
            self._settle("cascade", str(folder))
        self._settle("size", int(self.size))
        self._settle("images", _whole("images", self.images, 1, MOST))
        self._settle("seed", self._checked_seeds())
        self._settle_pictures()
        if self.timesteps is not None and self.timesteps not in catalog.TIMESTEP_LISTS:
            known = ", ".join(catalog.TIMESTEP_LISTS)
            raise RequestError(f"unknown timesteps {self.timesteps!r}: use one of {known}")
        self._settle("steps", self._checked_steps())
        self._settle_guidance()
        self._settle("lora", loras(self.lora))
        self._check_lines()

    def _check_kinds(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise RequestError(f"{name} must be {_KIND_NAMES[kind]}, not {value!r}")
        for name in _SEVERAL:
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str | bytes | range):
                self._settle(name, tuple(value))
        _check_prompts((*self.prompts, self.negative_prompt, self.style_prompt))
        if not self.prompts and not self.lines:
            raise RequestError("the prompt is empty: say what the picture should show")
        if not all(isinstance(line, BatchRow) for line in self.lines):
            raise RequestError("lines must be of the class Line; `batch` makes them of tables")
        if self.prompts and self.lines:
            raise RequestError("prompts and lines exclude each other: give one of them")

    def _settle_guidance(self) -> None:
        self._settle("guidance_scale", self._per_stage("guidance_scale", self.guidance_scale))
        for scale in self.guidance_scale or ():
            if (
                isinstance(scale, bool)
                or not isinstance(scale, int | float)
                or not 0 <= scale < 1e3
            ):
                raise RequestError(f"guidance scale {scale!r} is not a number from 0 to 1000")

    def _check_lines(self) -> None:
        """Every line on its own, and that they are not too many together."""
        if len(self.lines) > MOST or (self.lines and len(self.tasks) > MOST):
            raise RequestError(f"{MOST} pictures are the most in one run: make several of it")

    def of_line(self, line: BatchRow) -> Request:
        """What is asked for by one line alone.

        Raises:
            RequestError, PictureError: nobody could draw it.
        """
        return replace(self, lines=(), prompts=(line.prompt,), **line.values())

    def of_task(self, task: ImageSpec) -> Request:
        """What would have to be asked for to get one picture alone."""
        return replace(
            self, lines=(), prompts=(task.prompt,), negative_prompt=task.negative_prompt,
            seed=(task.seed,), images=1, size=task.size, mode=task.mode, image=task.image,
            mask=task.mask, strength=task.strength, style_prompt=task.style_prompt, aspect=task.aspect,
        )  # fmt: skip

    def _settle_pictures(self) -> None:
        """What the modes beside text need, and what cannot be drawn told before it is planned."""
        for name in ("image", "mask"):
            if isinstance(path := getattr(self, name), str | Path):
                self._settle(name, look_at(path))
        self._settle("strength", self._checked_strength())
        self._settle("aspect", _checked_aspect(self.aspect))
        if self.noise_level is not None:
            self._settle("noise_level", _whole("noise level", self.noise_level, 0, 999))
        self._settle("thresholding", self._checked_thresholding())
        if self.scheduler not in SCHEDULERS:
            known = ", ".join(SCHEDULERS)
            raise RequestError(f"unknown scheduler {self.scheduler!r}: use one of {known}")
        for prompt in self.prompts:
            self._task(0, prompt, 0)

    def _checked_steps(self) -> tuple[int, ...] | None:
        given = self._per_stage("steps", self.steps)
        if given is None:
            return None
        steps = tuple(
            _whole("steps", count, 1, _MAX_STEPS[stage] if stage in self.components else 1000)
            for stage, count in zip(catalog.IMAGE_STAGES, given, strict=True)
        )
        if self.timesteps and (len(set(steps)) > 1 or catalog.UPSCALER not in self.components):
            raise RequestError(
                f"{self.timesteps} decides the steps of stages 1 and 2: leave out steps, or give one "
                "number, the upscaler's"
            )
        return steps

    @property
    def components(self) -> tuple[str, ...]:
        """The components this request needs, in the order in which they run."""
        tasks = self.tasks
        needed = {stage for task in tasks for stage in task.stages} | {catalog.FINISH}
        if any(task.needs_t5 for task in tasks):
            needed.add(catalog.TEXT_ENCODER)
        return tuple(component for component in catalog.COMPONENTS if component in needed)

    @property
    def tasks(self) -> tuple[ImageSpec, ...]:
        """The images to draw, prompt by prompt."""
        return _tasks_of_lines(self) if self.lines else tuple(self._numbered(0))

    def _numbered(self, first: int) -> Iterator[ImageSpec]:
        seeds = self.seed or ()
        series = len(seeds) // len(self.prompts)
        pairs = [
            (self.prompts[n // series], seed + k)
            for n, seed in enumerate(seeds)
            for k in range(self.images)
        ]
        for number, (prompt, seed) in enumerate(pairs, start=first):
            yield self._task(number, prompt, seed)

    def _task(self, number: int, prompt: str, seed: int) -> ImageSpec:
        return ImageSpec(
            number, prompt, seed, self.negative_prompt, self.size, self.mode,
            self.image, self.mask, self.strength, self.style_prompt, self.aspect,
        )  # fmt: skip

    def sampling(self, stage: str, defaults: StageDefaults) -> Sampling:
        """How `stage` draws: what was asked for, else the cascade's defaults."""
        k = catalog.IMAGE_STAGES.index(stage)
        named = self.timesteps if stage != catalog.UPSCALER else None
        steps = None if named else (self.steps[k] if self.steps else defaults.steps)
        scale = self.guidance_scale[k] if self.guidance_scale else defaults.guidance_scale
        noise_level = defaults.noise_level
        if stage == catalog.STAGE_2 and self.noise_level is not None:
            noise_level = self.noise_level
        strength = defaults.strength
        if self.strength and strength is not None:
            strength = self.strength[k]
        sampling = Sampling(steps, named, float(scale), noise_level, strength)
        if (
            stage == catalog.UPSCALER
        ):  # its scheduler is of another kind, and its pictures are latent
            return sampling
        return replace(sampling, scheduler=self.scheduler, thresholding=self.thresholding)

    def _settle(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _checked_seeds(self) -> tuple[int, ...]:
        given, prompts = self.seed, len(self.prompts) or 1  # each line is one
        if isinstance(given, range):
            given = check_series(given) * prompts
        seeds = _tuple(secrets.randbelow(2**31) if given is None else given)
        seeds = tuple(_whole("seed", seed, 0, MAX_SEED - self.images) for seed in seeds)
        if len(seeds) == 1:
            return seeds * prompts
        if not seeds or len(seeds) % prompts:
            raise RequestError(
                f"{len(seeds)} seeds for {prompts} prompts: give one, one for each, "
                "or a series for all, like 1..4"
            )
        if len(seeds) > prompts and self.images > 1:
            raise RequestError(
                f"a series of seeds gives one picture each: leave out images ({self.images}), "
                "or give one seed"
            )
        return seeds

    def _checked_strength(self) -> tuple[float, ...] | None:
        if self.strength is None:
            return None
        values = _tuple(self.strength)
        if len(values) not in (1, 2):
            raise RequestError(
                f"{len(values)} values for strength: give one, or one for stage 1 and one for stage 2"
            )
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise RequestError(f"strength {value!r} is not a number above 0 and up to 1")
        return float(values[0]), float(values[-1])

    def _checked_thresholding(self) -> tuple[float, ...] | None:
        if self.thresholding is None:
            return None
        values = _tuple(self.thresholding)
        real = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        # diffusers scales down from the ratio's quantile, at least 1 and at most the largest value.
        if not real or len(values) not in (1, 2) or not (0 < values[0] <= 1 <= (*values, 1)[1]):
            raise RequestError(
                f"thresholding {self.thresholding!r} is not a ratio above 0 up to 1, like 0.95, "
                "or that and the largest value, like 0.95,1.5"
            )
        return tuple(map(float, values))

    def _per_stage(self, name: str, value: Any) -> tuple[Any, ...] | None:
        if value is None:
            return None
        values = _tuple(value)
        count = len(catalog.IMAGE_STAGES)
        if len(values) not in (1, count):
            raise RequestError(f"{len(values)} values for {name}: give one, or one for each stage")
        return values * count if len(values) == 1 else values


@lru_cache(
    maxsize=8
)  # thousands of lines take a moment, and a run asks for its tasks again and again
def _tasks_of_lines(request: Request) -> tuple[ImageSpec, ...]:
    tasks: list[ImageSpec] = []
    for line in request.lines:
        tasks += request.of_line(line)._numbered(len(tasks))
    return tuple(tasks)


def _checked_aspect(value: Any) -> tuple[int, int] | None:
    """Width and height without common factors, of a pair or a text like `3:2`."""
    if value is None:
        return None
    parts = value.split(":") if isinstance(value, str) else _tuple(value)
    try:
        width, height = (int(p) if isinstance(p, str) else operator.index(p) for p in parts)
    except (ValueError, TypeError):
        raise RequestError(f"aspect {value!r} is not like 3:2") from None
    if not (0 < width < 10_000 and 0 < height < 10_000):
        raise RequestError(f"aspect {value!r} is not like 3:2")
    shared = math.gcd(width, height)
    return width // shared, height // shared


def _tuple(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return tuple(value)
    return (value,)


def _check_prompts(texts: tuple[Any, ...]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise RequestError(f"a prompt must be text, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("a prompt is not valid Unicode: type it again") from None


def _whole(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int, whichever library's whole number it is."""
    number = _index(value)
    if number is None or not low <= number <= high:
        raise RequestError(f"{name} {value!r} is not a whole number from {low} to {high}")
    return number


def _index(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
