"""Typing mistakes are refused with the line that was meant, in one line, before anything is loaded."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lowmem_if.cli import main as command_line
from lowmem_if.cli.main import app, main
from lowmem_if.cli.typed import check_line
from lowmem_if.cli.typed.check_line import KINDS
from lowmem_if.cli.typed.typed_line import TypedLine

DOCS = Path(__file__).parents[3] / "docs"

REFUSED = [
    ("generate “a fox in the snow”", 'generate "a fox in the snow"'),
    ("generate „a fox“ —size 64", 'generate "a fox" --size 64'),
    ("generate «a fox in snow»", 'generate "a fox in snow"'),
    ("generate “fox”", "generate fox"),
    ("generate '“a red circle”'", 'generate "a red circle"'),
    ("generate ‘a fox’", 'generate "a fox"'),
    ('''generate "'a" fox "snow'"''', 'generate "a fox snow"'),
    ("generate a fox”", 'generate "a fox"'),
    ("plan x --negative-prompt “bad hands” --seed 3", 'plan x --negative-prompt "bad hands" --seed 3'),
    ("vary a.png --style-prompt=“oil paint”", 'vary a.png "--style-prompt=oil paint"'),
    ("generate fox —size 64", "generate fox --size 64"),
    ("generate fox –size=64", "generate fox --size=64"),
    ("generate fox −−seed 4", "generate fox --seed 4"),
    ("generate fox ―no―watermark", "generate fox --no-watermark"),
    ("generate fox -size 64", "generate fox --size 64"),
    ("generate fox —guidance_scale 4", "generate fox --guidance-scale 4"),
    ("generate fox —sise 64", "generate fox --size 64"),
    ("generate '—a fox'", 'generate "a fox"'),
    ("show —json runs/fox", "show --json runs/fox"),
    ("fetch if-m —size 64", "fetch if-m --size 64"),
    ("generate 'a fox --size 64 --seed 3'", 'generate "a fox" --size 64 --seed 3'),
    ("generate 'a fox —size 64'", 'generate "a fox" --size 64'),
    ("generate 'a fox\N{NO-BREAK SPACE}--size\N{NO-BREAK SPACE}64'", 'generate "a fox" --size 64'),
    ("plan if-xl", 'plan "a prompt" --cascade if-xl'),
    ("plan IF-L", 'plan "a prompt" --cascade IF-L'),
    ("generate I-L+II-L --size 64", 'generate "a prompt" --cascade I-L+II-L --size 64'),
    ("generate 'a fox' if-m", 'generate "a fox" --cascade if-m'),
    ("plan colab-free --json", 'plan "a prompt" --profile colab-free --json'),
    ("plan if-xl --cascade if-xl", 'plan "a prompt" --cascade if-xl'),
    ("generate “a “big” fox” —size 64", 'generate "a “big” fox" --size 64'),
    ("generate '-a fox'", 'generate "a fox"'),
    ("generate '--a fox in snow'", 'generate "a fox in snow"'),
    ("vary a.png b.png", 'vary a.png "a prompt" && lowmem-if vary b.png "a prompt"'),
    ("generate a.png b.png", 'vary a.png "a prompt" && lowmem-if vary b.png "a prompt"'),
    ("inpaint a.png 'a star' b.png", 'inpaint a.png b.png "a star"'),
    ("upscale a.png b.png", "upscale a.png && lowmem-if upscale b.png"),
    (
        "vary a.png b.png 'oil paint' --out runs/x",
        'vary a.png "oil paint" --out runs/x/a && lowmem-if vary b.png "oil paint" --out runs/x/b',
    ),
    ("vary 'a green star' a.png", 'vary a.png "a green star"'),
    ("inpaint a.png b.png a.png 'a star'",
     'inpaint a.png b.png "a star" && lowmem-if inpaint a.png b.png "a star"'),
    ("generate a.png --size 64 --aspect 3:2", 'vary a.png "a prompt" --size 64'),
    ("plan a.png", 'plan "a prompt" --mode vary --image a.png'),
    ("generate prompts.txt --size 64 --aspect=3:2", "batch prompts.txt --size 64"),
    ("embed prompts.txt --out a.pth", "embed --file prompts.txt --out a.pth"),
    ("generate “a fox” —size 64 if-m", 'generate "a fox" --size 64 --cascade if-m'),
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two pictures and a file of prompts."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        shutil.copy(DOCS / "small.png", tmp_path / name)
    (tmp_path / "prompts.txt").write_text("a red circle\n")


def parsed(line: str) -> click.Context:
    """The context of a line whose words a command accepts; nothing is run."""
    name, *words = shlex.split(line)
    with click.Context(app, info_name="lowmem-if") as parent:
        return app.commands[name].make_context(name, words, parent=parent)


@pytest.mark.parametrize(("line", "meant"), REFUSED, ids=[line for line, _ in REFUSED])
def test_a_mistake_is_refused_with_a_line_that_works(
    capsys: pytest.CaptureFixture[str], line: str, meant: str
) -> None:
    """Exit code 2, one line, and the words that it proposes are accepted by their command."""
    assert main(shlex.split(line)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.endswith(f": type lowmem-if {meant}\n")
    told = json.loads(captured.out)["error"]["message"] if "--json" in line else ""
    assert told in captured.err
    assert bool(captured.out) == bool(told)
    for each in meant.split(" && lowmem-if "):
        assert parsed(each).params
    assert capsys.readouterr().err == ""


def test_more_than_three_pictures_are_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Also if another mistake is named first; the line stops before the others."""
    for name in "cde":
        shutil.copy(DOCS / "small.png", tmp_path / f"{name}.png")
    assert main(["upscale", *(f"{name}.png" for name in "abcde"), "—size", "1024"]) == 2
    lines = " && ".join(f"lowmem-if upscale {name}.png --size 1024" for name in "abc")
    assert capsys.readouterr().err == (
        f"error: '—size' begins with a dash, not with -- (and so on, for 2 more): type {lines}\n"
    )


def test_an_option_without_its_value_has_no_corrected_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody can know the value."""
    assert main(["generate", "fox", "—size"]) == 2
    message = "error: '—size' begins with a dash, not with --, and no value follows it\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    "line",
    [
        "generate fox", "generate 'a - b'", "generate 'a fox — in snow'", "generate 'fox-like'",
        "generate '“Stop” on a sign'", "generate \"'tis the season\"", "generate \"a fox's tail\"",
        "generate 'the foxes’'", "generate -- “a —size if-xl", "generate 'a demo of --sizes'",
        "generate 'if-xl in the snow'", "generate missing.png", "upscale a.png 'a star'",
        "vary a.png --style-prompt '“Stop” sign'", "generate 'a fox' --negative-prompt '—x'",
        "generate fox --seed -1", "generate ''", "generate ”",
    ],
)  # fmt: skip
def test_other_lines_are_not_doubted(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Signs inside a text, and all that stands after `--`, belong to the prompt."""
    parsed(line)
    assert capsys.readouterr().err == ""


def test_single_words_get_a_notice_in_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    """It says how many prompts there are and how to write one; the words remain prompts."""
    assert parsed("generate a fox in the snow --seed 3").params["prompts"] == tuple(
        "a fox in the snow".split()
    )
    assert capsys.readouterr().err == (
        "note: 5 prompts, each of one word; for one prompt, type "
        'lowmem-if generate "a fox in the snow" --seed 3\n'
    )


@pytest.mark.parametrize("answer", [True, False])
def test_single_words_are_asked_about_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    """Only a yes draws a picture for each word; `plan` costs nothing and does not ask."""
    asked: list[str] = []

    def confirm(text: str, **_options: object) -> bool:
        asked.append(text)
        return answer

    monkeypatch.setattr(check_line.click, "confirm", confirm)
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    if answer:
        assert parsed("generate a fox").params["prompts"] == ("a", "fox")
    else:
        with pytest.raises(check_line.RequestError, match='type lowmem-if generate "a fox"'):
            parsed("generate a fox")
    parsed("plan a fox")
    parsed("generate red green --seed 1,2")
    assert asked == ["2 prompts, each of one word: continue?"]


def test_each_kind_finds_something_above() -> None:
    """No kind in the table is without an example."""
    lines = [shlex.split(line) for line, _ in REFUSED]
    typed = [
        TypedLine(app.commands[name], app, "lowmem-if", tuple(words)) for name, *words in lines
    ]
    assert all(any(kind(line) for line in typed) for kind in KINDS)


def test_nothing_heavy_is_imported_before_a_line_is_refused() -> None:
    """Torch and its libraries take seconds; a refused line needs none of them."""
    code = (
        f"import sys; from {command_line.__name__} import main; code = main(['generate', '“a', 'fox”']);"
        "assert not {'torch', 'diffusers', 'transformers'} & {*sys.modules}; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, cwd=DOCS.parent
    )
    assert done.returncode == 2, done.stderr
