"""Sizes and times as people write and read them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_if.errors import RequestError
from lowmem_if.units import format_bytes, format_seconds, is_bare, parse_bytes

UNITS = {
    "": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("7.5GiB", 8_053_063_680),
        ("8gb", 8_000_000_000),
        ("8gIb", 8 * 2**30),
        (" 12 GB ", 12_000_000_000),
        ("0.5kB", 500),
        ("13616324608", 13_616_324_608),
        ("1b", 1),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    """Units count by 1000 (GB) or 1024 (GiB), case and spaces do not matter, no unit means bytes."""
    assert parse_bytes(text) == size


@settings(derandomize=True, database=None, deadline=None, max_examples=50)
@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)))
def test_every_unit_multiplies_by_its_own_factor(number: int, unit: str) -> None:
    """Any whole number of any unit is exactly that many bytes."""
    factor = 10**9 if not unit.strip() and number < 1024 else UNITS[unit]
    assert parse_bytes(f"{number}{unit}") == number * factor


@pytest.mark.parametrize(
    ("text", "size"),
    [("8", 8 * 10**9), (" 0.5 ", 5 * 10**8), ("1023", 1023 * 10**9), ("1024", 1024), ("8B", 8)],
)
def test_a_small_number_without_a_unit_is_in_gigabytes(text: str, size: int) -> None:
    """Nobody means eight bytes; from 1024 on, and with a unit, a number is what it says."""
    assert parse_bytes(text) == size
    assert is_bare(text) == (size >= 10**6)


@pytest.mark.parametrize(
    "text",
    ["", " ", "GB", "lots", "8 gigs", "8G", "-8GB", "+8GB", "0", "0GB", "0.0001kB", "1e9", "1,5GB",
     "8GB 2GB", "0x10", "nan", "inf", ".5GB", "5.GB", "8\nGB!", "1_000"],
)  # fmt: skip
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    """Anything but a positive number with a known unit is a RequestError that shows how to write it."""
    with pytest.raises(RequestError) as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)
    assert "8GB" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["9" * 400, "9" * 400 + "GB", "9" * 5000], ids=["long", "with a unit", "longer"]
)
def test_an_absurdly_long_number_is_refused_too(text: str) -> None:
    """A number beyond what a float holds is no memory size, and no crash either."""
    with pytest.raises(RequestError, match="not a memory size"):
        parse_bytes(text)


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(st.text(max_size=12))
def test_no_text_does_anything_but_parse_or_raise_a_request_error(text: str) -> None:
    """Whatever is typed, the answer is a positive number or a RequestError."""
    with suppress(RequestError):
        assert parse_bytes(text) > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1_000, "1.0 kB"),
        (14_200_000, "14.2 MB"),
        (8_600_000_000, "8.6 GB"),
        (2_000_000_000_000, "2000.0 GB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_fits(size: int, text: str) -> None:
    """Sizes are shown with one decimal in the largest unit that they reach."""
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (59.0, "59.0 s"), (60, "1 min 0 s"), (184.2, "3 min 4 s"), (3600, "1 h 0 min"),
     (7_980, "2 h 13 min")],
)  # fmt: skip
def test_a_time_is_shown_in_seconds_minutes_or_hours(seconds: float, text: str) -> None:
    """Times are shown in the two units that matter at their length."""
    assert format_seconds(seconds) == text
