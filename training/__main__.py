"""Train the whole demo cascade and export it: two processes of one thread each, politely.

python -m training [--folder build/demo] [--out build/demo-cascade]

Each part carries on from its checkpoint, so the command may be stopped and given again at any time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FIRST = ("train_text",)
SIDE_BY_SIDE = (("train_stage_1",), ("train_vae", "train_stage_2", "train_upscaler"))


def train(parts: tuple[str, ...], options: list[str]) -> None:
    """Run trainings one after the other; the first that fails ends all."""
    for part in parts:
        subprocess.run([sys.executable, "-u", "-m", f"training.{part}", *options], check=True)


def main() -> None:
    """Train what is not trained yet, then export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("build/demo-cascade"))
    parser.add_argument("--steps", type=int, help="of every part, to try whether all parts run")
    parser.add_argument("--tiny", action="store_true", help="one small picture a step, to try it")
    chosen = parser.parse_args()
    options = ["--folder", str(chosen.folder)]
    options += ["--steps", str(chosen.steps)] if chosen.steps else []
    options += ["--tiny"] if chosen.tiny else []
    train(FIRST, options)
    with ThreadPoolExecutor() as pool:
        chains = [pool.submit(train, parts, options) for parts in SIDE_BY_SIDE]
        for chain in chains:
            chain.result()
    export = ["-m", "training.export", "--folder", str(chosen.folder), str(chosen.out)]
    subprocess.run([sys.executable, *export], check=True)


if __name__ == "__main__":
    main()
