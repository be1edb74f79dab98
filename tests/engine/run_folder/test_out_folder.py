"""A picture's name as `out`: the run folder next to it, the pictures where the user wants them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from runs import plan_of, run_here

import lowmem_if as lm
from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.out_folder import check_nothing_lost, place_pictures, run_path
from lowmem_if.errors import RunFolderError


def finished(tiny: Path, out: Path, images: int = 1) -> tuple[Path, ...]:
    """The pictures of a finished run in the run folder of `out`."""
    return run_here(plan_of(tiny, images=images, size=64), run_path(out)).images


def test_a_pictures_name_is_a_run_folder_next_to_it(tmp_path: Path) -> None:
    """Other names, and folders that exist under such a name, are run folders themselves."""
    assert run_path(tmp_path / "fox.png") == tmp_path / "fox.png.run"
    assert run_path("Fox.JPG") == Path("Fox.JPG.run")
    assert run_path("runs/v1.5") == Path("runs/v1.5")
    (tmp_path / "old.png").mkdir()
    assert run_path(tmp_path / "old.png") == tmp_path / "old.png"


def test_kinds_that_are_not_written_are_refused_at_once() -> None:
    """With those that are."""
    with pytest.raises(RunFolderError, match=r"not written as \.gif: use \.png, \.jpg"):
        run_path("fox.gif")


def test_one_picture_has_the_name_and_all_metadata(tiny: Path, tmp_path: Path) -> None:
    """It is a copy of the picture in the run folder."""
    images = finished(tiny, tmp_path / "fox.png")
    assert place_pictures(tmp_path / "fox.png.run", images) == (tmp_path / "fox.png",)
    assert (tmp_path / "fox.png").read_bytes() == images[0].read_bytes()


def test_several_pictures_have_numbers(tiny: Path, tmp_path: Path) -> None:
    """In the order of the run, with as many digits as they need."""
    images = finished(tiny, tmp_path / "fox.webp", 2)
    files = place_pictures(tmp_path / "fox.webp.run", images)
    assert [file.name for file in files] == ["fox-0.webp", "fox-1.webp"]
    for file in files:
        with Image.open(file) as picture:
            assert (picture.format, picture.size) == ("WEBP", (32, 32))
    many = tuple(images[:1]) * 11
    assert place_pictures(tmp_path / "many.png.run", many)[3].name == "many-03.png"


def test_a_file_that_is_newer_than_its_picture_is_kept(tiny: Path, tmp_path: Path) -> None:
    """Somebody has worked on it; an older one is replaced after the picture was enlarged."""
    images = finished(tiny, tmp_path / "fox.png")
    (file,) = place_pictures(tmp_path / "fox.png.run", images)
    file.write_bytes(b"retouched")
    place_pictures(tmp_path / "fox.png.run", images)
    assert file.read_bytes() == b"retouched"
    os.utime(file, (1, 1))
    place_pictures(tmp_path / "fox.png.run", images)
    assert file.read_bytes() == images[0].read_bytes()


def test_a_run_folder_of_the_users_own_name_copies_nothing(tiny: Path, tmp_path: Path) -> None:
    """Not even one that ends with `.run`."""
    images = finished(tiny, tmp_path / "fox.run")
    assert place_pictures(tmp_path / "fox.run", images) == images
    assert [entry.name for entry in tmp_path.glob("fox*")] == ["fox.run"]


def test_a_new_run_writes_over_no_file(tiny: Path, tmp_path: Path) -> None:
    """A run that was begun under the name before may go on."""
    (tmp_path / "fox-1.png").write_bytes(b"mine")
    check_nothing_lost(tmp_path / "fox.png.run", 1)
    with pytest.raises(RunFolderError, match=r"fox-1\.png exists already"):
        check_nothing_lost(tmp_path / "fox.png.run", 2)
    with pytest.raises(RunFolderError, match="exists already"):
        lm.generate("x", images=2, size=64, out=tmp_path / "fox.png")
    assert not (tmp_path / "fox.png.run").exists()
    finished(tiny, tmp_path / "fox.png", 2)
    check_nothing_lost(tmp_path / "fox.png.run", 2)


@pytest.mark.worker
def test_the_command_prints_the_pictures_where_they_are(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """-o, and `resume` with the same name if the picture was lost."""
    out = tmp_path / "fox.png"
    arguments = ["generate", "x", "--cascade", str(tiny), "--steps", "2", "--size", "64", "--quiet"]
    assert main([*arguments, "-o", str(out)]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err == ""
    content = out.read_bytes()
    out.unlink()
    assert main(["resume", str(out), "--quiet"]) == 0
    assert capfd.readouterr().out == f"{out}\n"
    assert out.read_bytes() == content
