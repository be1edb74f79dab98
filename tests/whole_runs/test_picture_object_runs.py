"""Runs that begin with objects: the pixels of files, resumed and continued without the object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from runs import CPU, plan_of, results, run_here
from sample_pictures import half, noise

import lowmem_if as lm
from lowmem_if.cascade.modes import INPAINT, UPSCALE, VARY
from lowmem_if.engine.enlargement import continued
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.worker.executor import work
from lowmem_if.errors import PictureError, RunFolderError
from lowmem_if.planning.plan import Plan

PROMPT = "a red circle on white"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {"image": noise(tmp_path / "own.png"), "mask": half(tmp_path / "mask.png")}


def objects(files: dict[str, Path]) -> dict[str, Any]:
    """The image as a tensor of floats, the mask as an array of booleans."""
    image, mask = (numpy.array(Image.open(files[name])) for name in ("image", "mask"))
    return {"image": torch.from_numpy(image).permute(2, 0, 1) / 255, "mask": mask > 127}


def pixels(folder: RunFolder) -> dict[str, Any]:
    """The finished pictures and the stages' tensors; descriptions name files and objects."""
    tensors = {n: b for n, b in results(folder.path).items() if n.endswith(".safetensors")}
    return tensors | {f.name: Image.open(f).tobytes() for f in folder.path.glob("*.png")}


@pytest.mark.parametrize(("mode", "size"), [(VARY, 64), (INPAINT, 256), (UPSCALE, 1024)])
def test_objects_draw_what_their_files_draw(
    tiny: Path, tmp_path: Path, files: dict[str, Path], mode: str, size: int
) -> None:
    """Bit for bit in every mode, from a tensor and an array of booleans."""
    names = ("image", "mask") if mode == INPAINT else ("image",)
    drawn = [
        run_here(plan_of(tiny, PROMPT, mode=mode, size=size, **{n: given[n] for n in names}), path)
        for given, path in ((files, tmp_path / "files"), (objects(files), tmp_path / "objects"))
    ]
    first, second = (pixels(folder) for folder in drawn)
    assert first == second
    assert len(first) > 1


def test_a_run_is_resumed_without_the_object(
    tiny: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    """The folder holds copies; its record and the picture's description name the kind of object."""
    plan = plan_of(tiny, PROMPT, mode=INPAINT, size=64, **objects(files))
    folder = RunFolder.for_plan(tmp_path / "run", plan)
    copies = {file.name.split("-")[0] for file in (folder.path / "sources").iterdir()}
    assert copies == {"image", "mask"}
    for file in files.values():
        file.unlink()
    record = json.loads(folder.record_file.read_text())
    assert record["plan"]["request"]["mask"]["path"] == "<numpy array>"
    assert "content" not in record["plan"]["request"]["image"]
    work(RunFolder.open(folder.path), lambda _event: None)
    finished = RunFolder.open(folder.path)
    assert finished.complete
    with Image.open(folder.path / "0000.png") as picture:
        assert "<torch tensor>" in picture.info["request"]


def test_the_same_object_resumes_and_another_is_another_request(
    tiny: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    """Compared by pixels; the difference that is told is the picture."""
    given = objects(files)
    run_here(plan_of(tiny, PROMPT, mode=VARY, size=64, image=given["image"]), tmp_path / "run")
    again = plan_of(tiny, PROMPT, mode=VARY, size=64, image=given["image"].clone())
    assert RunFolder.for_plan(tmp_path / "run", again).complete
    other = plan_of(tiny, PROMPT, mode=VARY, size=64, image=1 - given["image"])
    with pytest.raises(RunFolderError, match=r"digest .* instead of"):
        RunFolder.for_plan(tmp_path / "run", other)


def test_a_run_is_continued_without_the_object(
    tiny: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    """Its copies go into the new folder; a plan in JSON alone is told that they are missing."""
    plan = plan_of(tiny, PROMPT, mode=INPAINT, size=64, invert_mask=True, **objects(files))
    small = run_here(plan, tmp_path / "small")
    large = continued(RunFolder.open(small.path), [0], 256, CPU, tmp_path / "large")
    assert {f.name for f in (large.path / "sources").iterdir()} == {
        f.name for f in (small.path / "sources").iterdir()
    }
    with pytest.raises(PictureError, match="does not contain it: make the request again"):
        RunFolder.for_plan(tmp_path / "third", Plan.from_json(plan.to_json()))


@pytest.mark.worker
def test_the_functions_and_a_session_take_objects(
    tiny: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    """vary, inpaint, upscale and batch, with a worker that never sees the objects."""
    given = objects(files)
    options: dict[str, Any] = {"steps": 2, "seed": 1}
    with lm.Session(cascade=tiny, device="cpu", ram="8GB") as session:
        varied = session.vary(
            Image.open(files["image"]), PROMPT, size=64, out=tmp_path / "a", **options
        )
        inpainted = session.inpaint(
            files["image"].read_bytes(), given["mask"], PROMPT, invert_mask=True, size=64,
            out=tmp_path / "b", **options,
        )  # fmt: skip
        with files["image"].open("rb") as file:
            upscaled = session.upscale(file, out=tmp_path / "c", **options)
        rows = [{"mode": VARY, "image": given["image"], "prompt": PROMPT}]
        many = session.batch(rows, size=64, out=tmp_path / "d", **options)
    for result in (varied, inpainted, upscaled, many.run):
        assert all(Path(image).is_file() for image in result.images)
    first, second = (
        (tmp_path / name / "stage_1" / "0000.safetensors").read_bytes() for name in ("a", "d")
    )
    assert first == second
