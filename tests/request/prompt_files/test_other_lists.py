"""Prompt lists of benchmarks, spreadsheets and caption sets are read as they are."""

from __future__ import annotations

import pytest

from lowmem_if.request.batch_file import CSV, JSON_LINES, PLAIN, BatchFile, parse_batch


def read(text: str, kind: str | None = None) -> tuple[BatchFile, list[str]]:
    said: list[str] = []
    return parse_batch(text.encode(), lambda _row: None, kind=kind, notice=said.append), said


@pytest.mark.parametrize("kind", [CSV, None])
@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ('Prompt\tCategory\tChallenge\tNote\na fox\tA\tB\t\n"a star, red"\tA\tC\tx\n',
         ["Category", "Challenge", "Note"]),
        ('Prompts,Category\na fox,Colors\n"a star, red",Colors\n', ["Category"]),
    ],
    ids=["PartiPrompts", "DrawBench"],
)  # fmt: skip
def test_headers_of_benchmarks(text: str, unused: list[str], kind: str | None) -> None:
    """Their column of prompts is found, and a notice names the columns that draw nothing."""
    batch, said = read(text, kind)
    assert batch.rows == ({"prompt": "a fox"}, {"prompt": "a star, red"})
    assert said == [f"left out in line 1: {name!r}, from which nothing is drawn" for name in unused]


def test_names_as_spreadsheets_write_them() -> None:
    """Spaces and capitals do not matter."""
    batch, said = read("Prompt,Negative Prompt,Seed\na fox,blurry,3\n")
    assert batch.rows == ({"prompt": "a fox", "negative_prompt": "blurry", "seed": (3,)},)
    assert said == []


def test_captions_are_prompts() -> None:
    """As in sets of Hugging Face; a real `prompt` wins."""
    batch, said = read('{"text": "a fox", "file_name": "1.png"}\n{"prompt": "x", "text": "y"}')
    assert batch.rows == ({"prompt": "a fox"}, {"prompt": "x"})
    assert said == ["left out in line 1: 'file_name', from which nothing is drawn"]


@pytest.mark.parametrize("kind", [JSON_LINES, None])
@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ('["a fox", "a star"]', ["a fox", "a star"]),
        ('[\n {\n  "prompt": "a fox",\n  "seed": 3\n },\n "a star"\n]\n', ["a fox", "a star"]),
        ('{\n "prompt": "a fox"\n}\n', ["a fox"]),
        ("[]", []),
    ],
)
def test_json_in_one_value(text: str, prompts: list[str], kind: str | None) -> None:
    """An array, on one line or on many, or a single object."""
    batch, _ = read(text, kind)
    assert [row["prompt"] for row in batch.rows] == prompts
    assert not batch.bad_lines


def test_an_error_in_an_array_has_its_line() -> None:
    """What stands before it is read."""
    batch, _ = read('[\n"a fox",\n{"promt": "b"},\n{"prompt": }\n]')
    assert [row["prompt"] for row in batch.rows] == ["a fox"]
    assert [bad.number for bad in batch.bad_lines] == [3, 4]


def test_comments_are_left_out() -> None:
    """With a notice; a hash before a letter or a number begins a prompt."""
    batch, said = read("# my prompts\n\na fox\n// second\n#3 on a shirt\n#\n[red] fox\n", PLAIN)
    assert [row["prompt"] for row in batch.rows] == ["a fox", "#3 on a shirt", "[red] fox"]
    assert said == ["left out in lines 1, 4, 6: a comment"]
    assert [row["prompt"] for row in read("[red] fox\na fox")[0].rows] == ["[red] fox", "a fox"]
