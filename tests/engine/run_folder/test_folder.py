"""The run folder: made whole, continued only by the same request, never left half written."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import plan_of, run_here

from lowmem_if.engine.run_folder import folder as folder_module
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.folder_layout import is_whole_png
from lowmem_if.engine.run_folder.run_record import FORMAT
from lowmem_if.errors import RunFolderError
from lowmem_if.weights.files import atomic

STRANGE = "a 'red' \"circle\"\nدائرة حمراء 🟥 赤い円 \\ & <b>"


def test_the_plan_reads_back_equal(tiny: Path, tmp_path: Path) -> None:
    """What is written into run.json is the plan."""
    plan = plan_of(tiny, STRANGE)
    RunFolder.for_plan(tmp_path / "run", plan)
    assert RunFolder.open(tmp_path / "run").plan == plan


def test_the_folder_holds_what_the_design_promises(tiny: Path, tmp_path: Path) -> None:
    """Tensors, previews, embeddings, samples and the finished picture, under their names."""
    folder = run_here(plan_of(tiny), tmp_path / "run")
    for name in (
        "run.json", "memory.jsonl", "0000.png",
        "stage_1/0000.safetensors", "stage_1/0000.png", "stage_2/0000.safetensors",
        "stage_2/0000.png", "stage_3/0000.safetensors", "stage_3/0000.png",
    ):  # fmt: skip
        assert (folder.path / name).is_file(), name
    assert len(list((folder.path / "embeds").glob("*.safetensors"))) == 2
    assert not list(folder.path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": "a blue star"}, "prompt"),
        ({"seed": 2}, "seed"),
        ({"steps": 3}, "steps"),
        ({"size": 64}, "size"),
        ({"watermark": False}, "watermark"),
        ({"pins": ["text_encoder=resident:int8"]}, "text_encoder"),
    ],
)
def test_another_request_is_refused_and_the_difference_named(
    tiny: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """A folder is continued only with the same request it was begun for."""
    RunFolder.for_plan(tmp_path / "run", plan_of(tiny))
    with pytest.raises(RunFolderError, match=f"another request .*{named}"):
        RunFolder.for_plan(tmp_path / "run", plan_of(tiny, **change))


def test_another_format_is_refused(tiny: Path, tmp_path: Path) -> None:
    """A folder of another format version is left alone."""
    path = RunFolder.for_plan(tmp_path / "run", plan_of(tiny)).path
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | {"format": FORMAT + 1}))
    with pytest.raises(RunFolderError, match=f"format {FORMAT + 1}.*start a new folder"):
        RunFolder.open(path)


def begun_with(tiny: Path, path: Path, *done: str, **versions: str) -> RunFolder:
    """A run that other versions of libraries began, with these components done."""
    RunFolder.for_plan(path, plan_of(tiny))
    record = json.loads((path / "run.json").read_text())
    record["versions"] |= versions
    for component in done:
        record["steps"][component]["status"] = "done"
    (path / "run.json").write_text(json.dumps(record))
    return RunFolder.open(path)


def test_a_version_that_pixels_depend_on_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Another diffusers could draw other pixels: the run says with which it was begun, and a way on."""
    folder = begun_with(tiny, tmp_path / "run", diffusers="0.1.0")
    with pytest.raises(RunFolderError, match=r"diffusers 0\.1\.0, here .*--other-versions"):
        folder.check_versions()
    assert "pixels may differ" in folder.check_versions(others=True)


@pytest.mark.parametrize(
    ("done", "versions"),
    [
        ((), {"bitsandbytes": "0.1.0"}),  # nothing is quantised here
        ((), {"lowmem-if": "0.0.1"}),
        (("text_encoder",), {}),
        (("text_encoder", "stage_1", "stage_2", "upscaler"), {"torch": "1.0", "diffusers": "0.1"}),
    ],
)
def test_a_version_that_pixels_do_not_depend_on_is_a_notice(
    tiny: Path, tmp_path: Path, done: tuple[str, ...], versions: dict[str, str]
) -> None:
    """What is still to be drawn does not use the library, so the run continues and names it."""
    folder = begun_with(tiny, tmp_path / "run", *done, **versions)
    words = folder.check_versions()
    assert all(f"{name} {version}" in words for name, version in versions.items())
    assert bool(words) == bool(versions)


def test_transformers_matters_to_texts_and_to_the_upscaler(tiny: Path, tmp_path: Path) -> None:
    """Once texts are encoded and pictures enlarged, transformers may change."""
    before = begun_with(tiny, tmp_path / "a", "text_encoder", transformers="1.0")
    with pytest.raises(RunFolderError, match=r"transformers 1\.0"):
        before.check_versions()
    after = begun_with(tiny, tmp_path / "b", "text_encoder", "upscaler", transformers="1.0")
    assert "do not depend" in after.check_versions()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "plan": 3}']
)
def test_a_broken_record_is_reported(tmp_path: Path, content: str) -> None:
    """A run.json that is none ends in one line."""
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_files_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    """A folder of other pictures does not become a run folder."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(RunFolderError, match=r"holds other files \(holiday"):
        RunFolder.for_plan(tmp_path, plan_of(tiny))
    assert [entry.name for entry in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_the_folders_place_is_reported(tiny: Path, tmp_path: Path) -> None:
    """`--out` naming a file is reported in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.for_plan(tmp_path / "file" / "run", plan_of(tiny))


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("embeds", ".safetensors"), ("stage_1", ".safetensors"), ("stage_1", ".png"), ("run", ".png")],
)
def test_a_full_disk_is_reported_and_leaves_the_folder_resumable(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, suffix: str
) -> None:
    """When a picture cannot be written any more, the run says so and can be resumed."""
    plan = plan_of(tiny, size=64)
    real = atomic.write_bytes

    def full(file: Path, content: bytes) -> None:
        if file.parent.name == folder and file.suffix == suffix:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, content)

    monkeypatch.setattr(folder_module, "write_bytes", full)
    with pytest.raises(RunFolderError, match=r"disk is full.*resume"):
        run_here(plan, tmp_path / "run")
    monkeypatch.setattr(folder_module, "write_bytes", real)
    assert run_here(plan, tmp_path / "run").images


def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails half way changes nothing and leaves no partial file."""
    file = tmp_path / "file"
    atomic.write_bytes(file, b"old")

    def fail(*_args: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="broken"):
        atomic.write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_picture_knows_how_it_was_made(tiny: Path, tmp_path: Path) -> None:
    """Prompt, seed, request, plan and versions are in the PNG, Unicode, quotes and newlines included."""
    folder = run_here(plan_of(tiny, STRANGE, seed=7, negative_prompt="بلا 🟦"), tmp_path / "run")
    with Image.open(folder.images[0]) as image:
        image.load()
        text = image.info
    assert text["prompt"] == STRANGE
    assert text["seed"] == "7"
    assert text["cascade"] == str(tiny)
    assert json.loads(text["request"])["negative_prompt"] == "بلا 🟦"
    assert json.loads(text["plan"])[0]["component"] == "text_encoder"
    assert set(json.loads(text["versions"])) >= {"torch", "diffusers", "transformers", "lowmem-if"}


def test_a_png_that_was_cut_off_is_not_whole(tmp_path: Path) -> None:
    """A picture counts only if it is there to its end."""
    file = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(file)
    assert is_whole_png(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert not is_whole_png(file)
    assert not is_whole_png(tmp_path / "none.png")


def test_check_and_mark_can_be_left_out(tiny: Path, tmp_path: Path) -> None:
    """Without the mark the picture is the last stage's own; with it, it is not."""
    marked = run_here(plan_of(tiny), tmp_path / "marked")
    bare = run_here(plan_of(tiny, watermark=False, safety_checker=False), tmp_path / "bare")

    def pixels(file: Path) -> bytes:
        return Image.open(file).tobytes()

    assert pixels(bare.images[0]) == pixels(bare.path / "stage_3" / "0000.png")
    assert pixels(marked.images[0]) != pixels(marked.path / "stage_3" / "0000.png")


def test_replacing_a_step_is_written_down(tiny: Path, tmp_path: Path) -> None:
    """The ladder's new step and its reason are in the record that a later process reads."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny))
    step = folder.plan.steps[3].with_config(decoding="strips")
    folder.replace_step(step, "upscaler: memory ran out")
    again = RunFolder.open(folder.path)
    assert again.plan.steps[3] == step
    assert again.log == ("upscaler: memory ran out",)


def test_a_disk_that_fills_up_under_the_samples_is_reported_by_what_is_lost(
    tiny: Path, tmp_path: Path
) -> None:
    """Samples that cannot be kept are no reason to stop; no exception of theirs hides another."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, size=64))
    folder.memory_file.symlink_to(full)
    assert run_here(folder.plan, folder.path).complete


def test_a_samples_file_that_cannot_be_opened_is_reported(tiny: Path, tmp_path: Path) -> None:
    """A folder where memory.jsonl should be: one line, not a traceback."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, size=64))
    folder.memory_file.mkdir()
    with pytest.raises(RunFolderError, match="cannot be written"):
        run_here(folder.plan, folder.path)


def test_a_run_that_lost_its_pictures_is_not_complete(tiny: Path, tmp_path: Path) -> None:
    """What `show` says is what is there, and resuming draws it again."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    assert folder.complete
    picture = folder.images[0].read_bytes()
    folder.images[0].unlink()
    assert not folder.complete
    assert run_here(folder.plan, folder.path).images[0].read_bytes() == picture


def test_a_folder_whose_first_record_was_cut_short_can_be_used(tiny: Path, tmp_path: Path) -> None:
    """A kill while run.json was first written leaves a partial file, which belongs to no run."""
    path = tmp_path / "run"
    path.mkdir()
    (path / ".run.json.0a1b2c3d.partial").write_text("{")
    assert run_here(plan_of(tiny, size=64), path).complete
    assert not list(path.glob(".*.partial"))


@pytest.mark.parametrize("key", ["versions", "plan", "steps", "weights", "log"])
def test_a_record_with_a_part_missing_is_broken(tiny: Path, tmp_path: Path, key: str) -> None:
    """Each part of run.json is missed when the folder is opened, not in the middle of a run."""
    path = RunFolder.for_plan(tmp_path / "run", plan_of(tiny)).path
    record = json.loads((path / "run.json").read_text())
    for damaged in ({k: v for k, v in record.items() if k != key}, record | {key: 5}):
        (path / "run.json").write_text(json.dumps(damaged))
        with pytest.raises(RunFolderError, match="is broken"):
            RunFolder.open(path)


def test_a_record_of_a_step_less_than_planned_is_broken(tiny: Path, tmp_path: Path) -> None:
    """Every step of the plan has its status."""
    path = RunFolder.for_plan(tmp_path / "run", plan_of(tiny)).path
    record = json.loads((path / "run.json").read_text())
    del record["steps"]["stage_2"]
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match="is broken"):
        RunFolder.open(path)


@pytest.mark.parametrize("name", ["n" * 300, "bad\udcff"])
def test_names_that_no_file_can_have_are_reported(tiny: Path, tmp_path: Path, name: str) -> None:
    """Too long, or bytes that are no text, which the libraries could not open."""
    with pytest.raises(RunFolderError, match="give --out another"):
        RunFolder.for_plan(tmp_path / name, plan_of(tiny))


def test_a_preview_is_there_whenever_its_tensor_is(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensor comes last: it says that the picture is drawn."""
    written: list[str] = []
    write = RunFolder.write

    def noting(self: RunFolder, file: Path, content: bytes) -> None:
        written.append(f"{file.parent.name}/{file.name}")
        write(self, file, content)

    monkeypatch.setattr(RunFolder, "write", noting)
    run_here(plan_of(tiny, size=64), tmp_path / "run")
    assert written.index("stage_1/0000.png") < written.index("stage_1/0000.safetensors")
