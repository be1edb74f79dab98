"""A run folder: made for a plan or opened, and changed by the process that holds its lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lowmem_if.engine.run_folder.embedding_copies import copies, restored
from lowmem_if.engine.run_folder.folder_layout import (
    EMBEDDINGS,
    LOCK,
    PREVIEWS,
    RECORD,
    SOURCES,
    STAGE_FOLDERS,
)
from lowmem_if.engine.run_folder.folder_state import FolderState
from lowmem_if.engine.run_folder.input_copies import inputs, source_bytes
from lowmem_if.engine.run_folder.library_versions import changed_versions, installed_versions
from lowmem_if.engine.run_folder.run_record import (
    Measured,
    Released,
    RunRecord,
    StepRecord,
    read_record,
)
from lowmem_if.engine.run_folder.same_request import request_difference
from lowmem_if.engine.run_folder.writing import lock, writing
from lowmem_if.errors import RunFolderError
from lowmem_if.planning.plan import Plan, Step
from lowmem_if.system.paths import roomy
from lowmem_if.weights.files.atomic import is_partial, remove_partials, write_bytes


class RunFolder(FolderState):
    """One run on disk. `for_plan` or `open` makes it; a process changes it only inside `locked()`."""

    @staticmethod
    def for_plan(path: Path, plan: Plan) -> RunFolder:
        """The folder of this plan: a new one, or one that was begun with the same request.

        Raises:
            RunFolderError: it holds another request or other files, or cannot be written.
        """
        path = roomy(path)
        if RunFolder.begun(path):
            folder = RunFolder.open(path)
            folder.check_same(plan)
            return folder
        _make_empty(path)
        folder = RunFolder(path, RunRecord.begin(plan, installed_versions()))
        with folder.locked():
            if not folder.record_file.exists():
                folder._copy_inputs()
                folder._save()
                for card in plan.machine.unused:
                    folder.note(card)
                return folder
        return RunFolder.for_plan(path, plan)  # another process has begun the run meanwhile

    @staticmethod
    def begun(path: Path) -> bool:
        """Whether a run was begun in `path`.

        Raises:
            RunFolderError: the path cannot be read, or the libraries could not open files in it.
        """
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RunFolderError(
                f"{path!r} is not valid Unicode: give --out another name"
            ) from None
        with writing(path):
            return (roomy(path) / RECORD).is_file()

    @staticmethod
    def open(path: Path) -> RunFolder:
        """An existing run folder, to resume or to show.

        Raises:
            RunFolderError: it is not a run folder, cannot be read, or is in another format.
        """
        path = roomy(path)
        return RunFolder(path, read_record(path / RECORD))

    def check_same(self, plan: Plan) -> None:
        """Raise `RunFolderError` unless `plan` has the request that this folder was begun with."""
        if what := request_difference(self.plan, plan):
            raise RunFolderError(
                f"{self.path} was begun for another request ({what}): give --out a new folder, "
                "or continue it with `lowmem-if resume`"
            )

    def check_versions(self, *, others: bool = False, to_do: Iterable[Step] | None = None) -> str:
        """Compare the installed libraries with those that the run was begun with.

        Args:
            others: accept other versions even where pixels could differ.
            to_do: the steps that other versions would run; None: the plan's steps that are not done.

        Returns:
            A notice: what differs, and its effect; empty if nothing differs.

        Raises:
            RunFolderError: the pixels of a step to do depend on a version that has changed.
        """
        steps = [s for s in self.plan.steps if not self.is_done(s.component)]
        harmful, words = changed_versions(self.versions, steps if to_do is None else to_do)
        if harmful and not others:
            raise RunFolderError(
                f"{self.path} was begun with {'; '.join(harmful)}: pixels could differ; install that "
                "version, start a new folder, or accept this one with --other-versions (`resume` and "
                "`continue` take it)"
            )
        return words

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder; a second run in it is a `RunFolderError`.

        Yields the descriptor that holds the lock: a process that inherits it holds the folder, too.
        """
        with lock(self.lock_file) as descriptor:
            yield descriptor

    def reload(self) -> RunFolder:
        """The folder as another process has left it."""
        return RunFolder.open(self.path)

    def prepare(self, *, previews: bool = False) -> None:
        """Remove partial files of a killed writer, and make the folders."""
        more = (PREVIEWS,) if previews else ()
        with writing(self.path):
            remove_partials(self.path)
            for name in (EMBEDDINGS, *STAGE_FOLDERS.values(), *more):
                (self.path / name).mkdir(exist_ok=True)

    def finish_step(
        self,
        component: str,
        measured: Measured,
        released: Released | None,
        *,
        kept_loaded: bool = False,
    ) -> None:
        """Record a step as done, with its peaks and its release, or that it is kept loaded."""
        stays = {"stays": True} if kept_loaded else {}
        step = StepRecord(status="done", measured=measured, released=released, **stays)
        self._change(self._record.with_step(component, step))

    def keep_release(self, component: str, released: Released) -> None:
        """Record the release of a component that had been kept loaded after its step."""
        if self.kept_loaded(component):
            step = self._record.steps[component]
            done = StepRecord(status=step.status, measured=step.measured, released=released)
            self._change(self._record.with_step(component, done))

    def note(self, text: str) -> bool:
        """Record a notice for the user; False if there is the same already."""
        return self._notices.add(text)

    def check_weights(self, component: str, fingerprint: str) -> None:
        """Raise `RunFolderError` if a component's files are not those that it worked with before."""
        if self._record.weights.get(component, fingerprint) != fingerprint:
            raise RunFolderError(
                f"the files of {component} have changed since {self.path} was begun: "
                "put the old ones back or start a new folder"
            )

    def keep_weights(self, component: str, fingerprint: str) -> None:
        """Record which files a component works with, before its first result."""
        if self._record.weights.get(component) != fingerprint:
            self._change(self._record.with_weights(component, fingerprint))

    def replace_step(self, step: Step, why: str) -> None:
        """Replace the plan's step of the same component, and record the reason."""
        steps = tuple(step if s.component == step.component else s for s in self.plan.steps)
        self._change(self._record.with_plan(replace(self.plan, steps=steps), why))

    def extend(self, plan: Plan) -> None:
        """Continue with a plan of more steps: the new ones and postprocessing are to be done."""
        self._change(self._record.extended(plan))

    def inherit(self, source: RunFolder, components: Iterable[str]) -> None:
        """Record components as done, with the figures of the run that their results are copied from."""
        record, theirs = self._record, source._record
        for component in components:
            if component in record.steps and not self.is_done(component):
                record = record.with_step(component, theirs.steps[component])
                if fingerprint := theirs.weights.get(component):
                    record = record.with_weights(component, fingerprint)
        self._change(record)

    def write(self, file: Path, content: bytes) -> None:
        """Write a file of this folder atomically; a full disk is a `RunFolderError`."""
        with writing(self.path):
            write_bytes(file, content)

    def restore_embeddings(self) -> None:
        """Copy the user's embeddings again that are lost or broken, if their file still exists."""
        for file, content in restored(self.plan, self.embedding_file):
            self._write_in_folder(file, content)

    def _copy_inputs(self) -> None:
        """Copy input pictures and embeddings; a broken one ends the run before it begins."""
        for spec, kind in inputs(self.plan.request.images):
            if not (file := self.source_file(spec, kind)).exists():
                self._write_in_folder(file, source_bytes(spec, kind))
        for file, content in copies(self.plan, self.embedding_file):
            self._write_in_folder(file, content)

    def _write_in_folder(self, file: Path, content: bytes) -> None:
        """Write a file whose folder may not exist yet."""
        with writing(self.path):
            file.parent.mkdir(exist_ok=True)
        self.write(file, content)

    def _change(self, record: RunRecord) -> None:
        self._record = record
        self._save()

    def _save(self) -> None:
        self.write(self.record_file, self._record.to_text().encode())


def _make_empty(path: Path) -> None:
    """Make a folder for a new run; only what an interrupted start left may be in it.

    Raises:
        RunFolderError: it holds other files, or cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir() if not is_partial(entry)}
    strangers = sorted(names - {LOCK, SOURCES, EMBEDDINGS})
    if strangers:
        raise RunFolderError(
            f"{path} holds other files ({strangers[0]}): give --out a new or empty folder"
        )
