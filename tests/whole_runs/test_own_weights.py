"""Runs with parts of the user's own: drawn as one cascade, recorded, resumed and continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from runs import CPU, plan_of, results, run_here
from tiny_cascade import make_tiny_cascade

from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.executor import work
from lowmem_if.errors import CascadeError, RunFolderError

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade of the same kind with other weights, and with another noise schedule in stage 1."""
    folder = make_tiny_cascade(tmp_path_factory.mktemp("other") / "c", sides=(32, 64), seed=7)
    scheduler = folder / "stage_1" / "scheduler" / "scheduler_config.json"
    values = json.loads(scheduler.read_text()) | {"variance_type": "fixed_small"}
    scheduler.write_text(json.dumps(values))
    return folder


@pytest.fixture
def tuned(other: Path, tmp_path: Path) -> Path:
    """A fine-tuned stage 1 of this test's own, without a text encoder."""
    for name in ("unet", "scheduler"):
        shutil.copytree(other / "stage_1" / name, tmp_path / "tuned" / name)
    return tmp_path / "tuned"


def assembled(folder: Path, tiny: Path, *parts: Path) -> Path:
    """The tiny cascade with some folders replaced by others, as one had to do by hand."""
    shutil.copytree(tiny, folder)
    for part in parts:
        target = folder / part.parent.name / part.name
        shutil.rmtree(target)
        shutil.copytree(part, target)
    return folder


def drawn(folder: RunFolder) -> dict[str, bytes]:
    """What was computed; the finished pictures also describe the run, which names its weights."""
    return {name: content for name, content in results(folder.path).items() if "/" in name}


@pytest.mark.parametrize("pins", [(), ("stage_1=stream", "stage_2=stream")], ids=["fit", "stream"])
def test_parts_draw_what_a_cascade_put_together_by_hand_draws(
    tiny: Path, other: Path, tuned: Path, tmp_path: Path, pins: tuple[str, ...]
) -> None:
    """The same bits in both stages, resident and streamed, with a scheduler of its own or borrowed."""
    unet = other / "stage_2" / "unet"
    parts = {"stage_1": str(tuned), "stage_2": str(unet)}
    mixed = run_here(plan_of(tiny, PROMPT, size=256, parts=parts, pins=pins), tmp_path / "mixed")
    shutil.copytree(tuned, tmp_path / "stage_1")
    by_hand = assembled(
        tmp_path / "cascade", tiny,
        tmp_path / "stage_1" / "unet", tmp_path / "stage_1" / "scheduler", unet,
    )  # fmt: skip
    whole = run_here(plan_of(by_hand, PROMPT, size=256, pins=pins), tmp_path / "whole")
    plain = run_here(plan_of(tiny, PROMPT, size=256, pins=pins), tmp_path / "plain")
    assert drawn(mixed) == drawn(whole)
    assert drawn(mixed)["stage_1/0000.png"] != drawn(plain)["stage_1/0000.png"]


def test_a_run_folder_keeps_its_parts(tiny: Path, tuned: Path, tmp_path: Path) -> None:
    """The request in `run.json` has them; the picture names them without their folders."""
    plan = plan_of(tiny, PROMPT, size=64, parts={"stage_1": tuned})
    folder = run_here(plan, tmp_path / "run")
    record = json.loads((folder.path / "run.json").read_text())
    part = {"component": "stage_1", "source": str(tuned), "revision": "main"}
    assert record["plan"]["request"]["parts"] == [part]
    assert RunFolder.open(folder.path).plan.request == plan.request
    with Image.open(folder.images[0]) as image:
        described = json.loads(image.info["request"])
    assert described["parts"] == [part | {"source": "tuned"}]


def test_a_run_folder_of_before_has_no_parts(tiny: Path, tmp_path: Path) -> None:
    """Requests without the key are read as they were."""
    folder = run_here(plan_of(tiny, PROMPT, size=64), tmp_path / "run")
    file = folder.path / "run.json"
    record = json.loads(file.read_text())
    assert "parts" not in record["plan"]["request"]
    again = RunFolder.open(folder.path)
    assert again.plan == folder.plan
    assert again.plan.request.weights.parts == ()


def test_other_parts_are_another_request(tiny: Path, tuned: Path, tmp_path: Path) -> None:
    """A folder begun with a part is not continued without it, and the line says so."""
    RunFolder.for_plan(tmp_path / "run", plan_of(tiny, PROMPT, size=64, parts={"stage_1": tuned}))
    with pytest.raises(RunFolderError, match="parts"):
        RunFolder.for_plan(tmp_path / "run", plan_of(tiny, PROMPT, size=64))


def test_a_part_that_has_changed_is_noticed_on_resuming(
    tiny: Path, other: Path, tuned: Path, tmp_path: Path
) -> None:
    """A picture is never drawn half with one training and half with the next; a lost part is named."""
    plan = plan_of(tiny, PROMPT, size=64, parts={"stage_1": tuned})
    folder = run_here(plan, tmp_path / "run")
    for made in [*folder.path.glob("stage_1/*"), *folder.images]:
        made.unlink()
    shutil.rmtree(tuned / "unet")
    with pytest.raises(CascadeError, match="it has no folder unet/"):
        work(folder.reload(), lambda _event: None)
    make_tiny_cascade(tmp_path / "third", sides=(32, 64), seed=9)
    shutil.copytree(tmp_path / "third" / "stage_1" / "unet", tuned / "unet")
    with pytest.raises(RunFolderError, match="the files of stage_1 have changed"):
        work(folder.reload(), lambda _event: None)
    shutil.rmtree(tuned / "unet")
    shutil.copytree(other / "stage_1" / "unet", tuned / "unet")
    work(folder.reload(), lambda _event: None)
    assert (folder.path / "stage_1" / "0000.png").exists()


def test_chosen_pictures_are_enlarged_with_the_parts_of_their_run(
    tiny: Path, other: Path, tmp_path: Path
) -> None:
    """A part for stage 2 is recorded even where the first run has no stage 2."""
    parts = {"stage_2": other / "stage_2"}
    small = run_here(plan_of(tiny, PROMPT, size=64, parts=parts), tmp_path / "small")
    larger = continued(small, [0], 256, CPU, tmp_path / "larger")
    work(larger, lambda _event: None)
    at_once = run_here(plan_of(tiny, PROMPT, size=256, parts=parts), tmp_path / "once")
    name = "stage_2/0000.safetensors"
    assert results(larger.path)[name] == results(at_once.path)[name]


def test_a_lora_fits_the_shapes_of_the_part(tiny: Path, tuned: Path, tmp_path: Path) -> None:
    """What is compared is the UNet that will be loaded."""
    from lora_files import peft, random_lora, write

    lora = write(tmp_path / "a.safetensors", peft(random_lora(tiny, "stage_1")))
    plan = plan_of(tiny, PROMPT, size=64, parts={"stage_1": tuned}, lora=f"{lora}:0.5")
    with_lora = run_here(plan, tmp_path / "with")
    without = run_here(
        plan_of(tiny, PROMPT, size=64, parts={"stage_1": tuned}), tmp_path / "without"
    )
    assert (
        drawn(with_lora)["stage_1/0000.safetensors"] != drawn(without)["stage_1/0000.safetensors"]
    )
