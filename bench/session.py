"""Prompts one after the other: in a session, as calls of `generate`, and as one batch.

    python -m bench.session [--images 10] [--size 64]

Prints the seconds of each way, on the clock and of processors, and whether all drew the same bits. Every
way begins with an empty cache, so every prompt goes through the text encoder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from PIL import Image

import lowmem_if as lm
from bench.__main__ import OUT, cpu_name
from bench.batch import prompts

Draw = Callable[..., lm.RunResult]


def main() -> int:
    """Measure all ways; exit 1 if any picture differs."""
    parser = argparse.ArgumentParser(prog="bench.session")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    texts = prompts(options.images)
    asked = {"size": options.size, "seed": 1, "device": "cpu"}
    print(f"{cpu_name()}; load average {os.getloadavg()[0]:.1f}")
    with _measured("generate") as folder:
        alone = _one_by_one(lm.generate, texts, folder, asked)
    with _measured("session") as folder, lm.Session() as session:
        warm = _one_by_one(session.generate, texts, folder, asked)
    with _measured("batch") as folder:
        together = [_pixels(image) for image in lm.batch(texts, out=folder, **asked).run.images]
    same = alone == warm == together
    print("same bits" if same else "pictures differ")
    return int(not same)


def _one_by_one(
    draw: Draw, texts: tuple[str, ...], folder: Path, asked: dict[str, object]
) -> list[bytes]:
    pictures, seconds = [], []
    for number, text in enumerate(texts):
        before = time.monotonic()
        (image,) = draw(text, out=folder / str(number), **asked).images
        seconds.append(time.monotonic() - before)
        pictures.append(_pixels(image))
    print(f"    first call {seconds[0]:.2f} s, later ones {median(seconds[1:]):.2f} s")
    return pictures


@contextmanager
def _measured(way: str) -> Iterator[Path]:
    """A folder for the runs of one way, which has a cache of its own; tells what the block took."""
    folder = OUT / "session" / way
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["LOWMEM_IF_CACHE"] = str(folder) + "-cache"
    shutil.rmtree(folder.with_name(f"{way}-cache"), ignore_errors=True)
    before = os.times()
    yield folder
    now = os.times()
    cpu = sum(now[2:4]) - sum(before[2:4])  # of the workers, which have ended
    print(f"{way}: {now.elapsed - before.elapsed:.1f} s, {cpu:.1f} CPU s of workers")


def _pixels(file: Path) -> bytes:
    with Image.open(file) as image:
        return image.tobytes()


if __name__ == "__main__":
    raise SystemExit(main())
