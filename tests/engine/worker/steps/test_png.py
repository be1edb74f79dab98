"""Finished images carry their description as international text."""

from __future__ import annotations

import io
import json

from PIL import Image

from lowmem_if.engine.worker.steps.png import png_bytes


def test_a_description_is_read_back_from_the_file() -> None:
    """Texts as they are, everything else as JSON; the pixels are those of the image."""
    image = Image.linear_gradient("L").convert("RGB")
    content = png_bytes(image, {"prompt": "ein roter Kreis – ü", "request": {"seed": 3}})
    with Image.open(io.BytesIO(content)) as read:
        read.load()
        assert read.info["prompt"] == "ein roter Kreis – ü"
        assert json.loads(read.info["request"]) == {"seed": 3}
        assert read.tobytes() == image.tobytes()


def test_a_preview_has_no_description() -> None:
    """Nothing but pixels is in it."""
    with Image.open(io.BytesIO(png_bytes(Image.new("RGB", (4, 4))))) as read:
        read.load()
        assert read.info == {}
