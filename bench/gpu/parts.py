"""The parts of the check, the most valuable first, with the seconds that each may take.

The limits allow for slow imports; together they may exceed the minutes that the check may take, and then
the last parts are left for a second run.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its module in this package has `rows(setup)`, which yields rows as it measures.

    Attributes:
        title: for the report.
        limit_s: after so many seconds its process is killed; the rows so far are kept.
    """

    name: str
    title: str
    limit_s: float

    @property
    def module(self) -> str:
        return f"bench.gpu.{self.name}"


PARTS = (
    Part("card_tests", "The tests that need a card", 120),
    Part("bare_worker", "Memory of the worker before any component", 60),
    Part("ordering", "Float16 text encoder, streamed and resident; int8 loading", 75),
    Part("strategies", "Real sizes under a ballast: every strategy", 180),
    Part("transfers", "Transfers, and how much of them computing hides", 75),
    Part("rates", "Constants of the cost model", 60),
    Part("shortages", "Out of memory on purpose", 90),
    Part("decoding", "Decoding 1024 pixels in float32", 60),
    Part("sessions", "A session: two calls, then release()", 60),
)
