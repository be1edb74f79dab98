"""Run folders that version 0.1 began: opened, shown, resumed and continued."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import CPU, run_here

from lowmem_if.cascade.catalog import POSTPROCESS, component_name
from lowmem_if.cascade.strategies import RESIDENT, Pin, parse_pins
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import RequestError
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.report.tables import console, print_run
from lowmem_if.request.build import make_request

HERE = Path(__file__).parent / "version_0_1"
"""`run.json` as commit 6081834 wrote it for the demo cascade, 64 pixels and two steps, nothing drawn."""

LINES: list[dict[str, Any]] = [
    {"prompt": "a red circle"},
    {"prompt": "a blue star", "negative_prompt": "red", "seed": 9, "images": 2},
]
ASKED: dict[str, dict[str, Any]] = {
    "prompts": {"prompts": ("a red circle", "a blue star"), "images": 2},
    "lines": {"lines": LINES},
}


def begun(kind: str, path: Path) -> RunFolder:
    path.mkdir()
    shutil.copy(HERE / f"{kind}.json", path / "run.json")
    return RunFolder.open(path)


def pixels(folder: RunFolder) -> list[bytes]:
    return [Image.open(file).tobytes() for file in folder.images]


@pytest.mark.parametrize("kind", ASKED)
def test_a_request_of_version_0_1_reads_as_the_images_it_stood_for(
    tmp_path: Path, kind: str
) -> None:
    """Prompts times seeds and lines of a batch; what is written now reads back the same."""
    plan = begun(kind, tmp_path / "run").plan
    assert plan.request == make_request(**ASKED[kind], cascade="demo", seed=7, size=64, steps=2)
    assert plan.request.gallery == (kind == "lines")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("kind", ASKED)
def test_the_keys_of_version_0_1_are_still_written(tmp_path: Path, kind: str) -> None:
    """Of the plan, its request and its steps; in a line only the aspect is new, in a step two more."""
    old = json.loads((HERE / f"{kind}.json").read_text())["plan"]
    new = begun(kind, tmp_path / "run").plan.to_json()
    assert new.keys() == old.keys() | {"automatic"}
    assert new["request"].keys() == old["request"].keys()
    for before, after in zip(old["steps"], new["steps"], strict=True):
        assert after.keys() == before.keys() | {"decoding", "layout"}
        assert after["component"] == component_name(before["component"])
        assert after["predicted"] == before["predicted"]
    for line in new["request"]["lines"]:
        assert line.keys() == {*old["request"]["lines"][0], "aspect"}
    if kind == "prompts":
        assert new["request"] == old["request"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ASKED)
def test_a_run_of_version_0_1_resumes_and_continues(tmp_path: Path, kind: str) -> None:
    """The pixels are those of a run that is begun now, at 64 pixels and enlarged to 256."""
    old = begun(kind, tmp_path / "run")
    old = run_here(old.plan, old.path)
    assert old.complete
    shown = io.StringIO()
    print_run(old, console(shown))
    assert "image(s)" in shown.getvalue()
    request = make_request(**ASKED[kind], cascade="demo", seed=7, size=64, steps=2)
    new = run_here(make_plan(CPU, request, prefer="exact"), tmp_path / "new")
    assert pixels(old) == pixels(new)
    larger = [continued(run, [1], 256, CPU, other_versions=True) for run in (old, new)]
    drawn = [run_here(run.plan, run.path) for run in larger]
    assert pixels(drawn[0]) == pixels(drawn[1])


def test_the_postprocess_step_has_another_name_than_in_version_0_1(tmp_path: Path) -> None:
    """`finish` in old pins, plans, records and on the command line means `postprocess`."""
    folder = begun("prompts", tmp_path / "run")
    assert folder.plan.pins == {POSTPROCESS: "resident"}
    assert not folder.is_done(POSTPROCESS)
    assert folder.plan.step(POSTPROCESS).config.device == "cpu"
    assert parse_pins(["finish=resident"]) == {POSTPROCESS: Pin(RESIDENT)}
    with pytest.raises(RequestError, match="postprocess is pinned twice"):
        parse_pins(["finish=resident", "postprocess=resident"])
    plan = make_plan(CPU, folder.plan.request, pins={"finish": Pin(RESIDENT)})
    assert plan.pins == folder.plan.pins
