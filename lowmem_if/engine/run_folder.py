"""The run folder: the only state of a run. Everything in it is written whole or not at all.

run.json            format, versions, plan (with request and machine), status of every step
sources/            the user's pictures that the run begins with
embeds/             prompt embeddings
stage_1/ stage_2/ stage_3/   NNNN.safetensors and NNNN.png of every image
memory.jsonl        memory samples
notices.jsonl       what the user should know of the pictures
NNNN.png            finished images
in_making/          if asked for: NNNN.png, the image as it looks after some steps
gallery.html        of a batch, or if asked for: all images on a page; thumbs/ belongs to it
worker.log          what the libraries had to say
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_if.cascade.catalog import COMPONENT, IMAGE_STAGES, POSTPROCESS, component_name
from lowmem_if.engine.input_copies import KINDS, source_bytes, source_name
from lowmem_if.engine.library_versions import differences, installed_versions, that_change_pixels
from lowmem_if.errors import RunFolderError
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.request.image_spec import ImageSpec
from lowmem_if.system.file_operations import patiently, try_lock, unlock
from lowmem_if.system.paths import roomy
from lowmem_if.units import shorten
from lowmem_if.weights.files.atomic import is_partial, remove_partials, write_bytes

FORMAT = 1
_RECORD, _LOCK, _SOURCES = "run.json", ".lock", "sources"
_STAGE_FOLDERS = {stage: COMPONENT[stage].output_folder for stage in IMAGE_STAGES}
_RECORD_KEYS = {
    "versions": dict,
    "plan": dict,
    "steps": dict,
    "weights": dict,
    "log": list,
}
_PNG_END = b"IEND\xaeB`\x82"


class RunFolder:
    """One run on disk. Made by `for_plan` or `open`; changed only by whoever holds `locked()`."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self._record = record
        self.plan = Plan.from_json(record["plan"])
        self._noticed = dict.fromkeys(_read_notices(self._notices_file))

    @staticmethod
    def for_plan(path: Path, plan: Plan) -> RunFolder:
        """The folder of this plan: a new one, or one in which the very same request was begun.

        Raises:
            RunFolderError: it holds another request, other files, or cannot be written.
        """
        path = roomy(path)
        if RunFolder.begun(path):
            folder = RunFolder.open(path)
            folder.check_same(plan)
            return folder
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in path.iterdir() if not is_partial(entry)}
            strangers = sorted(names - {_LOCK, _SOURCES})
        if strangers:
            raise RunFolderError(
                f"{path} holds other files ({strangers[0]}): give --out a new or empty folder"
            )
        steps = {step.component: {"status": "pending"} for step in plan.steps}
        record = {"format": FORMAT, "versions": installed_versions(), "plan": plan.to_json(),
                  "steps": steps, "weights": {}, "log": []}  # fmt: skip
        folder = RunFolder(path, record)
        with folder.locked():
            if not (path / _RECORD).exists():
                folder._keep_sources()
                folder._save()
                for card in plan.machine.unused:
                    folder.note(card)
                return folder
        return RunFolder.for_plan(path, plan)  # somebody else was quicker

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether a run was begun in `path`.

        Raises:
            RunFolderError: it cannot be looked into, or no library could open files in it.
        """
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RunFolderError(
                f"{path!r} is not valid Unicode: give --out another name"
            ) from None
        with writing(path):
            return (roomy(path) / _RECORD).is_file()

    @staticmethod
    def open(path: Path) -> RunFolder:
        """An existing run folder, to continue or to look at.

        Raises:
            RunFolderError: it is none, cannot be read, or another format wrote it.
        """
        path = roomy(path)
        try:
            record = json.loads(patiently((path / _RECORD).read_bytes))
            other = record["format"]
            if other == FORMAT:
                return RunFolder(path, _checked(record))
        except FileNotFoundError:
            raise RunFolderError(f"{path} is no run folder: it has no {_RECORD}") from None
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{path / _RECORD} is broken ({error}): start a new folder"
            ) from error
        raise RunFolderError(
            f"{path} was written in format {other!r}, this version reads {FORMAT}: start a new folder"
        )

    def check_same(self, plan: Plan) -> None:
        """Raise `RunFolderError` unless `plan` asks for what this folder was begun for."""
        asked = {"request": plan.request, "pins": plan.pins, "prefer": plan.prefer}
        for name, value in asked.items():
            if value != getattr(self.plan, name):
                what = _first_difference(getattr(self.plan, name), value)
                raise RunFolderError(
                    f"{self.path} was begun for another request ({what}): give --out a new folder, "
                    "or continue it with `lowmem-if resume`"
                )

    def check_versions(self, *, others: bool = False, to_do: Iterable[Step] | None = None) -> str:
        """Compare the libraries that are installed with those that the run was begun with.

        Args:
            others: go on with other versions even where pixels could differ.
            to_do: the steps that other versions would do; None: those of the plan that are not done.

        Returns:
            What differs and why the run goes on all the same, for a notice; empty if nothing does.

        Raises:
            RunFolderError: what is still to be drawn depends on a version that has changed.
        """
        changed = differences(self._record["versions"])
        if not changed:
            return ""
        steps = [s for s in self.plan.steps if not self.is_done(s.component)]
        harmful = that_change_pixels(changed, steps if to_do is None else to_do)
        if harmful and not others:
            raise RunFolderError(
                f"{self.path} was begun with {'; '.join(changed[name] for name in harmful)}: pixels "
                "could differ; install that version, start a new folder, or go on all the same with "
                "--other-versions (`resume` and `continue` take it)"
            )
        effect = "pixels may differ in their last bits" if harmful else "pixels do not depend on it"
        words = "; ".join(changed.values())
        return f"the run goes on with other versions than it was begun with ({words}): {effect}"

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder; a second run in it is a `RunFolderError`.

        Yields the descriptor that holds the lock: whoever inherits it holds the folder too.
        """
        with writing(self.path):
            stream = (self.path / _LOCK).open("a+b")
        with stream:
            if not try_lock(stream.fileno()):
                raise RunFolderError(f"{self.path} is in use by another run: wait for it to end")
            try:
                yield stream.fileno()
            finally:
                unlock(stream.fileno())

    def reload(self) -> RunFolder:
        """The folder as another process has left it."""
        return RunFolder.open(self.path)

    @property
    def changed_ns(self) -> int:
        """When the record was last written, in nanoseconds since the epoch."""
        return (self.path / _RECORD).stat().st_mtime_ns

    @property
    def complete(self) -> bool:
        done = all(step["status"] == "done" for step in self._record["steps"].values())
        return done and len(self.images) == len(self.plan.request.images)

    def is_done(self, component: str) -> bool:
        return bool(self._record["steps"][component]["status"] == "done")

    def measured(self, component: str) -> dict[str, Any] | None:
        """What the step took: `vram_bytes`, `ram_bytes`, `seconds`; None before it ended.

        In a session also `warm_vram_bytes` and `warm_ram_bytes`: of the peaks, what other components
        took that stayed loaded beside it.
        """
        found: dict[str, Any] | None = self._record["steps"][component].get("measured")
        return found

    def released(self, component: str) -> dict[str, Any] | None:
        """What was left of the component after it left; None if it was not needed or not yet run."""
        found: dict[str, Any] | None = self._record["steps"][component].get("released")
        return found

    def stays(self, component: str) -> bool:
        """Whether a component was still loaded when its run was over: a session kept it."""
        return bool(self._record["steps"].get(component, {}).get("stays"))

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(self._noticed)

    @property
    def log(self) -> tuple[str, ...]:
        return tuple(self._record["log"])

    @property
    def versions(self) -> dict[str, str]:
        return dict(self._record["versions"])

    def prepare(self, *, previews: bool = False) -> None:
        """Remove what a killed writer left, and make the folders."""
        in_making = ("in_making",) if previews else ()
        with writing(self.path):
            remove_partials(self.path)
            for name in ("embeds", *_STAGE_FOLDERS.values(), *in_making):
                (self.path / name).mkdir(exist_ok=True)

    def finish_step(
        self,
        component: str,
        measured: Mapping[str, Any],
        released: Mapping[str, Any] | None,
        *,
        stays: bool = False,
    ) -> None:
        """Record a step as done, with what it took and what was left of it, or that it stays loaded."""
        self._record["steps"][component] = {
            "status": "done",
            "measured": dict(measured),
            "released": dict(released) if released is not None else None,
            **({"stays": True} if stays else {}),
        }
        self._save()

    def keep_release(self, component: str, released: Mapping[str, Any]) -> None:
        """Record what was left of a component that had stayed loaded after its step."""
        if self.stays(component):
            del self._record["steps"][component]["stays"]
            self._record["steps"][component]["released"] = dict(released)
            self._save()

    def note(self, text: str) -> bool:
        """Keep a notice for the user; False if it is there already."""
        if text in self._noticed:
            return False
        self._noticed[text] = None
        # Thousands of pictures may have one each: they are added, not all written again. A line that a
        # killed writer left unfinished must not take the next one along.
        with writing(self.path), self._notices_file.open("ab") as stream:
            stream.write(f"\n{json.dumps(text)}\n".encode())
        return True

    def check_weights(self, component: str, identity: str) -> None:
        """Raise `RunFolderError` if a component's files are not those that it worked with before."""
        if self._record["weights"].get(component, identity) != identity:
            raise RunFolderError(
                f"the files of {component} have changed since {self.path} was begun: "
                "put the old ones back or start a new folder"
            )

    def keep_weights(self, component: str, identity: str) -> None:
        """Remember which files a component works with, before its first result."""
        if self._record["weights"].get(component) != identity:
            self._record["weights"][component] = identity
            self._save()

    def replace_step(self, step: Step, why: str) -> None:
        """Go on with another step in place of the one of the same component; keep why."""
        steps = tuple(step if s.component == step.component else s for s in self.plan.steps)
        self.plan = replace(self.plan, steps=steps)
        self._record["plan"] = self.plan.to_json()
        self._record["log"].append(why)
        self._save()

    def take_on(self, plan: Plan) -> None:
        """Go on with another plan for more: its new steps, and the finishing, are to be done."""
        steps = {step.component: {"status": "pending"} for step in plan.steps}
        done = {name: step for name, step in self._record["steps"].items() if name != POSTPROCESS}
        self.plan = plan
        self._record["plan"] = plan.to_json()
        self._record["steps"] = steps | done
        self._save()

    def inherit(self, source: RunFolder, components: Iterable[str]) -> None:
        """Count these as done, with what they took where their results were copied from."""
        for component in components:
            if component in self._record["steps"] and not self.is_done(component):
                self._record["steps"][component] = source._record["steps"][component]
                if identity := source._record["weights"].get(component):
                    self._record["weights"][component] = identity
        self._save()

    def source_file(self, task: ImageSpec, kind: str) -> Path:
        """The picture that a task begins with, or its mask."""
        return self.path / _SOURCES / source_name(getattr(task, kind), kind)

    def embedding_file(self, text: str) -> Path:
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self.path / "embeds" / f"{digest}.safetensors"

    def tensor_file(self, stage: str, task: ImageSpec) -> Path:
        return self.path / _STAGE_FOLDERS[stage] / f"{task.name}.safetensors"

    def preview_file(self, stage: str, task: ImageSpec) -> Path:
        return self.path / _STAGE_FOLDERS[stage] / f"{task.name}.png"

    def image_file(self, task: ImageSpec) -> Path:
        return self.path / f"{task.name}.png"

    def thumbnail_file(self, task: ImageSpec) -> Path:
        return self.path / "thumbs" / f"{task.name}.jpg"

    def in_making_file(self, task: ImageSpec) -> Path:
        """What a picture looks like between two steps; gone once it is finished."""
        return self.path / "in_making" / f"{task.name}.png"

    @property
    def images(self) -> tuple[Path, ...]:
        """The finished pictures that are here."""
        files = [self.image_file(task) for task in self.plan.request.images]
        return tuple(file for file in files if is_whole_png(file))

    @property
    def memory_file(self) -> Path:
        return self.path / "memory.jsonl"

    @property
    def _notices_file(self) -> Path:
        return self.path / "notices.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "worker.log"

    def write(self, file: Path, content: bytes) -> None:
        """Write a file of this folder atomically; a full disk is a `RunFolderError`."""
        with writing(self.path):
            write_bytes(file, content)

    def _keep_sources(self) -> None:
        """Copy every picture of the request, each once; a broken one ends the run before it begins."""
        for task in self.plan.request.images:
            for kind in KINDS:
                if getattr(task, kind) is None or (file := self.source_file(task, kind)).exists():
                    continue
                content = source_bytes(task, kind)
                with writing(self.path):
                    file.parent.mkdir(exist_ok=True)
                self.write(file, content)

    def _save(self) -> None:
        text = json.dumps(self._record, ensure_ascii=False, indent=1)
        self.write(self.path / _RECORD, text.encode())


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record, if it has all that is read from it later; a KeyError or TypeError if not."""
    for name, kind in _RECORD_KEYS.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    for name in ("steps", "weights"):
        record[name] = {component_name(key): value for key, value in record[name].items()}
    for step in record["plan"]["steps"]:
        record["steps"][component_name(step["component"])]["status"]
    return record


def _read_notices(file: Path) -> Iterator[str]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in filter(None, lines):
        with suppress(ValueError):  # a writer that was killed
            yield json.loads(line)


def is_whole_png(file: Path) -> bool:
    """Whether a PNG is there to its very end."""
    try:
        with file.open("rb") as stream:
            stream.seek(-len(_PNG_END), os.SEEK_END)
            return stream.read() == _PNG_END
    except OSError:
        return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in plain words why a run folder cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            words = "the disk is full: free some space and continue with `lowmem-if resume`"
        else:
            words = f"it cannot be written ({error.strerror}): give --out another folder"
        raise RunFolderError(f"{path}: {words}") from error


def _first_difference(old: Any, new: Any, name: str = "") -> str:
    """What differs between two requests or preferences, down to one value of one image."""
    if is_dataclass(old) and type(old) is type(new):
        names = (field.name for field in fields(old) if field.compare)
        name = next(name for name in names if getattr(old, name) != getattr(new, name))
        return _first_difference(getattr(old, name), getattr(new, name), name)
    if name == "images" and len(old) == len(new):
        return _first_difference(
            *next(pair for pair in zip(old, new, strict=True) if pair[0] != pair[1])
        )
    if name == "images":
        return f"{len(old)} instead of {len(new)} images"
    # A list may be long, and an error is one line.
    before, after = (
        shorten(repr(value), 200) if name else value or "nothing" for value in (old, new)
    )
    return f"{name} {before} instead of {after}".strip()
