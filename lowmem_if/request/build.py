"""Make a `Request` from a user's prompts or rows: check every value, and list every image."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from lowmem_if.cascade import catalog
from lowmem_if.cascade.locating.cascade_names import canonical_name
from lowmem_if.cascade.locating.hub_folders import existing_folder
from lowmem_if.cascade.locating.weights_choice import PartChoice, WeightsChoice, part_choices
from lowmem_if.cascade.lora.adapter import Lora, loras
from lowmem_if.cascade.modes import EMBED, INPAINT, MODES, TEXT
from lowmem_if.errors import RequestError
from lowmem_if.request.checks import (
    as_tuple,
    check_kinds,
    check_texts,
    checked_seeds,
    checked_text,
    whole,
)
from lowmem_if.request.denoising.noise_scheduler import DDPM
from lowmem_if.request.image_spec import OPTIONS, Check, ImageSpec, PictureOptions
from lowmem_if.request.pictures.input_images import Picture
from lowmem_if.request.pictures.masks import mask_of
from lowmem_if.request.pictures.picture_objects import PictureLike, picture_of
from lowmem_if.request.request import Request, components_of
from lowmem_if.request.sampling_checks import checked_sampling
from lowmem_if.request.seeds import MOST
from lowmem_if.request.texts.given_embeddings import GivenEmbeddings, given_embeddings

_MASKING = ("invert_mask", "mask_alpha")
"""The values that say what a mask repaints; they are kept in the mask."""

ROW_NAMES = ("prompt", "seed", "images", *OPTIONS, *_MASKING)
"""The values that a row of a batch may set: those of an image, and the number of images."""


def make_request(
    prompts: str | Iterable[str] = (),
    *,
    lines: Iterable[Mapping[str, Any]] = (),
    seed: int | Iterable[int] | None = None,
    images: int = 1,
    mode: str = TEXT,
    image: PictureLike | None = None,
    mask: PictureLike | None = None,
    invert_mask: bool | None = None,
    mask_alpha: bool | None = None,
    cascade: str | Path = catalog.DEMO,
    revision: str = "main",
    parts: Mapping[str, str | Path | PartChoice] | None = None,
    steps: int | Iterable[int] | None = None,
    timesteps: str | None = None,
    guidance_scale: float | Iterable[float] | None = None,
    noise_level: int | None = None,
    scheduler: str = DDPM,
    thresholding: float | Iterable[float] | None = None,
    lora: str | Path | Lora | Iterable[str | Path | Lora] | None = (),
    embeds: str | Path | GivenEmbeddings | None = None,
    watermark: bool = True,
    safety_checker: bool = True,
    compile: bool = False,
    **options: Unpack[PictureOptions],
) -> Request:
    """Check what a user asks for and list every image of it.

    Args:
        prompts: one or more texts.
        lines: rows of a batch, instead of `prompts`: mappings with names from `ROW_NAMES`. The other
            arguments apply to rows that do not set the same value.
        seed: one number for all prompts or one for each; image k of a prompt gets seed + k. None draws
            a number. A series contains equally many numbers for each prompt, in the prompts' order,
            and each number gives one image. A `range` is a series for every prompt.
        images: images per prompt.
        mode: `text`, `vary` (redraw an image), `inpaint` (redraw a part of one) or `upscale`.
        image: the image to start from: a path, a PIL image, a numpy array (height, width[, 3 or 4]) of
            uint8 or of floats from 0 to 1, a torch tensor (3, height, width), bytes or a binary file.
        mask: the mask for `inpaint`, as `image` or of booleans; white (1, True) repaints.
        invert_mask: whether the mask's black parts are repainted instead of the white ones.
        mask_alpha: whether the mask's transparent parts are repainted; with `invert_mask`, the others.
        cascade: a name in the catalogue, two published stages like `I-L+II-L`, or a folder.
        revision: branch, tag or commit of the cascade's repositories on the Hub.
        parts: parts of the cascade that are loaded from elsewhere: component -> a folder in diffusers
            layout, or a repository like `OWNER/NAME@REVISION`.
        steps: denoising steps, one number for every stage or one for each; None: the cascade's default.
        timesteps: one of diffusers' named lists, which replaces `steps` in stages 1 and 2.
        guidance_scale: one number for every stage or one for each; 1 or less disables guidance.
        noise_level: noise added before stage 2, 0 to 999; more noise replaces more detail of stage 1.
        scheduler: noise scheduler of stages 1 and 2: `ddpm` or `dpmsolver++`.
        thresholding: dynamic thresholding of stages 1 and 2: the ratio, above 0 up to 1, and optionally
            the largest value that it scales down from. None: the cascade's default.
        lora: LoRAs for stages 1 and 2, which add up: texts like `FILE:SCALE`, paths or `Lora`.
        embeds: a file with the embeddings of all prompts, as `lowmem-if embed` writes it.
        watermark: whether finished images get IF's watermark.
        safety_checker: whether IF's safety checker checks finished images.
        compile: whether UNets may be compiled (`torch.compile`); images then differ by rounding.
        options: see `PictureOptions`.

    Raises:
        RequestError: no cascade can run one of the values.
        PictureError: an input image is not valid, or a mask repaints nothing.
        LoraError, CheckpointError: a LoRA is not valid.
        EmbeddingsError: the file of embeddings cannot be read.
    """
    texts, rows = as_tuple(prompts), tuple(lines)
    cascade = str(cascade) if isinstance(cascade, Path) else cascade
    _check_given(texts, rows)
    check_kinds({"cascade": cascade, "revision": revision}, str)
    flags = {"watermark": watermark, "safety_checker": safety_checker, "compile": compile}
    check_kinds(flags, bool)
    check_names(options, PictureOptions.__optional_keys__)
    common = _checked({
        **{name: default for name, (default, _) in OPTIONS.items()}, **options,
        "images": images, "mode": mode, "image": image, "mask": mask,
        "invert_mask": invert_mask, "mask_alpha": mask_alpha,
    })  # fmt: skip
    common["mask"] = _mask(common, set() if rows else common)
    common["seed"] = checked_seeds(seed, common["images"], len(texts) or 1)
    expanded = _of_rows(rows, common) if rows else _numbered(texts, common)
    specs = tuple(expanded)
    if rows and any(spec.mode == EMBED for spec in specs):
        raise RequestError(f"unknown mode {EMBED!r}: use one of {', '.join(MODES)}")
    return Request(
        specs,
        WeightsChoice(_cascade_name(cascade), revision, part_choices(parts)),
        checked_sampling(
            components_of(specs), steps=steps, timesteps=timesteps, guidance_scale=guidance_scale,
            noise_level=noise_level, scheduler=scheduler, thresholding=thresholding,
        ),
        loras(lora),
        given_embeddings(embeds),
        **flags,
        gallery=bool(rows),
        seed=common["seed"][0],
    )  # fmt: skip


def _check_given(texts: tuple[Any, ...], rows: tuple[Any, ...]) -> None:
    check_texts(texts)
    if not texts and not rows:
        raise RequestError("the prompt is empty: describe the image")
    if texts and rows:
        raise RequestError("prompts and lines exclude each other: give only one of them")
    for row in rows:
        if not isinstance(row, Mapping):
            raise RequestError(f"a line must be a mapping like {{'prompt': 'a fox'}}, not {row!r}")
        check_names(row)


def check_names(values: Iterable[Any], known: Collection[str] = ROW_NAMES) -> None:
    """Raise `RequestError` for a name that is not known; by default those of a row are."""
    if unknown := [str(name) for name in values if name not in known]:
        raise RequestError(
            f"unknown names {', '.join(map(repr, unknown))}: use {', '.join(sorted(known))}"
        )


def _cascade_name(cascade: str) -> str:
    """A name in the catalogue, or an absolute path: a run may be resumed from another directory."""
    if cascade not in catalog.CASCADES and (folder := existing_folder(cascade)):
        return str(folder)
    return canonical_name(cascade) or cascade


def _image(value: Any) -> Any:
    return None if value is None else picture_of(value, "image")


def _mask(values: Mapping[str, Any], own: Collection[str]) -> Picture | None:
    """The mask, with the part that it repaints; `own` are the values that were given for it alone."""
    invert, alpha = (values[name] for name in _MASKING)
    check_kinds({name: values[name] for name in _MASKING if values[name] is not None}, bool)
    if (given := values["mask"]) is not None:
        mask, image = picture_of(given, "mask"), values["image"]
        if values["mode"] != INPAINT or (image and image.size != mask.size):
            return mask  # `ImageSpec` says what is wrong, or a row says what it is for
        return mask_of(mask, invert=invert, alpha=alpha)
    for name in _MASKING:
        if name in own and values[name]:
            raise RequestError(f"{name} needs a mask")
    return None


_CHECKS: dict[str, Check] = {
    **{name: check for name, (_, check) in OPTIONS.items()},
    "prompt": checked_text,
    "images": lambda value: whole("images", value, 1, MOST),
    "image": _image,
}
"""Name of a value -> its check; seeds are checked with the number of prompts, masks with their image."""


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _CHECKS[name](value) if name in _CHECKS else value for name, value in values.items()
    }


def _of_rows(rows: Iterable[Mapping[str, Any]], common: Mapping[str, Any]) -> Iterator[ImageSpec]:
    first = 0
    for row in rows:
        own = _checked({name: value for name, value in row.items() if value is not None})
        values = {**common, **own}
        values["mask"] = _mask(values, own)
        values["seed"] = checked_seeds(values["seed"], values["images"], 1)
        specs = _numbered((values.get("prompt", ""),), values, first)
        yield from specs
        first += len(specs)


def _numbered(
    prompts: tuple[str, ...], values: Mapping[str, Any], first: int = 0
) -> tuple[ImageSpec, ...]:
    """The images of the prompts with their seeds, prompt by prompt, numbered from `first`."""
    seeds, images = values["seed"], values["images"]
    if first + len(seeds) * images > MOST:
        raise RequestError(f"one run draws at most {MOST} images: use several runs")
    own = {name: values[name] for name in OPTIONS}
    series = len(seeds) // len(prompts)
    pairs = [
        (prompts[n // series], seed + k) for n, seed in enumerate(seeds) for k in range(images)
    ]
    return tuple(
        ImageSpec(number, prompt, seed, **own)
        for number, (prompt, seed) in enumerate(pairs, start=first)
    )
