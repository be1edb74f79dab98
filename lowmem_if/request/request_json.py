"""The JSON form of a request in run folders and plans: prompts with seeds, or one row per image.

The keys are those of version 0.1, which kept requests as the user typed them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from lowmem_if.cascade.locating.weights_choice import PartChoice
from lowmem_if.cascade.lora.adapter import Lora
from lowmem_if.request.build import ROW_NAMES, make_request
from lowmem_if.request.image_spec import OPTIONS, ImageSpec
from lowmem_if.request.pictures.input_images import WHITE, Picture
from lowmem_if.request.request import Request
from lowmem_if.request.texts.given_embeddings import GivenEmbeddings

_PICTURE = TypeAdapter(Picture)
_LORA = TypeAdapter(tuple[Lora, ...])
_EMBEDS = TypeAdapter(GivenEmbeddings | None)
_PARTS = TypeAdapter(tuple[PartChoice, ...])
_RUN_WIDE = ("cascade", "revision", "watermark", "safety_checker", "compile")
_EMPTY: dict[str, Any] = {name: default for name, (default, _) in OPTIONS.items()}
"""Run-wide values in a file whose rows set their own."""


def request_to_json(request: Request) -> dict[str, Any]:
    """The request as plain JSON data."""
    run_wide = {name: getattr(request, name) for name in _RUN_WIDE}
    images = _rows(request) if request.gallery else _prompts(request)
    sampling = asdict(request.sampling)
    if not sampling["fast"]:  # other requests are as version 0.1 wrote them
        del sampling["fast"]
    data = images | run_wide | sampling | {"lora": [asdict(one) for one in request.lora]}
    if parts := request.weights.parts:
        data["parts"] = [asdict(part) for part in parts]
    if request.embeds is not None:
        data["embeds"] = request.embeds
    found: dict[str, Any] = to_jsonable_python(data)
    return found


def request_from_json(data: Mapping[str, Any]) -> Request:
    """The request that `request_to_json` or version 0.1 wrote.

    Raises:
        RequestError, pydantic.ValidationError, TypeError, LookupError: `data` is not such a request.
    """
    rows = [
        {name: value for name, value in _pictures(row).items() if value is not None}
        for row in data.get("lines", ())
    ]
    known = {name: value for name, value in data.items() if name in _KNOWN}
    lora = _LORA.validate_python(data.get("lora", ()))
    embeds = _EMBEDS.validate_python(data.get("embeds"))
    parts = {part.component: part for part in _PARTS.validate_python(data.get("parts", ()))}
    request = make_request(
        **{**_pictures(known), "lines": rows, "lora": lora, "embeds": embeds, "parts": parts}
    )
    return request.faster() if data.get("fast") is True else request


_KNOWN = {*ROW_NAMES, *_RUN_WIDE, "prompts", "steps", "timesteps", "guidance_scale", "noise_level",
          "scheduler", "thresholding"} - {"prompt"}  # fmt: skip


def _pictures(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: values[name] for name in ("image", "mask") if values.get(name) is not None}
    # A file of version 0.2 does not say what its masks repaint: white.
    if "mask" in found:
        found["mask"] = {"repaints": WHITE, **found["mask"]}
    return {**values, **{name: _PICTURE.validate_python(v) for name, v in found.items()}}


def _own(spec: ImageSpec) -> dict[str, Any]:
    values = asdict(spec)
    for picture in filter(None, (values["image"], values["mask"])):
        del picture["content"]  # the run folder has a copy
    del (values["image"] or {"repaints": ""})["repaints"]
    return {name: values[name] for name in OPTIONS}


def _prompts(request: Request) -> dict[str, Any]:
    """The keys for images that differ only in prompt and seed."""
    groups = [
        (prompt, [spec.seed for spec in specs])
        for prompt, specs in groupby(request.images, key=lambda spec: spec.prompt)
    ]
    counts, first = {len(seeds) for _, seeds in groups}, request.images[0]
    count = max(counts)
    if len(counts) > 1:
        prompts, seeds, images = [s.prompt for s in request.images], _seeds(request), 1
    elif all(seeds == [*range(seeds[0], seeds[0] + count)] for _, seeds in groups):
        prompts, seeds, images = [p for p, _ in groups], [own[0] for _, own in groups], count
    else:
        prompts, seeds, images = [p for p, _ in groups], _seeds(request), 1
    return {"prompts": prompts, "seed": seeds, "images": images, "lines": [], **_own(first)}


def _seeds(request: Request) -> list[int]:
    return [spec.seed for spec in request.images]


def _rows(request: Request) -> dict[str, Any]:
    """The keys for images that each have a row."""
    rows = [
        {"prompt": spec.prompt, "seed": [spec.seed], "images": 1, **_own(spec)}
        for spec in request.images
    ]
    return {
        "prompts": [], "seed": [request.seed], "images": 1, **_EMPTY, "size": request.size,
        "lines": rows,
    }  # fmt: skip
