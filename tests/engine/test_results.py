"""What a call returns: files, pictures that are opened when read, and a short text."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import lowmem_if as lm
from lowmem_if.engine.results import RunResult


@pytest.fixture
def result(tmp_path: Path) -> RunResult:
    files = tuple(tmp_path / f"{number:04}.png" for number in range(12))
    for number, file in enumerate(files):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(file)
    return RunResult(tmp_path, files, (), ("cut after 77 tokens",))


def test_files_are_paths_and_pictures_are_images(result: RunResult) -> None:
    """Both in the same order; slices and loops work as in any sequence."""
    assert result.images[3] == result.folder / "0003.png"
    assert len(result.pictures) == 12
    third = result.pictures[3]
    assert isinstance(third, Image.Image)
    assert third.getpixel((0, 0)) == (3, 0, 0)
    assert [image.size for image in result.pictures[10:]] == [(64, 64)] * 2
    last = result.pictures[-1]
    assert last.getpixel((0, 0)) == (11, 0, 0)
    with pytest.raises(IndexError):
        result.pictures[12]


def test_nothing_is_read_before_a_picture_is_asked_for(result: RunResult) -> None:
    """A thousand pictures cost nothing; a file that is gone is missed by its own picture only."""
    result.images[0].unlink()
    pictures = result.pictures
    assert repr(pictures) == "<12 pictures, read when asked for>"
    assert pictures[1].size == (64, 64)
    with pytest.raises(FileNotFoundError):
        pictures[0]


def test_a_result_is_shown_in_one_line(result: RunResult) -> None:
    """Folder, number of pictures, notices."""
    assert repr(result) == f"<RunResult: {result.folder}, 12 pictures, 1 notice(s)>"


def test_a_notebook_shows_the_first_pictures(result: RunResult) -> None:
    """Some of them, small, and none that is gone."""
    result.images[0].unlink()
    page = result._repr_html_()
    assert page.count("<img ") == 7
    assert page.count("data:image/jpeg;base64,") == 7
    assert "&lt;RunResult" in page
    assert len(page) < 60_000


def test_the_package_knows_its_version() -> None:
    """As everywhere; other names are still errors."""
    assert lm.__version__[0].isdigit()
    with pytest.raises(AttributeError):
        lm.__verison__  # noqa: B018
