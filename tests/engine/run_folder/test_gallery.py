"""gallery.html: all of a run on one page that needs nothing but the run's folder."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import plan_of, run_here

from lowmem_if.api.run import resume
from lowmem_if.cli.main import main
from lowmem_if.engine.events import Event, ImageSaved
from lowmem_if.engine.run_folder import gallery
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.engine.run_folder.gallery import GalleryKeeper, write_gallery

STRANGE = "</script><b>a 'red' \"circle\"</b> & دائرة 🟥 {braces} <img src=x onerror=alert(1)>"
VOID = {"meta", "input", "img"}


class Page(HTMLParser):
    """A page taken apart; complains of tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given: dict[str, Any] = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.sources.append(given["src"].partition("?")[0])
        if tag == "a":
            self.links.append(given["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(folder: RunFolder) -> Page:
    return Page(write_gallery(folder).read_text(encoding="utf-8"))


def test_every_picture_is_on_the_page(tiny: Path, tmp_path: Path) -> None:
    """With its prompt, negative prompt, seed and size; links lead to files of the folder."""
    folder = run_here(
        plan_of(
            tiny, ("a red circle", "a blue star"), seed=(3, 4), negative_prompt="black", size=64
        ),
        tmp_path / "run",
    )
    page = page_of(folder)
    assert page.links == page.sources == ["0000.png", "0001.png"]
    text = "\n".join(page.texts)
    for words in (
        "a red circle",
        "a blue star",
        "not: black",
        "seed 4",
        "64 px",
        "2 of 2 pictures",
    ):
        assert words in text


def test_whatever_a_prompt_holds_it_is_only_text(tiny: Path, tmp_path: Path) -> None:
    """No tag, no script and no hole in the page comes from it."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny, STRANGE, negative_prompt=STRANGE))
    page = page_of(folder)
    assert page.tags.count("script") == 1
    assert "b" not in page.tags
    assert STRANGE in page.texts


def test_the_page_needs_no_network(tiny: Path, tmp_path: Path) -> None:
    """No address of anything outside, and nothing but the page itself is loaded."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    text = write_gallery(folder).read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_large_pictures_get_thumbnails_of_the_finished_file(tiny: Path, tmp_path: Path) -> None:
    """Small JPEG files next to the page, made once, and again when the picture changes."""
    folder = run_here(plan_of(tiny), tmp_path / "run")
    page = page_of(folder)
    assert (page.links, page.sources) == (["0000.png"], ["thumbs/0000.jpg"])
    thumbnail = folder.path / "thumbs" / "0000.jpg"
    with Image.open(thumbnail) as image:
        assert max(image.size) <= 256
    made = thumbnail.stat().st_mtime_ns
    write_gallery(folder)
    assert thumbnail.stat().st_mtime_ns == made
    (folder.path / "0000.png").touch()
    write_gallery(folder)
    assert thumbnail.stat().st_mtime_ns > made


def test_what_is_not_finished_yet_says_how_far_it_is(tiny: Path, tmp_path: Path) -> None:
    """Nothing, or the newest stage's picture."""
    folder = run_here(plan_of(tiny), tmp_path / "run")
    (folder.path / "0000.png").unlink()
    page = page_of(folder)
    assert page.sources == ["stage_3/0000.png"]
    assert "upscaler: unfinished" in page.texts
    empty = RunFolder.for_plan(tmp_path / "empty", plan_of(tiny))
    assert "waiting" in page_of(empty).texts


def test_small_pictures_can_be_chosen_to_go_on(tiny: Path, tmp_path: Path) -> None:
    """The page writes the command; where nothing can grow there is none."""
    small = RunFolder.for_plan(tmp_path / "a run's", plan_of(tiny, size=64))
    assert "lowmem-if continue" in write_gallery(small).read_text(encoding="utf-8")
    large = RunFolder.for_plan(tmp_path / "large", plan_of(tiny))
    assert "lowmem-if continue" not in write_gallery(large).read_text(encoding="utf-8")


def test_the_page_is_kept_fresh_but_not_all_the_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events pass; the page is written at first and then after a while."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of(tiny))
    written = []
    monkeypatch.setattr(gallery, "write_gallery", lambda f: written.append(f.path))
    passed: list[Event] = []
    keeper = GalleryKeeper(folder, passed.append)
    for number in range(50):
        keeper(ImageSaved("stage_1", number, ""))
    assert len(passed) == 50
    assert len(written) == 1
    monkeypatch.setattr(gallery, "_LEAST_WAIT_S", 0.0)
    monkeypatch.setattr(gallery, "_WAIT_FACTOR", 0)
    keeper.write()
    keeper(ImageSaved("stage_1", 0, ""))
    assert len(written) == 3


def test_a_page_can_be_had_of_any_run(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`lowmem-if gallery RUN` writes it and says where it is."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    assert main(["gallery", str(folder.path)]) == 0
    assert capsys.readouterr().out.strip() == str(folder.path / "gallery.html")
    assert main(["gallery", str(tmp_path)]) == 1


def test_a_finished_batch_is_read_back_without_writing(tiny: Path, tmp_path: Path) -> None:
    """A page as new as the run is left alone, one that is older is written."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    page = write_gallery(folder)
    made = page.stat().st_mtime_ns
    resume(folder.path)
    assert page.stat().st_mtime_ns == made
    os.utime(page, ns=(0, 0))
    resume(folder.path)
    assert page.stat().st_mtime_ns > made
