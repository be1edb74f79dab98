"""The names of the files in a run folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from lowmem_if.cascade.catalog import COMPONENT, IMAGE_STAGES
from lowmem_if.engine.run_folder.input_copies import source_name
from lowmem_if.request.image_spec import ImageSpec

RECORD, LOCK, SOURCES, EMBEDDINGS, PREVIEWS = "run.json", ".lock", "sources", "embeds", "in_making"
STAGE_FOLDERS = {stage: COMPONENT[stage].output_folder for stage in IMAGE_STAGES}
_PNG_END = b"IEND\xaeB`\x82"


class FolderLayout:
    """Where the files of a run are. Nothing is read or written here."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def record_file(self) -> Path:
        return self.path / RECORD

    @property
    def lock_file(self) -> Path:
        return self.path / LOCK

    @property
    def memory_file(self) -> Path:
        return self.path / "memory.jsonl"

    @property
    def notices_file(self) -> Path:
        return self.path / "notices.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "worker.log"

    def source_file(self, spec: ImageSpec, kind: str) -> Path:
        """The input picture of an image, or its mask."""
        return self.path / SOURCES / source_name(getattr(spec, kind), kind)

    def embedding_file(self, text: str) -> Path:
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self.path / EMBEDDINGS / f"{digest}.safetensors"

    def tensor_file(self, stage: str, spec: ImageSpec) -> Path:
        return self.path / STAGE_FOLDERS[stage] / f"{spec.name}.safetensors"

    def preview_file(self, stage: str, spec: ImageSpec) -> Path:
        return self.path / STAGE_FOLDERS[stage] / f"{spec.name}.png"

    def image_file(self, spec: ImageSpec) -> Path:
        return self.path / f"{spec.name}.png"

    def thumbnail_file(self, spec: ImageSpec) -> Path:
        return self.path / "thumbs" / f"{spec.name}.jpg"

    def in_making_file(self, spec: ImageSpec) -> Path:
        """The preview between two denoising steps; it is removed when the image is finished."""
        return self.path / PREVIEWS / f"{spec.name}.png"


def is_whole_png(file: Path) -> bool:
    """Whether a PNG file exists and is complete to its end."""
    try:
        with file.open("rb") as stream:
            stream.seek(-len(_PNG_END), os.SEEK_END)
            return stream.read() == _PNG_END
    except OSError:
        return False
