"""Images as PNG files, and the description inside the finished ones."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.input_copies import KINDS
from lowmem_if.planning.plan_json import flat_step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.request.request_json import request_to_json


def png_bytes(image: Image.Image, description: Mapping[str, object] | None = None) -> bytes:
    """An image as PNG, with its description as international text."""
    info = PngInfo()
    for key, value in (description or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        info.add_itxt(key, text)
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def describe(folder: RunFolder, task: ImageSpec) -> dict[str, object]:
    """What a finished image says about itself, and nothing about other images of the run.

    It is the same when a run is resumed. Of paths it has the names alone.
    """
    whole = folder.plan.request
    request = request_to_json(whole.alone(task))
    for source in filter(None, (request[kind] for kind in KINDS)):
        source["path"] = Path(source["path"]).name
    for part in request.get("parts", ()):
        source = Path(part["source"])
        part["source"] = source.name if source.is_absolute() else part["source"]
    steps = [flat_step(asdict(step)) for step in folder.plan.steps]
    for lora in (one for user in (request, *steps) for one in user["lora"]):
        lora["path"] = Path(lora["path"]).name
    return {
        "prompt": task.prompt,
        "seed": task.seed,
        "cascade": whole.cascade,
        "request": request,
        "plan": steps,
        "versions": folder.versions,
    }
