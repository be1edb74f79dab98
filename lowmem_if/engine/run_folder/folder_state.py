"""What a run folder knows about its run: the plan, the finished steps, pictures and notices."""

from __future__ import annotations

from pathlib import Path

from lowmem_if.engine.run_folder.folder_layout import FolderLayout, is_whole_png
from lowmem_if.engine.run_folder.notices import Notices
from lowmem_if.engine.run_folder.run_record import Measured, Released, RunRecord
from lowmem_if.planning.plan import Plan


class FolderState(FolderLayout):
    """The state of a run, as its folder had it when it was opened. Nothing is changed here."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        super().__init__(path)
        self._record = record
        self._notices = Notices(self.notices_file)

    @property
    def plan(self) -> Plan:
        return self._record.plan

    @property
    def changed_ns(self) -> int:
        """When the record was last written, in nanoseconds since the epoch."""
        return self.record_file.stat().st_mtime_ns

    @property
    def complete(self) -> bool:
        done = all(step.status == "done" for step in self._record.steps.values())
        return done and len(self.images) == len(self.plan.request.pictures)

    def is_done(self, component: str) -> bool:
        return self._record.steps[component].status == "done"

    def measured(self, component: str) -> Measured | None:
        """The peaks and the seconds of a step; None before it has ended."""
        return self._record.steps[component].measured

    def released(self, component: str) -> Released | None:
        """What was left of a component after its release; None if there was no release."""
        return self._record.steps[component].released

    def kept_loaded(self, component: str) -> bool:
        """Whether a component was still loaded when its run ended, because a session kept it."""
        step = self._record.steps.get(component)
        return step is not None and step.stays

    @property
    def images(self) -> tuple[Path, ...]:
        """The finished pictures that exist."""
        files = [self.image_file(spec) for spec in self.plan.request.pictures]
        return tuple(file for file in files if is_whole_png(file))

    @property
    def notices(self) -> tuple[str, ...]:
        return self._notices.texts

    @property
    def log(self) -> tuple[str, ...]:
        return self._record.log

    @property
    def versions(self) -> dict[str, str]:
        return dict(self._record.versions)
