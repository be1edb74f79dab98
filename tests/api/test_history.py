"""The runs on this disk: listed with their state, and cleaned of what only enlarging needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs import CPU, kinds, plan_of, results, run_here

import lowmem_if as lm
from lowmem_if.api import history
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, STAGE_2, TEXT_ENCODER
from lowmem_if.cli.main import main
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.events import Event
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import RunFolderError

RED, BLUE = "a red circle on a blue background, seen from very far away", "a blue star"


@pytest.fixture(scope="module")
def drawn(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "done"
    return run_here(plan_of(tiny, [RED, BLUE], size=64), path).path


@pytest.fixture
def done(drawn: Path, tmp_path: Path) -> RunFolder:
    """A finished run of two small pictures in `runs/done`."""
    return RunFolder.open(Path(shutil.copytree(drawn, tmp_path / "runs" / "done")))


@pytest.fixture
def begun(tiny: Path, done: RunFolder) -> RunFolder:
    """A run beside it in which nothing was drawn."""
    return RunFolder.for_plan(done.path.with_name("begun"), plan_of(tiny, BLUE, size=64))


def test_runs_are_listed_with_state_and_size(done: RunFolder, begun: RunFolder) -> None:
    """The last changed is the first; strangers and folders without a run are left out."""
    (done.path.parent / "other").mkdir()
    newest, oldest = lm.list_runs([done.path.parent])
    assert (newest.folder, newest.state, newest.images_done, newest.images) == (
        begun.path, "unfinished", 0, 1,
    )  # fmt: skip
    assert (oldest.folder, oldest.state, oldest.images_done, oldest.images) == (
        done.path, "complete", 2, 2,
    )  # fmt: skip
    assert oldest.prompt == RED
    files = [file for file in done.path.rglob("*") if file.is_file()]
    assert oldest.size_bytes == sum(file.stat().st_size for file in files)
    assert 0 < oldest.tensor_bytes < oldest.size_bytes
    assert newest.tensor_bytes == 0
    assert lm.list_runs([done.path, done.path.parent]) == (newest, oldest), "each once"


def test_runs_in_use_and_broken_ones_are_listed_too(done: RunFolder, begun: RunFolder) -> None:
    """Nothing that is on the disk is hidden."""
    begun.record_file.write_text("{")
    with done.locked():
        states = {run.folder.name: run.state for run in lm.list_runs([done.path.parent])}
    assert states == {"done": "in use", "begun": "unreadable"}


def test_cleaning_frees_what_it_says_and_keeps_the_pictures(done: RunFolder) -> None:
    """The run is complete as before, and a second time there is nothing to free."""
    (before,) = lm.list_runs([done.path])
    pictures = {file: file.read_bytes() for file in done.path.rglob("*.png")}
    assert lm.clean(done.path) == before.tensor_bytes > 0
    (after,) = lm.list_runs([done.path])
    # The lock file has the number of the last process.
    assert after.size_bytes == pytest.approx(before.size_bytes - before.tensor_bytes, abs=10)
    assert (after.state, after.tensor_bytes) == ("complete", 0)
    assert {file: file.read_bytes() for file in done.path.rglob("*.png")} == pictures
    assert not list(done.path.rglob("*.safetensors"))
    assert lm.resume(done.path).images == done.images
    assert lm.write_gallery(done.reload()).is_file()
    assert lm.clean(done.path) == 0


def test_what_is_not_finished_or_in_use_is_not_cleaned(
    done: RunFolder, begun: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says why, and nothing is removed."""
    before = results(done.path)
    with pytest.raises(RunFolderError, match="not finished and needs its tensors"):
        lm.clean(begun.path)
    with done.locked(), pytest.raises(RunFolderError, match="in use by another run"):
        lm.clean(done.path)
    assert results(done.path) == before
    with pytest.raises(RunFolderError, match="no run folder"):
        lm.clean(done.path.parent)


def test_a_cleaned_run_is_enlarged_in_a_new_folder_only(
    tiny: Path, done: RunFolder, tmp_path: Path
) -> None:
    """The chosen picture is drawn again there, with the same bits; in place all of them would be."""
    from lowmem_if.engine.worker.executor import work

    whole = run_here(plan_of(tiny, [RED, BLUE], size=256), tmp_path / "whole")
    lm.clean(done.path)
    with pytest.raises(RunFolderError, match="give --out a new folder"):
        continued(done, [1], 256, CPU)
    assert done.reload().complete
    events: list[Event] = []
    folder = continued(done, [1], 256, CPU, tmp_path / "larger", report=events.append)
    assert [event.kind for event in events] == ["planned", "notice"]
    work(folder, events.append)
    assert kinds(events, "started") == [TEXT_ENCODER, STAGE_1, STAGE_2, POSTPROCESS]
    theirs = results(whole.path)
    for stage in ("stage_1", "stage_2"):
        tensor = (folder.path / stage / "0000.safetensors").read_bytes()
        assert tensor == theirs[f"{stage}/0001.safetensors"]


def test_embeddings_that_are_the_result_are_kept(tiny: Path, tmp_path: Path) -> None:
    """A run that only encodes has nothing else."""
    folder = run_here(plan_of(tiny, [RED], mode="embed", size=64), tmp_path / "texts")
    assert lm.clean(folder.path) == 0
    assert folder.reload().complete
    (listed,) = lm.list_runs([folder.path])
    assert (listed.images, listed.state) == (0, "complete")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Unlike the default one, which may not exist yet."""
    with pytest.raises(RunFolderError, match="cannot be listed"):
        history.list_runs([tmp_path / "nowhere"])


def test_the_commands_print_a_table_json_and_what_was_freed(
    done: RunFolder, begun: RunFolder, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without a folder, `runs` is looked at."""
    monkeypatch.chdir(done.path.parent.parent)
    assert main(["runs"]) == 0
    heading, first, second, total = capsys.readouterr().out.splitlines()
    assert heading.split() == ["changed", "run", "folder", "prompt", "pictures", "state", "size"]
    assert "0 of 1" in first
    assert "unfinished" in first
    assert f"{RED[:37]}..." in second
    assert "2 of 2" in second
    assert total.startswith("2 runs, ")
    assert main(["runs", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["state"] for row in rows] == ["unfinished", "complete"]
    assert Path(rows[1]["folder"]) == Path("runs/done")
    assert main(["clean", "runs/done"]) == 0
    freed = capsys.readouterr().out
    assert freed.startswith("runs/done: ")
    assert freed.endswith(" freed\n")
    assert main(["clean", "runs/begun"]) == 1
    assert "not finished" in capsys.readouterr().err
    monkeypatch.chdir(done.path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().err == "no runs in runs\n"
