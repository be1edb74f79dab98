"""What a type checker knows of a session: the same options as the functions, and its own."""

from __future__ import annotations

from typing import Any, assert_type

import lowmem_if as lm


def right_calls(request: lm.Request) -> None:
    """A session is a context manager; its methods have the functions' results."""
    with lm.Session(cascade="demo", ram="4GB", keep_loaded=False) as session:
        assert_type(session, lm.Session)
        assert_type(session.generate("a", size=64), lm.RunResult)
        assert_type(session.batch("prompts.jsonl").bad_lines, tuple[lm.BadLine, ...])
        assert_type(session.plan(request, prefer="balanced"), lm.Plan)
        assert_type(session.measure(device="cpu"), lm.Machine)
        assert_type(session.loaded, tuple[lm.LoadedComponent, ...])
        assert_type(session.release(), dict[str, dict[str, Any]])


def wrong_calls() -> None:
    """Options that do not exist."""
    lm.Session(size=64)  # type: ignore[call-arg]
    with lm.Session() as session:
        session.generate("a", stepz=3)  # type: ignore[call-arg]
        session.measure(prefer="exact")  # type: ignore[call-arg]
