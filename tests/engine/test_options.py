"""The options of the public functions: an unknown one is a known error that names the nearest."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lowmem_if as lm
from lowmem_if.engine.options import (
    GenerateOptions,
    PlanOptions,
    check_options,
    checked_pins,
    part_of,
)

TREE = Path(__file__).parents[2]

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "generate": (lm.generate, ("x",)),
    "vary": (lm.vary, ("x.png",)),
    "inpaint": (lm.inpaint, ("x.png", "mask.png", "x")),
    "upscale": (lm.upscale, ("x.png",)),
    "batch": (lm.batch, (["x"],)),
    "embed": (lm.embed, ("x",)),
    "enlarge": (lm.enlarge, ("runs/x", [1])),
    "run": (lm.run, (None, "runs/x")),
    "resume": (lm.resume, ("runs/x",)),
    "fetch": (lm.fetch, ("demo",)),
    "Session": (lm.Session, ()),
}
"""Every public function with options, and what it must be given."""

SESSION_CALLS = {name: given for name, (_, given) in CALLS.items() if hasattr(lm.Session, name)}


@pytest.mark.parametrize("function", CALLS)
def test_an_unknown_option_is_a_known_error(function: str) -> None:
    """Before anything is read or measured."""
    call, given = CALLS[function]
    with pytest.raises(lm.RequestError, match=f"^{function} has no option 'zzz'$"):
        call(*given, zzz=3)


@pytest.mark.parametrize("function", [*SESSION_CALLS, "measure"])
def test_a_sessions_methods_refuse_unknown_options(function: str) -> None:
    """The same words, and the session is not left busy."""
    with lm.Session() as session:
        for _ in range(2):
            with pytest.raises(lm.RequestError, match=f"^{function} has no option 'zzz'$"):
                getattr(session, function)(*SESSION_CALLS.get(function, ()), zzz=3)


def test_the_nearest_option_is_named() -> None:
    """Misspelt options are named as they are."""
    with pytest.raises(lm.RequestError, match="'stepz': did you mean 'steps'"):
        lm.generate("x", stepz=3)  # type: ignore[call-arg]
    with pytest.raises(lm.RequestError, match="'other_version': did you mean 'other_versions'"):
        lm.resume("x", other_version=True)  # type: ignore[call-arg]
    with pytest.raises(lm.RequestError, match="'profil': did you mean 'profile'"):
        lm.fetch("demo", profil="colab-free")  # type: ignore[call-arg]


def test_every_option_of_a_request_can_be_given() -> None:
    """The typed options are all that a request takes, so none is refused."""
    named = set(inspect.signature(lm.make_request).parameters) - {"prompts", "lines", "options"}
    options = named | lm.PictureOptions.__optional_keys__
    assert len(options) > 20
    check_options("generate", options, GenerateOptions)


def test_options_are_parted_by_their_group() -> None:
    """Each part of the engine takes its own."""
    given = {"ram": "8GB", "size": 64, "prefer": "exact"}
    assert part_of(given, PlanOptions) == {"ram": "8GB", "prefer": "exact"}


def test_pins_may_be_texts_or_values() -> None:
    """As on the command line, or as `Pin`."""
    pins = checked_pins({"stage_1": "stream", "stage_2": lm.Pin("resident", "float32")})
    assert pins == {"stage_1": lm.Pin("stream"), "stage_2": lm.Pin("resident", "float32")}
    assert checked_pins(None) == {}


def test_the_package_says_that_it_is_typed() -> None:
    """Type checkers read the annotations of an installed package only if this file is in it."""
    assert (Path(lm.__file__).parent / "py.typed").is_file()


def test_the_typing_tests_pass() -> None:
    """Known results and expected errors, by mypy in its strict mode."""
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "typing_tests"],
        cwd=TREE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
