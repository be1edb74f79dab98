"""The typed record of a run: it writes the JSON that it has read, and reports what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import plan_of

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, TEXT_ENCODER
from lowmem_if.engine.run_folder.run_record import (
    FORMAT,
    Measured,
    Released,
    RunRecord,
    StepRecord,
    read_record,
)
from lowmem_if.errors import RunFolderError

MEASURED = {"vram_bytes": 0, "ram_bytes": 700, "seconds": 1.25}
WARM = {"warm_vram_bytes": 0, "warm_ram_bytes": 300}
RELEASED = {
    "alive": ["unet"], "ram_left_bytes": 1, "vram_left_bytes": 2, "allowed_bytes": 3,
    "reserved_left_bytes": 4, "driver_left_bytes": 5,
}  # fmt: skip
DONE = {"status": "done", "measured": MEASURED, "released": None}


def new_record() -> RunRecord:
    return RunRecord.begin(plan_of("demo", size=64), {"torch": "2.13.0"})


def data_with(**steps: Any) -> dict[str, Any]:
    data = json.loads(new_record().to_text())
    return data | {"steps": data["steps"] | steps}


def written(file: Path, data: object) -> Path:
    file.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


def test_a_new_record_has_the_keys_of_format_1_in_their_order() -> None:
    """A step that is pending has its status only."""
    data = json.loads(new_record().to_text())
    assert list(data) == ["format", "versions", "plan", "steps", "weights", "log"]
    assert data["format"] == FORMAT == 1
    assert data["steps"] == {
        name: {"status": "pending"} for name in (TEXT_ENCODER, STAGE_1, POSTPROCESS)
    }
    assert data["plan"] == plan_of("demo", size=64).to_json()


@pytest.mark.parametrize(
    "step",
    [
        {"status": "pending"},
        {"status": "done"},
        DONE,
        DONE | {"released": RELEASED},
        DONE | {"released": {name: RELEASED[name] for name in list(RELEASED)[:4]}},
        DONE | {"measured": MEASURED | WARM, "stays": True},
        DONE | {"a_later_key": 1, "measured": MEASURED | {"a_later_key": 2}},
    ],
)
def test_what_is_read_is_written_back_to_the_byte(tmp_path: Path, step: dict[str, Any]) -> None:
    """With the keys that were there and no others, in their order."""
    file = written(tmp_path / "run.json", data_with(stage_1=step))
    assert read_record(file).to_text() == file.read_text(encoding="utf-8")


def test_the_parts_of_a_step_are_written_as_they_were_made() -> None:
    """A measurement without warm components has no warm keys; `stays` is there only if true."""
    step = StepRecord(
        status="done",
        measured=Measured(vram_bytes=0, ram_bytes=700, seconds=1.25),
        released=Released(alive=("unet",), ram_left_bytes=1, vram_left_bytes=2, allowed_bytes=3),
    )
    data = json.loads(new_record().with_step(STAGE_1, step).to_text())["steps"][STAGE_1]
    assert data["measured"] == MEASURED
    assert list(data) == ["status", "measured", "released"]
    assert data["released"] == {name: RELEASED[name] for name in list(RELEASED)[:4]}


def test_a_steps_own_peak_excludes_components_that_were_kept_loaded() -> None:
    """Each kind of memory has its own share; it is never negative."""
    measured = Measured(
        vram_bytes=5, ram_bytes=700, seconds=1, warm_vram_bytes=9, warm_ram_bytes=300
    )
    assert (measured.own_bytes("ram"), measured.warm_bytes("ram")) == (400, 300)
    assert (measured.own_bytes("vram"), measured.warm_bytes("vram")) == (0, 9)


def test_old_names_of_components_are_read_in_steps_and_weights(tmp_path: Path) -> None:
    """Version 0.1 called postprocessing `finish`."""
    data = data_with(finish=DONE)
    del data["steps"][POSTPROCESS]
    record = read_record(written(tmp_path / "run.json", data | {"weights": {"finish": "ab"}}))
    assert record.steps[POSTPROCESS].status == "done"
    assert record.weights == {POSTPROCESS: "ab"}


@pytest.mark.parametrize(
    ("step", "place"),
    [
        (DONE | {"status": "half"}, "steps.stage_1.status"),
        (DONE | {"measured": {"vram_bytes": 0}}, "steps.stage_1.measured.ram_bytes"),
        (DONE | {"released": RELEASED | {"alive": 3}}, "steps.stage_1.released.alive"),
        (5, "steps.stage_1"),
    ],
)
def test_a_damaged_step_is_named_in_one_line(tmp_path: Path, step: object, place: str) -> None:
    """The message says where in the file the damage is."""
    file = written(tmp_path / "run.json", data_with(stage_1=step))
    with pytest.raises(
        RunFolderError, match=rf"is broken \({place}: [^\n]+\): start a new folder$"
    ):
        read_record(file)
