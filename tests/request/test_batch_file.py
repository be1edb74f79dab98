"""Files of many prompts: what they may hold, and how a bad line is told from the good ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lowmem_if.errors import BatchError, RequestError
from lowmem_if.request.batch_file import (
    CSV,
    JSON_LINES,
    PLAIN,
    BatchFile,
    Row,
    parse_batch,
    read_batch,
)
from lowmem_if.request.pictures.input_images import look_at


def check(row: Row) -> None:
    """The tests' own opinion of a line."""
    if not row.get("prompt", "").strip():
        raise RequestError("the prompt is empty")


def parsed(content: str | bytes, **options: object) -> BatchFile:
    data = content if isinstance(content, bytes) else content.encode()
    return parse_batch(data, check, **options)  # type: ignore[arg-type]


def prompts(batch: BatchFile) -> list[str]:
    return [row["prompt"] for row in batch.rows]


# --- plain prompts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_plain_prompts_stand_one_a_line(end: str) -> None:
    """Blank lines and the white space around a prompt count for nothing, whatever ends a line."""
    batch = parsed(end.join(["a red circle", "", "  a blue star ", "#3, {yes}"]))
    assert prompts(batch) == ["a red circle", "a blue star", "#3, {yes}"]
    assert batch.bad_lines == ()


def test_unicode_line_separators_are_part_of_a_prompt() -> None:
    """Only what an editor ends a line with ends one."""
    assert prompts(parsed("a\u2028b\x0cc\x85d\n")) == ["a\u2028b\x0cc\x85d"]


def test_a_mark_of_byte_order_is_no_part_of_the_first_prompt() -> None:
    """Neither UTF-8's nor UTF-16's."""
    assert prompts(parsed("\ufeffa red circle\n")) == ["a red circle"]
    assert prompts(parsed("赤い円\n".encode("utf-16"))) == ["赤い円"]


def test_a_comma_makes_no_csv() -> None:
    """Prompts hold commas; a header row holds known names only."""
    assert prompts(parsed("a fox, snow\nprompt, seed and soil\n")) == [
        "a fox, snow",
        "prompt, seed and soil",
    ]


# --- JSON lines


def test_json_lines_say_what_is_their_own(tmp_path: Path) -> None:
    """Every field of a line; a bare string is a prompt; null is as good as nothing."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    line = {
        "prompt": "a red circle", "negative_prompt": "blue", "seed": 7, "images": 2, "size": 64,
        "mode": "inpaint", "image": "a.png", "mask": "b.png", "strength": 0.5,
    }  # fmt: skip
    text = json.dumps(line) + '\n\n{"prompt": "x", "seed": null}\n"a string"'
    first, *others = parsed(text, folder=tmp_path).rows
    pictures = {name: look_at(tmp_path / f"{line[name]}") for name in ("image", "mask")}
    assert first == line | pictures
    assert others == [{"prompt": "x"}, {"prompt": "a string"}]


def test_a_line_may_hold_a_series_of_seeds() -> None:
    """As text, or as a list of numbers."""
    batch = parsed('{"prompt": "x", "seed": "1..3"}\n{"prompt": "x", "seed": [4, 9]}')
    assert [row["seed"] for row in batch.rows] == [(1, 2, 3), [4, 9]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x"', "not valid JSON"),
        ("[1]", "write an object"),
        ("5", "write an object"),
        ('{"promt": "x"}', "'promt'"),
        ('{"prompt": "  "}', "empty"),
        ('{"prompt": "x", "seed": "y"}', "seed 'y'"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_line_is_told_by_its_number(line: str, words: str) -> None:
    """The lines around it are as good as before."""
    batch = parsed(f'{{"prompt": "first"}}\n\n{line}\n{{"prompt": "last"}}\n')
    assert prompts(batch) == ["first", "last"]
    (bad,) = batch.bad_lines
    assert bad.number == 3
    assert words in str(bad)
    assert str(bad).startswith("line 3: ")
    assert "\n" not in str(bad)


# --- CSV


def test_csv_has_a_header_row() -> None:
    """Columns in any order; empty cells say nothing; quotes hold commas and line ends."""
    text = 'seed,Prompt,images\n7,"a fox, ""red""\nin snow",\n\n1..2,a star,3\n'
    batch = parsed(text)
    assert batch.rows == (
        {"prompt": 'a fox, "red"\nin snow', "seed": (7,)},
        {"prompt": "a star", "seed": (1, 2), "images": 3},
    )


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_marks_between_cells(mark: str) -> None:
    """As spreadsheets of many countries write them."""
    text = f"prompt{mark}size\na fox, red{mark}64\n"
    assert parsed(text, kind=CSV).rows == ({"prompt": "a fox, red", "size": 64},)


def test_one_column_is_csv_by_the_name_of_the_file(tmp_path: Path) -> None:
    """`prompt` alone could be a prompt."""
    file = tmp_path / "a.csv"
    file.write_text("prompt\na star\n")
    assert prompts(read_batch(file, check)) == ["a star"]
    assert prompts(parsed("prompt\na star\n")) == ["prompt", "a star"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,y,z", "3 cells"),
        ("x", "1 cells"),
        ("x,many", "'many'"),
        ('"x"y,1', "not CSV"),
        ('"x', "not CSV"),
        (",3", "empty"),
    ],
)
def test_a_bad_row_is_told_by_its_number(row: str, words: str) -> None:
    """Rows before and behind are read, even behind a quote that is never closed."""
    batch = parsed(f'prompt,images\n"two\nlines",1\n{row}\nlast,2\n')
    assert prompts(batch) == ["two\nlines", "last"]
    (bad,) = batch.bad_lines
    assert bad.number == 4
    assert words in str(bad)


@pytest.mark.parametrize(
    ("header", "words"),
    [("promt,seed", "'promt'"), ("seed,size", "no column"), ("prompt,prompt", "twice")],
)
def test_a_header_that_makes_no_sense_ends_it(header: str, words: str) -> None:
    """Then no line can be read right."""
    with pytest.raises(BatchError, match=words):
        parsed(f"{header}\na,1\n", kind=CSV)


# --- files


def test_the_kind_goes_by_the_name_then_by_the_first_line(tmp_path: Path) -> None:
    """A .txt holds prompts whatever they look like."""
    content = '{"prompt": "x"}\n'
    for name, expected in (("a.jsonl", "x"), ("a", "x"), ("a.txt", content.strip())):
        (tmp_path / name).write_text(content)
        assert prompts(read_batch(tmp_path / name, check)) == [expected]


def test_pictures_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    """A relative name begins at the file's folder, an absolute one at the root."""
    file = tmp_path / "deep" / "a.jsonl"
    (file.parent / "in").mkdir(parents=True)
    Image.new("L", (8, 6)).save(file.parent / "in" / "a.png")
    Image.new("L", (8, 6)).save(tmp_path / "b.png")
    file.write_text(json.dumps({"image": "in/a.png", "mask": str(tmp_path / "b.png")}))
    (line,) = read_batch(file, lambda _line: None).rows
    assert line["image"] == look_at(file.parent / "in/a.png")
    assert line["mask"] == look_at(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("value", "words"),
    [('"none.png"', "does not exist"), ("5", "give a path, a PIL image"), ("[]", "give a path")],
)
def test_a_line_whose_picture_is_none_is_a_bad_line(value: str, words: str, tmp_path: Path) -> None:
    """As bad as any other."""
    batch = parsed(f'"good"\n{{"prompt": "x", "image": {value}}}', kind=JSON_LINES, folder=tmp_path)
    assert prompts(batch) == ["good"]
    assert batch.bad_lines[0].number == 2
    assert words in batch.bad_lines[0].reason


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_has_no_lines(content: str) -> None:
    """Neither good nor bad ones."""
    assert parsed(content) == BatchFile((), ())


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """In one line, with what the system says."""
    with pytest.raises(BatchError, match=r"none.txt cannot be read \(No such file"):
        read_batch(tmp_path / "none.txt", check)


@given(st.binary(max_size=300), st.sampled_from([JSON_LINES, CSV, PLAIN, None]))
def test_whatever_a_file_holds_it_is_lines_or_an_error(content: bytes, kind: str | None) -> None:
    """No content is a bug, and every bad line has a number of the file."""
    try:
        batch = parse_batch(content, check, kind=kind)
    except BatchError:
        return
    assert all(
        1 <= bad.number <= content.count(b"\n") + content.count(b"\r") + 1
        for bad in batch.bad_lines
    )


@pytest.mark.parametrize("line", ['"prompt {}', '{{"prompt": "{}"}}', '"x {}" y'])
def test_thousands_of_lines_take_a_moment(line: str) -> None:
    """Good or bad, time grows with their number."""
    content = "prompt,seed\n" + "\n".join(line.format(k) for k in range(20_000))
    began = time.monotonic()
    batch = parsed(content, kind=CSV)
    assert len(batch.rows) + len(batch.bad_lines) > 5_000
    assert time.monotonic() - began < 10
