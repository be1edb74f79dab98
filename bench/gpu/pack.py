"""Pack what a machine with a GPU but without a package registry needs for the check.

    python -m bench.gpu.pack [--out FOLDER] [--python 3.12] [--cuda 130]

The folder has wheels, this project's files for the check, and `run.sh`, which installs and starts it.
The machine must have torch, transformers, accelerate and huggingface_hub already.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("pack.txt")
ALONE = ("bitsandbytes>=0.48", "diffusers>=0.36,<1")
"""Without what they depend on: that is torch and huggingface_hub, or in the list."""
MOST_BYTES = 60_000_000
FILES = ("bench", "tests", "Makefile", "pyproject.toml", "README.md", "LICENSE")
"""Of the checkout: what the check runs; the package itself is a wheel."""

_PLATFORMS = (
    "manylinux_2_28",
    "manylinux_2_27",
    "manylinux_2_24",
    "manylinux_2_17",
    "manylinux2014",
)
_LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(?P<kind>\w+)\.so")

RUN = """#!/bin/sh
# Install the pack into an environment on top of what is here, without a network, and run the check.
set -e
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3}
test -x env/bin/python || "$PYTHON" -m venv --system-site-packages env
# Where PYTHON is a virtual environment itself, its packages are not the system's.
where='import sysconfig; print(sysconfig.get_path("purelib"))'
"$PYTHON" -c "$where" > "$(env/bin/python -c "$where")/outer.pth"
env/bin/python -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels \\
    "lowmem-if[int8]" pytest
cd checkout
exec ../env/bin/python -m bench.gpu "$@"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pack; exit 1 if it is too large."""
    parser = argparse.ArgumentParser(
        prog="gpu-pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-pack")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--cuda", default="130", help="of its torch, for bitsandbytes")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    wheels = options.out / "wheels"
    wheels.mkdir(parents=True)
    _download(wheels, options.python)
    _build(wheels)
    for wheel in wheels.glob("bitsandbytes-*.whl"):
        keep_one_library(wheel, f"cuda{options.cuda}")
    _copy_checkout(options.out / "checkout")
    _write_script(options.out / "run.sh")
    size = folder_bytes(options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        print(f"more than {MOST_BYTES / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return 0


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    subprocess.run([*command, "--quiet", "--disable-pip-version-check"], check=True)


def _download(wheels: Path, python: str) -> None:
    """Wheels for the other machine's Python, whatever this one's is."""
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    common = (
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms,
        "--dest", wheels,
    )  # fmt: skip
    _pip("download", *common, "--requirement", LIST)
    _pip("download", *common, "--no-deps", *ALONE)


def _build(wheels: Path) -> None:
    _pip("wheel", "--no-deps", "--wheel-dir", wheels, ROOT)


def keep_one_library(wheel: Path, kind: str) -> None:
    """Write a wheel of bitsandbytes again without the libraries for other devices and versions of CUDA.

    Args:
        kind: of the library to keep, such as `cuda130`; the small one for CPUs is kept, too.

    Raises:
        SystemExit: the wheel has no such library.
    """
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old:
        kinds = {
            name: found["kind"] for name in old.namelist() if (found := _LIBRARY.fullmatch(name))
        }
        if kind not in kinds.values():
            raise SystemExit(f"{wheel.name} has no library for {kind}: {', '.join(kinds.values())}")
        dropped = {name for name, each in kinds.items() if each not in (kind, "cpu")}
        with zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            for entry in old.infolist():
                if entry.filename in dropped:
                    continue
                content = old.read(entry)
                if entry.filename.endswith(".dist-info/RECORD"):
                    content = without(content.decode(), dropped).encode()
                new.writestr(entry, content, zipfile.ZIP_DEFLATED, 9)
    smaller.replace(wheel)


def without(record: str, dropped: Iterable[str]) -> str:
    """A wheel's RECORD without the lines of some files."""
    gone = tuple(f"{name}," for name in dropped)
    return "".join(line for line in record.splitlines(True) if not line.startswith(gone))


def _copy_checkout(folder: Path) -> None:
    """The files of the checkout that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *FILES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def _write_script(file: Path) -> None:
    file.write_text(RUN, encoding="utf-8")
    file.chmod(0o755)


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
