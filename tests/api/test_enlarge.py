"""Choose, then enlarge: the pixels of a run that went all the way, and nothing drawn twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import CPU, kinds, plan_of, run_here
from safetensors.torch import load_file

from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER, UPSCALER
from lowmem_if.cli.main import main
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.executor import work
from lowmem_if.errors import RequestError, RunFolderError

SERIES: dict[str, Any] = {"seed": range(1, 5), "negative_prompt": "blue"}


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four small pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWMEM_IF_CACHE", str(tmp_path_factory.mktemp("cache")))
        plan = plan_of(tiny, size=64, **SERIES)
        return run_here(plan, tmp_path_factory.mktemp("small") / "run").path


@pytest.fixture(scope="module")
def large(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, taken all the way at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWMEM_IF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_here(plan_of(tiny, **SERIES), tmp_path_factory.mktemp("large") / "run").path


@pytest.fixture
def source(small: Path, tmp_path: Path) -> RunFolder:
    """A copy of the finished run, to be changed."""
    shutil.copytree(small, tmp_path / "source")
    return RunFolder.open(tmp_path / "source")


def finish(folder: RunFolder) -> list[Event]:
    """Do what is left, in this process."""
    events: list[Event] = []
    work(folder, events.append)
    return events


def assert_same(ours: Path, number: int, theirs: Path, other: int, *stages: str) -> None:
    for stage in stages:
        tensors = (
            load_file(path / stage / f"{n:04}.safetensors")["tensor"]
            for path, n in ((ours, number), (theirs, other))
        )
        assert torch.equal(*tensors), stage
    mine, yours = (p / f"{n:04}.png" for p, n in ((ours, number), (theirs, other)))
    assert mine.read_bytes()[:33] == yours.read_bytes()[:33]  # the same size and kind of picture


def test_picked_pictures_in_a_new_folder_are_those_of_one_go(
    source: RunFolder, large: Path, tmp_path: Path
) -> None:
    """Bit for bit, in the order they were picked, without text encoder and stage 1."""
    folder = continued(source, [3, 1], 1024, CPU, tmp_path / "chosen")
    events = finish(folder)
    assert kinds(events, "started") == [STAGE_2, UPSCALER, POSTPROCESS]
    assert kinds(events, "skipped") == [TEXT_ENCODER, STAGE_1]
    for number, old in enumerate((3, 1)):
        assert_same(folder.path, number, large, old, "stage_1", "stage_2", "stage_3")
    assert folder.reload().complete
    assert source.reload().complete


def test_picked_pictures_grow_in_their_own_folder(source: RunFolder, large: Path) -> None:
    """Under their numbers; the others stay as they are, and so does what they were drawn with."""
    others = [source.path / f"{n:04}.png" for n in (0, 1, 3)]
    before = [file.read_bytes() for file in others]
    folder = continued(source, [2], 1024, CPU)
    assert not folder.complete
    events = finish(folder)
    assert kinds(events, "started") == [STAGE_2, UPSCALER, POSTPROCESS]
    assert kinds(events, "saved") == [STAGE_2, UPSCALER, POSTPROCESS]
    assert_same(folder.path, 2, large, 2, "stage_1", "stage_2", "stage_3")
    assert [file.read_bytes() for file in others] == before
    assert [task.size for task in folder.plan.request.images] == [64, 64, 1024, 64]


def test_pictures_can_be_taken_on_twice(source: RunFolder, large: Path, tmp_path: Path) -> None:
    """64 to 256, then 256 to 1024; and what was left behind can follow later."""
    middle = continued(source, [0, 3], 256, CPU)
    finish(middle)
    folder = continued(middle.reload(), [3], 1024, CPU, tmp_path / "chosen")
    assert kinds(finish(folder), "started") == [UPSCALER, POSTPROCESS]
    assert_same(folder.path, 0, large, 3, "stage_2", "stage_3")
    later = continued(middle.reload(), [1], 256, CPU)
    assert kinds(finish(later), "saved") == [STAGE_2, POSTPROCESS]


def test_pictures_of_the_user_go_along(tiny: Path, tmp_path: Path) -> None:
    """A varied picture goes on in a new folder when the picture it began with is long gone."""
    own = tmp_path / "own.png"
    Image.linear_gradient("L").resize((48, 48)).convert("RGB").save(own)
    asked = {"mode": "vary", "image": own, "strength": 0.5, "seed": 5}
    whole = run_here(plan_of(tiny, size=256, **asked), tmp_path / "whole").path
    source = run_here(plan_of(tiny, size=64, **asked), tmp_path / "small")
    own.unlink()
    folder = continued(source, [0], 256, CPU, tmp_path / "chosen")
    assert kinds(finish(folder), "started") == [STAGE_2, POSTPROCESS]
    assert_same(folder.path, 0, whole, 0, "stage_1", "stage_2")


def test_a_run_killed_before_it_was_taken_on_is_the_old_one(source: RunFolder) -> None:
    """The small picture goes before the record changes: then the old run makes it once more."""
    picture = source.path / "0002.png"
    content = picture.read_bytes()
    picture.unlink()
    assert kinds(finish(source.reload()), "saved") == [POSTPROCESS]
    assert picture.read_bytes() == content


def test_copying_that_was_broken_off_is_done_again(
    source: RunFolder, large: Path, tmp_path: Path
) -> None:
    """The same command goes on; what was half copied is no obstacle."""
    out = tmp_path / "chosen"
    folder = continued(source, [3, 1], 256, CPU, out)
    for file in (folder.path / "stage_1").iterdir():
        file.unlink()
    again = continued(source, [3, 1], 256, CPU, out)
    assert kinds(finish(again), "started") == [STAGE_2, POSTPROCESS]
    assert again.reload().complete


def test_lost_pictures_of_stage_1_are_drawn_again(source: RunFolder, large: Path) -> None:
    """A chosen picture whose tensor is gone costs a stage, not the run."""
    (source.path / "stage_1" / "0001.safetensors").unlink()
    folder = continued(source, [1], 256, CPU)
    assert STAGE_1 in kinds(finish(folder), "started")
    ours, theirs = (
        load_file(path / "stage_2" / "0001.safetensors")["tensor"] for path in (folder.path, large)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("numbers", "size", "words"),
    [
        ([4], 256, "there is no image 4: pick numbers from 0 to 3"),
        ([-1], 256, "there is no image -1"),
        ([], 256, "no image is picked"),
        ([0], 64, "has 64 pixels: give a larger --size"),
        ([0], 65, "not one of 64, 256 and 1024"),
    ],
)
def test_what_cannot_go_on_is_told(
    source: RunFolder, numbers: list[int], size: int, words: str
) -> None:
    """And nothing is changed."""
    before = (source.path / "run.json").read_bytes()
    with pytest.raises(RequestError, match=words):
        continued(source, numbers, size, CPU)
    assert (source.path / "run.json").read_bytes() == before


def test_an_unfinished_run_is_to_be_finished_first(source: RunFolder) -> None:
    """With the command that does it."""
    (source.path / "0000.png").unlink()
    with pytest.raises(RunFolderError, match="not finished: `lowmem-if resume"):
        continued(source, [1], 256, CPU)


def test_a_new_folder_must_be_new(source: RunFolder, small: Path) -> None:
    """Another run's folder is left alone."""
    with pytest.raises(RunFolderError, match="begun for another request"):
        continued(source, [1], 256, CPU, small)


def test_the_command_tells_what_it_was_given_wrong(
    source: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and a known exit code."""
    for pick, words in (
        ("x", "picture 'x' is not"),
        ("9", "no image 9"),
        ("3..1", "not a rising series"),
    ):
        assert main(["continue", str(source.path), "--pick", pick]) == 2
        assert words in capsys.readouterr().err
