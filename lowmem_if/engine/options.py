"""The keyword options of the public functions, typed once and checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lowmem_if.cascade.locating.weights_choice import PartChoice
from lowmem_if.cascade.lora.adapter import Lora
from lowmem_if.cascade.strategies import Pin, parse_pin
from lowmem_if.engine.events import Report
from lowmem_if.errors import RequestError
from lowmem_if.planning.plan import Plan
from lowmem_if.request.image_spec import PictureOptions
from lowmem_if.request.pictures.picture_objects import PictureLike
from lowmem_if.units import did_you_mean

Numbers = float | Sequence[float]
"""One number, or one for each stage."""

LoraGiven = str | Path | Lora
"""A LoRA as `[STAGE=]FILE[:SCALE]`, as a path, or as the library's own value."""


Parts = Mapping[str, str | Path | PartChoice]
"""Component -> the folder or repository that it is loaded from."""


class MachineOptions(TypedDict, total=False):
    """The machine to plan for.

    Attributes:
        profile: name or file of a machine profile, in place of the machine as measured.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu`.
        ram, vram: how much memory may be used at most, like `8GB` or `7.5GiB`. A number without a unit
            is in GB below 1024, else in bytes.
    """

    profile: str | None
    device: str
    ram: str | int | None
    vram: str | int | None


class PlanOptions(MachineOptions, total=False):
    """The machine, and what the plan must respect.

    Attributes:
        pins: component -> `STRATEGY[:DTYPE]`; the planner never overrides them.
        prefer: `exact`, `faithful`, `balanced` or `fast`; None: the strictest that fits.
    """

    pins: Mapping[str, str | Pin] | None
    prefer: str | None


class StageOptions(MachineOptions, total=False):
    """How a stage is opened for a loop of the user's own.

    Attributes:
        mode: `text` (the default), `vary` (diffusers' img2img) or `inpaint`: which pipeline it is.
        pin: `STRATEGY[:DTYPE]`, which the planner does not override.
        dtype: the number type of the UNet, like `float16` or `torch.float16`; the planner chooses where
            the weights are kept.
        prefer: `exact`, `faithful`, `balanced` or `fast`; None: the strictest that fits.
        batch: pictures for which the UNet is called at once, each with its guidance; memory is planned
            for so many.
        lora: LoRAs that are merged into the UNet's weights.
        parts: as in `ImageOptions`.
        embeds: a file of prompt embeddings: texts are looked up there, and never encoded.
        revision: branch, tag or commit of the weights' repository.
        report: called with a file's name, the bytes done and the bytes in all while missing weights are
            downloaded; None: a bar shows it.
    """

    mode: str
    pin: str | Pin | None
    dtype: Any
    prefer: str | None
    batch: int
    lora: LoraGiven | Sequence[LoraGiven]
    parts: Parts | None
    embeds: str | Path | None
    revision: str
    report: Callable[[str, int, int], None] | None


class RunOptions(TypedDict, total=False):
    """How a run reports its progress.

    Attributes:
        report: called with every `Event` of the run.
        preview_every: steps after which an unfinished picture is written; 0: never.
    """

    report: Report
    preview_every: int


class ResumeOptions(RunOptions, total=False):
    """How an existing run is resumed.

    Attributes:
        other_versions: resume even if libraries that pixels depend on have changed.
    """

    other_versions: bool


class EnlargeOptions(MachineOptions, ResumeOptions, total=False):
    """How chosen pictures of a run are enlarged.

    Attributes:
        size: shorter side of the enlarged pictures in pixels: 256 or 1024 (the default).
        out: a new folder, in which the pictures get new numbers; None: they grow in the run's folder.
    """

    size: int
    out: str | Path | None


class ImageOptions(PictureOptions, total=False):
    """What the pictures should be like, and what draws them; every option has a default.

    Attributes:
        cascade: a published cascade, two stages like `I-L+II-L`, `demo`, or a folder in diffusers
            layout.
        parts: component -> fine-tuned weights: a folder in diffusers layout, or a repository, with
            `@REVISION` if it is not `main`.
        revision: branch, tag or commit of the weights' repositories.
        seed: one number, one for each prompt, or a series (`range`) for every prompt; None draws one.
        images: pictures for each prompt; their seeds count up.
        steps: denoising steps, one number for every stage or one for each.
        timesteps: a named list of diffusers for stages 1 and 2, like `fast27`.
        guidance_scale: one number for every stage or one for each; 1 or less switches guidance off.
        watermark, safety_checker: whether finished pictures get IF's watermark and safety check.
        noise_level: noise added before stage 2, 0 to 999.
        scheduler: noise scheduler of stages 1 and 2: `ddpm` or `dpmsolver++`.
        thresholding: dynamic thresholding of stages 1 and 2: the ratio, or ratio and largest value.
        compile: whether UNets may be compiled by `torch.compile` where that saves time.
        lora: LoRAs for stages 1 and 2; several add up.
        embeds: a file with the embeddings of all prompts, as `embed` writes it: the text encoder is
            neither planned nor loaded.
    """

    cascade: str | Path
    parts: Parts | None
    revision: str
    seed: int | Sequence[int] | range | None
    images: int
    steps: int | Sequence[int] | None
    timesteps: str | None
    guidance_scale: Numbers | None
    watermark: bool
    safety_checker: bool
    noise_level: int | None
    scheduler: str
    thresholding: Numbers | None
    compile: bool
    lora: LoraGiven | Sequence[LoraGiven]
    embeds: str | Path | None


class MaskOptions(TypedDict, total=False):
    """What a mask repaints; without these options, its white parts.

    Attributes:
        invert_mask: repaint the mask's black parts instead.
        mask_alpha: repaint the mask's transparent parts instead; with `invert_mask`, the opaque ones.
    """

    invert_mask: bool
    mask_alpha: bool


class RequestOptions(ImageOptions, MaskOptions, total=False):
    """The options of a request of any mode.

    Attributes:
        mode: `text`, `vary`, `inpaint` or `upscale`.
        image, mask: the picture to begin with, and a mask that is white where `inpaint` repaints: paths,
            PIL images, arrays, tensors, bytes or binary files.
    """

    mode: str
    image: PictureLike | None
    mask: PictureLike | None


class DrawOptions(ImageOptions, PlanOptions, RunOptions, total=False):
    """The options of every function that draws pictures.

    Attributes:
        out: the run folder, or a picture's name: `fox.png` stands for the folder `fox.png.run`, and the
            picture is copied. A new folder under `runs/` if not given. If the same request was begun
            there, it is resumed.
    """

    out: str | Path | None


class InpaintOptions(DrawOptions, MaskOptions, total=False):
    """The options of `inpaint`."""


class GenerateOptions(DrawOptions, RequestOptions, total=False):
    """The options of `generate` and `batch`, which draw in any mode."""


Planner = Callable[..., Plan]
"""Makes a plan: called like `make_plan`."""


class SessionOptions(PlanOptions, RunOptions, total=False):
    """What every call of a session uses unless the call says something else.

    Attributes:
        cascade, parts: as in `ImageOptions`.
        keep_loaded: whether components remain loaded between steps and calls (the default).
        planner: makes the plans; None: `make_plan`.
    """

    cascade: str | Path | None
    parts: Parts | None
    keep_loaded: bool
    planner: Planner | None


class EmbedOptions(PlanOptions, RunOptions, total=False):
    """Which text encoder `embed` uses, and in which number type it returns or writes.

    Attributes:
        cascade: a published cascade, `demo`, or a folder in diffusers layout.
        revision: branch, tag or commit of the weights' repositories.
        dtype: `float16` (the default) or `float32`.
        planner: makes the plan; None: `make_plan`.
    """

    cascade: str | Path
    revision: str
    dtype: str
    planner: Planner | None


class FetchOptions(PlanOptions, total=False):
    """Which weights `fetch` downloads, and what it reports.

    Attributes:
        revision: branch, tag or commit of the weights' repositories.
        parts: as in `ImageOptions`.
        size: shorter side in pixels of the pictures to be drawn: 64 needs no stage 2.
        embeds: a file of prompt embeddings, with which no text encoder is needed.
        report: called with a file's name, its bytes so far and its bytes in all.
        notice: called with each thing that the user should know, in words.
    """

    revision: str
    parts: Parts | None
    size: int
    embeds: str | Path | None
    report: Callable[[str, int, int], None]
    notice: Callable[[str], None]


def check_options(function: str, given: Iterable[str], known: type[Any]) -> None:
    """Raise `RequestError` for an option that `function` does not have; it names the nearest one.

    Args:
        known: the `TypedDict` of the function's options.
    """
    names: frozenset[str] = known.__optional_keys__
    for name in given:
        if name not in names:
            raise RequestError(f"{function} has no option {name!r}{did_you_mean(name, names)}")


def part_of(options: Mapping[str, Any], names: type[Any]) -> dict[str, Any]:
    """Those of the options that belong to a `TypedDict`."""
    keys: frozenset[str] = names.__optional_keys__
    return {name: value for name, value in options.items() if name in keys}


def checked_pins(pins: Mapping[str, str | Pin] | None) -> dict[str, Pin]:
    """Pins as the planner takes them; a text is `STRATEGY[:DTYPE]`.

    Raises:
        RequestError: no such component, strategy or dtype.
    """
    return {
        component: parse_pin(component, pin) if isinstance(pin, str) else pin
        for component, pin in (pins or {}).items()
    }
