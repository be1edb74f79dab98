"""What a part yields: rows of figures, plain dictionaries that JSON can hold."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

BYTES, SECONDS, RATE, COUNT = "bytes", "s", "bytes/s", "count"


def figure(what: str, measured: float, predicted: float | None = None, unit: str = BYTES) -> Row:
    """One measured number, and what was predicted of it."""
    return {"what": what, "measured": measured, "predicted": predicted, "unit": unit}


def row(
    name: str,
    *figures: Row,
    ok: bool | None = True,
    text: str = "",
    constants: dict[str, Any] | None = None,
) -> Row:
    """One row of a part.

    Args:
        name: unique within the part; a later row of the same name replaces an earlier one.
        ok: whether what must hold does; None where nothing was checked.
        text: a remark for the report.
        constants: what profiles and the cost model can use of it.
    """
    return {
        "name": name,
        "figures": list(figures),
        "ok": ok,
        "text": text,
        "constants": constants or {},
    }


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    line = next((line for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {line.strip()}"


def latest(rows: list[Row]) -> list[Row]:
    """The last row of each name, in the order in which the names first appeared."""
    return list({each["name"]: each for each in rows}.values())
