"""Seeds as people write them, and what a series of them draws."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import plan_of

from lowmem_if.errors import RequestError
from lowmem_if.planning.plan import Plan
from lowmem_if.request.build import make_request
from lowmem_if.request.seeds import MAX_SEED, parse_seeds


@pytest.mark.parametrize(
    ("text", "prompts", "seeds"),
    [
        ("7", 2, (7,)),
        ("7,8", 2, (7, 8)),
        (" 3, 7,12", 1, (3, 7, 12)),
        ("1..4", 1, (1, 2, 3, 4)),
        ("1..2", 2, (1, 2, 1, 2)),
        ("1..3,9", 2, (1, 2, 3, 9, 1, 2, 3, 9)),
        ("5..5", 1, (5,)),
        ("1-4", 1, (1, 2, 3, 4)),
        ("1 – 3", 1, (1, 2, 3)),
        ("1…3,9", 2, (1, 2, 3, 9, 1, 2, 3, 9)),
        ("-1", 2, (-1,)),
        (f"{MAX_SEED}", 1, (MAX_SEED,)),
    ],
)
def test_seeds_are_read(text: str, prompts: int, seeds: tuple[int, ...]) -> None:
    """Numbers stand for themselves; with a series among them all of them serve every prompt."""
    assert parse_seeds(text, prompts) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a whole number"),
        ("x", "not a whole number"),
        ("1..", "not a whole number"),
        ("..4", "not a whole number"),
        ("1...4", "not a whole number"),
        ("1-", "not a whole number"),
        ("1--4", "not a whole number"),
        ("4-1", "not a rising series"),
        ("1,,2", "not a whole number"),
        ("1.5", "not a whole number"),
        ("4..1", "not a rising series"),
        ("-3..2", "not a whole number"),
        (f"0..{10**18}", "too many"),
        (f"0..{2**63}", "not a rising series"),
    ],
)
def test_what_is_no_seed_is_refused_in_one_line(text: str, words: str) -> None:
    """Typing errors are told by their text, and a huge series costs nothing."""
    with pytest.raises(RequestError, match=words) as caught:
        parse_seeds(text, 1)
    assert "\n" not in str(caught.value)


def test_a_series_gives_each_prompt_a_picture_a_seed() -> None:
    """Several seeds of one prompt are as many pictures; a range serves every prompt."""
    one = make_request(("a",), seed=(3, 7, 12))
    assert [(task.prompt, task.seed) for task in one.images] == [("a", 3), ("a", 7), ("a", 12)]
    both = make_request(("a", "b"), seed=range(1, 3))  # type: ignore[arg-type]
    assert [(task.prompt, task.seed) for task in both.images] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip


def test_a_series_draws_the_pictures_that_images_would() -> None:
    """1..16 is seed 1 with 16 images, task by task."""
    series = make_request(("a",), seed=range(1, 17))  # type: ignore[arg-type]
    assert series.images == make_request(("a",), seed=(1,), images=16).images


def test_a_series_and_images_exclude_each_other() -> None:
    """Both say how many pictures there are."""
    with pytest.raises(RequestError, match="leave out images"):
        make_request(("a",), seed=(1, 2), images=2)


@pytest.mark.parametrize("length", [10**9, 2**70])
def test_a_long_range_is_refused_before_it_is_made(length: int) -> None:
    """A billion seeds are no request."""
    with pytest.raises(RequestError, match="too many"):
        make_request(("a",), seed=range(length))  # type: ignore[arg-type]


def test_a_plan_with_a_series_is_read_back(tiny: Path) -> None:
    """What a range became is what is written down."""
    plan = plan_of(tiny, ("a", "b"), seed=range(1, 4))
    assert Plan.from_json(plan.to_json()) == plan
    assert len(plan.request.images) == 6
