"""Install the wheel into imitations of the environments that people have, and test it there.

    python tests/environments/check.py [NAME ...]     (make test-environments)

Each list of versions beside this file is one environment: `colab-2026-08.txt` is what Colab published of
its own. For each one this script builds a virtual environment, installs the wheel and checks that
nothing that was installed has changed, draws with the demo and compares the pixels with those drawn
here, and runs the tests that depend on the versions of libraries.

Environments are kept in $LOWMEM_IF_ENVIRONMENTS, or in the user's cache folder, or in `build/`: each
takes some 6 GB. An environment that cannot be built here, for want of its Python or of a build of a
package, is skipped, and the last lines say so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

HERE = Path(__file__).parent
TREE = HERE.parents[1]
NOTEBOOKS = TREE / "notebooks"
NOTEBOOK = NOTEBOOKS / "colab_free_tier.ipynb"
DEFAULT = ("colab-2026-08", "oldest", "newest")
"""The newest list of Colab, the oldest versions that are supported, and the newest ones."""

TESTS = (
    "whole_runs/test_parity.py",
    "whole_runs/test_streamed_runs.py",
    "whole_runs/test_half_precision.py",
    "weights/test_loading.py",
    "weights/test_memory_readings.py",
    "weights/test_library_differences.py",
    "weights/streaming/test_streamer.py",
    "weights/hub/test_repository.py",
    "weights/modules/test_quantization.py",
    "engine/test_session.py",
    "stages/drawing/test_noise.py",
)
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "peft", "nbclient", "ipykernel")
PROMPT = "a red circle on a blue background"
MOST_ROUNDED = 1e-4
"""Which share of pixels may round to the next level."""
EIGHT_BIT = ("--pin", "text_encoder=resident:int8")


class Skipped(Exception):
    """This environment cannot be had on this machine; the text says why."""


class Failed(Exception):
    """The package does not do in this environment what it must; the text says what."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment made from a list of versions.

    Attributes:
        name: of the list.
        folder: where it is kept.
    """

    name: str
    folder: Path

    @property
    def python(self) -> Path:
        windows = self.folder / "Scripts" / "python.exe"
        return windows if windows.parent.is_dir() else self.folder / "bin" / "python"

    @property
    def record(self) -> Path:
        """What is installed when nothing has been added."""
        return self.folder / "as-built.txt"

    def run(self, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        """Run this environment's Python, its output captured."""
        command = [str(self.python), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]

    def pip(self, *arguments: str | Path) -> None:
        """Run pip; raises `Failed` with its last words."""
        done = self.run("-m", "pip", *arguments, "--disable-pip-version-check")
        if done.returncode:
            raise Failed(f"pip {' '.join(map(str, arguments))}: {_last_words(done)}")

    def installed(self) -> dict[str, str]:
        """Package -> version, as pip sees it."""
        listed = self.run("-m", "pip", "list", "--format=json", "--disable-pip-version-check")
        return {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}


def main() -> int:
    """Check the environments that are asked for; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description="test the wheel in imitated environments")
    names = sorted(file.stem for file in HERE.glob("*.txt"))
    parser.add_argument("names", nargs="*", choices=[*names, []], help="default: all but Kaggle's")
    chosen = parser.parse_args().names or DEFAULT
    outcomes = {}
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _wheel(Path(scratch))
        pictures = _draw(Environment("here", Path(sys.prefix)), Path(scratch) / "here")
        for name in chosen:
            began = time.monotonic()
            try:
                _check(name, wheel, pictures, Path(scratch) / name)
                outcome = "passed"
            except (Skipped, Failed) as end:
                outcome = f"{type(end).__name__.lower()}: {end}"
            outcomes[name] = outcome
            _say(name, f"{outcome.partition(':')[0]} after {time.monotonic() - began:.0f} s")
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


def _check(name: str, wheel: Path, pictures: dict[str, Path], scratch: Path) -> None:
    scratch.mkdir()
    environment = _as_built(name)
    if name != "newest":  # `make test` runs the notebooks among the newest libraries
        _run_notebook(environment, wheel, scratch)
    _add(environment, wheel)
    _say(name, "installed the wheel; nothing else has changed")
    _draw(environment, scratch, kinds=("plain",), like=pictures)
    _check_without_bitsandbytes(environment)
    _add(environment, "--no-deps", "bitsandbytes")
    _draw(environment, scratch, kinds=("int8",), like=pictures)
    _say(name, "drew the same pixels, with the 8-bit text encoder, too")
    _add_tools(environment, scratch, *TEST_TOOLS)
    _test(environment)


def _as_built(name: str) -> Environment:
    """The environment of a list with nothing else in it: kept from before, or built now."""
    file = HERE / f"{name}.txt"
    text = file.read_text(encoding="utf-8")
    python, version = _find_python(text)
    key = hashlib.sha256(f"{version}\n{text}".encode()).hexdigest()[:12]
    environment = Environment(name, _cache() / f"{name}-{key}")
    if environment.record.is_file():
        _restore(environment, file)
    else:
        _build(environment, python, file)
    return environment


def _build(environment: Environment, python: str, file: Path) -> None:
    _say(environment.name, f"building with {python}: some minutes, some 6 GB")
    shutil.rmtree(environment.folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(environment.folder)], check=True)
    done = environment.run("-m", "pip", "install", "--requirement", file)
    if done.returncode:
        shutil.rmtree(environment.folder, ignore_errors=True)
        if "No matching distribution" in done.stderr or "ResolutionImpossible" in done.stderr:
            raise Skipped(f"the registry lacks a build ({_last_words(done)})")
        raise Failed(f"cannot be built: {_last_words(done)}")
    _keep_record(environment)


def _restore(environment: Environment, file: Path) -> None:
    """Undo what an earlier check did; a list without versions is brought up to date."""
    before = json.loads(environment.record.read_text())
    now = environment.installed()
    if added := sorted(now.keys() - before.keys()):
        environment.pip("uninstall", "--yes", *added)
    if changed := [f"{n}=={v}" for n, v in before.items() if now.get(n) != v]:
        environment.pip("install", "--no-deps", *changed)
    if "==" not in file.read_text(encoding="utf-8"):
        environment.pip("install", "--upgrade", "--requirement", file)
        _keep_record(environment)


def _keep_record(environment: Environment) -> None:
    environment.record.write_text(json.dumps(environment.installed(), indent=1))


def _add(environment: Environment, *what: str | Path) -> None:
    """Install more as a user would; raises `Failed` if a package that was there has changed or gone."""
    before = environment.installed()
    environment.pip("install", *what)
    after = environment.installed()
    changed = [
        f"{name} {version} -> {after.get(name, 'gone')}"
        for name, version in before.items()
        if after.get(name) != version
    ]
    if changed:
        raise Failed(f"installing {what[-1]} changed {', '.join(changed)}")


def _add_tools(environment: Environment, scratch: Path, *names: str) -> None:
    """Install what the tests need, in releases that go with what is there."""
    kept = scratch / "constraints.txt"
    pins = [f"{name}=={version}" for name, version in environment.installed().items()]
    # The wheel and builds of torch are not in the registry under these versions.
    kept.write_text("\n".join(pin for pin in pins if "+" not in pin and "lowmem" not in pin))
    _add(environment, "--constraint", kept, *names)


def _draw(
    environment: Environment,
    scratch: Path,
    *,
    kinds: tuple[str, ...] = ("plain", "int8"),
    like: dict[str, Path] | None = None,
) -> dict[str, Path]:
    """Draw with the demo, with and without 8 bits; raises `Failed` if pixels differ from `like`."""
    drawn = {}
    for kind in kinds:
        folder = scratch / kind
        options = EIGHT_BIT if kind == "int8" else ()
        done = environment.run(
            *("-P", "-m", "lowmem_if", "generate", PROMPT, "--cascade", "demo", "--seed", "1"),
            *("--out", folder, *options),
            env=_environ(LOWMEM_IF_CACHE=str(scratch / "cache")),
        )
        if done.returncode:
            raise Failed(f"the demo ({kind}): {_last_words(done)}")
        drawn[kind] = folder / "0000.png"
        if like:
            _compare(drawn[kind], like[kind], kind)
    return drawn


def _compare(ours: Path, theirs: Path, kind: str) -> None:
    """Raise `Failed` unless two pictures are the same but for the rounding of a few pixels.

    torch 2.10 and 2.14 multiply with other kernels than 2.11 to 2.13, among which no bit differs: in
    float32 a picture of the demo differs by up to 2e-5 of its range, as it does between one thread and
    two, and some 40 of a million pixels round to the next of 255 levels.
    """
    with Image.open(ours) as one, Image.open(theirs) as other:
        difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
    extremes: Any = difference.getextrema()  # a pair for each band
    largest = max(high for _low, high in extremes)
    other_pixels = sum(
        ImageChops.lighter(
            ImageChops.lighter(*difference.split()[:2]), difference.split()[2]
        ).histogram()[1:]
    )
    if largest > 1 or other_pixels > MOST_ROUNDED * difference.width * difference.height:
        raise Failed(
            f"the demo ({kind}): {other_pixels} pixels differ, by up to {largest} of 255 levels"
        )
    _say(kind, f"{other_pixels} pixels differ, by up to {largest} of 255 levels")


def _check_without_bitsandbytes(environment: Environment) -> None:
    """Without bitsandbytes, 8 bits are refused with the command that installs it."""
    if "bitsandbytes" in environment.installed():
        return
    done = environment.run("-P", "-m", "lowmem_if", "plan", PROMPT, *EIGHT_BIT, env=_environ())
    if done.returncode != 1 or "pip install --no-deps bitsandbytes" not in done.stderr:
        raise Failed(f"8 bits without bitsandbytes: {_last_words(done)}")


def _test(environment: Environment) -> None:
    """Run the tests that depend on library versions, on the installed package, not on the tree."""
    files = [TREE / "tests" / name for name in TESTS]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = environment.run(
            *("-P", "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"),
            *(
                "-p",
                "no:cacheprovider",
                "-c",
                TREE / "pyproject.toml",
                "-o",
                f"pythonpath={TREE / 'tests/helpers'}",
            ),
            *files,
            cwd=elsewhere,
            env=_environ(OMP_NUM_THREADS="1"),
        )
    print(done.stdout[-6000:] if done.returncode else _last_words(done))
    if done.returncode:
        raise Failed(_last_words(done))


def _run_notebook(environment: Environment, wheel: Path, scratch: Path) -> None:
    """Run Colab's notebook from top to bottom, which installs the wheel into an environment on top."""
    _add_tools(environment, scratch, "ipykernel")
    command = [NOTEBOOKS / "execute.py", "--check", NOTEBOOK, "--python", environment.python]
    done = subprocess.run(
        [sys.executable, *map(str, command), "--source", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
        env=_environ(),
    )
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:])
        raise Failed(f"{NOTEBOOK.name}: {_last_words(done)}")
    _say(environment.name, f"{NOTEBOOK.name} ran from top to bottom")


def _wheel(scratch: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(scratch), str(TREE)],
        check=True,
        capture_output=True,
    )
    return next(scratch.glob("*.whl"))


def _find_python(text: str) -> tuple[str, str]:
    """The interpreter that a list asks for ("Python 3.13", "Python 3.11 or later"), and its version."""
    asked = re.search(r"Python 3\.(\d+)( or later)?", text)
    if asked is None:
        raise Failed("the list does not say which Python it is for")
    minor = int(asked[1])
    here = sys.version_info.minor
    if here == minor or (asked[2] and here > minor):
        return sys.executable, sys.version
    for python in _pythons(minor):
        # What stands on the path may be a stub that leads to no interpreter.
        command = [python, "-c", "import sys, venv; print(sys.version)"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return python, done.stdout.strip()
    raise Skipped(f"there is no Python 3.{minor} here")


def _pythons(minor: int) -> Iterator[str]:
    if found := shutil.which(f"python3.{minor}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))


def _cache() -> Path:
    """Where environments are kept: outside the tree where there is a place for it."""
    if own := os.environ.get("LOWMEM_IF_ENVIRONMENTS"):
        return Path(own)
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user / "lowmem-if" / "environments" if user.is_dir() else TREE / "build" / "environments"


def _environ(**more: str) -> dict[str, str]:
    """This process's variables, but for those that lead to another environment's packages."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"GOMP_SPINCOUNT": "1000"} | more


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1].strip()


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
