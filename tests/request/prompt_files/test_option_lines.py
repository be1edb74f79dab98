"""Lines of options: what a row can hold is used, the rest is named."""

from __future__ import annotations

from typing import Any

import pytest

from lowmem_if.errors import RequestError
from lowmem_if.request.batch_file import PLAIN, parse_batch
from lowmem_if.request.prompt_files.option_lines import option_line


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('--prompt "a red circle" --seed 7', {"prompt": "a red circle", "seed": (7,)}),
        ("--prompt a red circle --seed=7", {"prompt": "a red circle", "seed": (7,)}),
        ("--seed 1..3 --prompt 'a fox'", {"prompt": "a fox", "seed": (1, 2, 3)}),
        ('--prompt fox --negative_prompt "a, b"', {"prompt": "fox", "negative_prompt": "a, b"}),
        ('--negative-prompt "" --prompt fox', {"prompt": "fox", "negative_prompt": ""}),
        ("--prompt fox --width 512 --height 768", {"prompt": "fox", "aspect": "512:768"}),
        ("--prompt fox --width 512 --height 512", {"prompt": "fox"}),
        ("--prompt fox --n_iter 2 --batch_size 3", {"prompt": "fox", "images": 6}),
        ("--prompt fox --size 64", {"prompt": "fox", "size": 64}),
    ],
)
def test_options_that_a_row_has_are_used(line: str, row: dict[str, Any]) -> None:
    """With the names and kinds of a row."""
    assert option_line(line) == (row, ())


def test_other_options_are_named_once_for_all_lines() -> None:
    """With the option of the command, where there is one."""
    said: list[str] = []
    text = '--prompt "a" --steps 5\n--prompt "b" --steps 6 --tiling true\n--a dash\n'
    batch = parse_batch(text.encode(), lambda _row: None, kind=PLAIN, notice=said.append)
    assert [row["prompt"] for row in batch.rows] == ["a", "b", "--a dash"]
    assert said == [
        "left out in lines 1, 2: --steps: give --steps to the command",
        "left out in line 2: --tiling: it has no such option",
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('--prompt "a', "No closing quotation"),
        ("--seed 5", "no --prompt"),
        ("--prompt --seed 5", "--prompt has no value"),
        ("--prompt a --size big", "--size 'big' is not a whole number"),
        ("--prompt a --seed x", "seed 'x'"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(line: str, words: str) -> None:
    """It is a bad line like any other."""
    with pytest.raises(RequestError, match=words):
        option_line(line)
