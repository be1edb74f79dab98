"""What every part of the check knows: the device, the folders, and the weights to work with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRATCH_RAM = 12e9
"""RAM that plans may use: what free Colab leaves. Larger machines hold to it, too."""
QUICK_RAM = 4e9


@dataclass(frozen=True, slots=True)
class Setup:
    """What a part's process is started with.

    Attributes:
        device: `cuda:0`, or `cpu` to try the code.
        quick: the tiny cascade instead of real sizes, and few repetitions.
        out: the folder for results, weights and runs.
        have: names of the rows that an earlier, unfinished run of the part has measured.
    """

    device: str
    quick: bool
    out: Path
    have: tuple[str, ...] = ()

    @property
    def on_card(self) -> bool:
        return self.device != "cpu"

    @property
    def ram_bytes(self) -> int:
        """The RAM budget of plans."""
        return int(QUICK_RAM if self.quick else SCRATCH_RAM)

    @property
    def dtype(self) -> str:
        """The number type that networks compute in; few operations exist in float16 on CPUs."""
        return "float16" if self.on_card else "bfloat16"

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Setup:
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"out": Path(fields["out"]), "have": tuple(fields["have"])})


def tiny_cascade(setup: Setup) -> Path:
    """The tests' tiny cascade with random weights, made once."""
    folder = setup.out / "weights" / "tiny"
    if not (folder / "upscaler" / "model_index.json").is_file():  # what is written last
        script = ROOT / "tests" / "helpers" / "tiny_cascade.py"
        subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


def real_cascade(setup: Setup) -> Path:
    """if-xl of real size; its weights are zeros in sparse files. The tiny cascade if `quick`."""
    if setup.quick:
        return tiny_cascade(setup)
    from lowmem_if.weights.synthetic.checkpoints import ZEROS, synthesize

    folder = setup.out / "weights" / "if-xl"
    synthesize("if-xl", folder, fill=ZEROS)
    return folder


def fresh_folder(setup: Setup, name: str) -> Path:
    """A folder for one run that nothing is in yet."""
    folder = setup.out / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
