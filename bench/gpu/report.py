"""Results of the parts in, one document for people out: predicted beside measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.gpu.constants import profile_text
from bench.gpu.parts import PARTS
from bench.gpu.rows import BYTES, RATE, SECONDS, Row

_HEADS = "\n".join(
    (
        "| what | figure | predicted | measured | measured / predicted |",
        "| --- | --- |" + " ---: |" * 3,
    )
)
_MARKS = {True: "", False: "**FAILED** ", None: ""}


def report(
    about: dict[str, Any], results: Sequence[dict[str, Any]], constants: dict[str, Any]
) -> str:
    """The whole document.

    Args:
        about: `card`, `machine` (in words) and `versions` (library -> version).
        results: of the parts that have run; a part without one is listed as not run.
        constants: as `constants.collected` gives them.
    """
    by_part = {result["part"]: result for result in results}
    text = [_head(about, results)]
    for part in PARTS:
        result = by_part.get(part.name)
        text.append(f"## {part.title}\n\n{_section(result)}")
    if keys := constants.get("profile_rates"):
        text.append(f"## For a profile\n\n```toml\n{profile_text(keys)}\n```")
    return "\n\n".join(text) + "\n"


def _head(about: dict[str, Any], results: Sequence[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    failed = [f"- {line}" for result in results for line in _failures(result)]
    lines = [
        f"# {about['card']}",
        "",
        "Made by `make gpu-check`.",
        "",
        f"- {about['machine']}",
        f"- {versions}",
    ]
    if any(result["quick"] for result in results):
        lines.append(
            "- **a quick run with the tiny cascade: its figures say nothing of real sizes**"
        )
    lines += [
        "",
        "What failed:" if failed else "Nothing failed in the parts that have run.",
        *failed,
    ]
    return "\n".join(lines)


def _failures(result: dict[str, Any]) -> Iterable[str]:
    """What has to be looked at, a line each."""
    if result["status"] != "done":
        yield f"{_title(result['part'])}: {result['status']}, {result['why']}"
    for row in result["rows"]:
        if row["ok"] is False:
            yield f"{_title(result['part'])}: {row['name']}: {row['text'] or 'see the figures'}"


def _title(name: str) -> str:
    return next((part.title for part in PARTS if part.name == name), name)


def _section(result: dict[str, Any] | None) -> str:
    if result is None:
        return "Not run."
    state = (
        "" if result["status"] == "done" else f"; **{result['status']}**: {_cell(result['why'])}"
    )
    lines = [f"{result['seconds']:.0f} s on {result['date']}{state}"]
    if result["rows"]:
        lines += ["", _HEADS, *(line for row in result["rows"] for line in _lines(row))]
    return "\n".join(lines)


def _lines(row: Row) -> Iterable[str]:
    """A table line per figure; the row's remark stands in the first one."""
    name = f"{_MARKS[row['ok']]}{_cell(row['name'])}"
    if row["text"]:
        name += f": {_cell(row['text'])}"
    if not row["figures"]:
        yield f"| {name} | | | | |"
    for figure in row["figures"]:
        cells = (name, _cell(figure["what"]), *_numbers(figure))
        yield f"| {' | '.join(cells)} |"
        name = ""


def _numbers(figure: Row) -> tuple[str, str, str]:
    """(predicted, measured, ratio) as text."""
    predicted, measured, unit = figure["predicted"], figure["measured"], figure["unit"]
    if predicted is None:
        return "", shown(measured, unit), ""
    ratio = f"{measured / predicted:.2f}" if predicted else ""
    return shown(predicted, unit), shown(measured, unit), ratio


def shown(value: float, unit: str) -> str:
    """A number with its unit: `1.50 GB`, `3 MB`, `2.1 s`, `12.9 GB/s`, `7`."""
    if unit in (BYTES, RATE):
        per = "/s" if unit == RATE else ""
        return f"{value / 1e9:.2f} GB{per}" if abs(value) >= 1e8 else f"{value / 1e6:.1f} MB{per}"
    if unit == SECONDS:
        return f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    """Text that a table cell can hold."""
    return " ".join(text.split()).replace("|", "\\|")
