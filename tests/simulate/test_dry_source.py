"""A dry run replaces parts of torch and of libraries, and nothing of lowmem-if itself."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lowmem_if
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.simulate.dry_source import FILE, dry_source
from lowmem_if.simulate.eight_bit import spelled_out
from lowmem_if.simulate.fake_device import DEVICE, dry_run
from lowmem_if.stages.components import STAGES  # with it all modules that a dry run uses
from lowmem_if.weights.files.tensor_reader import Reader
from lowmem_if.weights.source import FILES, WeightSource

PACKAGE = Path(lowmem_if.__file__).parent
PATCHING = {"simulate/fake_device.py", "simulate/eight_bit.py"}
"""The only modules that replace anything while they run."""


def own_attributes() -> dict[str, Any]:
    """Everything that our modules and their classes define, by full name."""
    found: dict[str, Any] = {}
    for name, module in sorted(sys.modules.items()):
        if not name.startswith("lowmem_if"):
            continue
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = value
            if inspect.isclass(value) and value.__module__.startswith("lowmem_if"):
                found |= {f"{name}.{key}.{inner}": part for inner, part in vars(value).items()}
    return found


def test_inside_a_dry_run_every_part_of_the_package_is_its_own() -> None:
    """Module by module and class by class, all names mean the very same objects as outside."""
    assert STAGES
    before = own_attributes()
    assert len(before) > 1000
    with dry_run(kernel="fused") as trace, spelled_out(trace):
        dry_source(trace)
        assert torch.accelerator.is_available()
        inside = own_attributes()
    replaced = [name for name, value in before.items() if inside.get(name) is not value]
    assert not [
        name for name in replaced if not name.endswith(("__warningregistry__", "__weakref__"))
    ]


def test_only_two_modules_patch_and_they_import_nothing_to_patch() -> None:
    """No `mock` elsewhere; and there no name from `lowmem_if` is the owner of a patch."""
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        name = file.relative_to(PACKAGE).as_posix()
        assert ("mock" in text) == (name in PATCHING), name
        assert 'patch("lowmem_if' not in text
        if name in PATCHING:
            assert not owners_of_ours(ast.parse(text))


def owners_of_ours(tree: ast.Module) -> set[str]:
    """Names from the package that are patched directly or yielded as the owner of a substitute."""
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lowmem_if")
        for alias in node.names
    }
    owners: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "patch.object":
            owners.append(node.args[0])
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            owners.append(node.value.elts[0])
    assert owners
    return {ast.unparse(owner).split(".")[0] for owner in owners} & ours


def test_a_dry_checkpoint_has_the_real_headers_and_reads_nothing() -> None:
    """What would be read is counted; the tensors are fake."""
    folder = DEMO_FOLDER / "stage_1" / "unet"
    with FILES.open_folder(folder) as real:
        headers = {name: real.stored(name) for name in real}
        assert type(real.reader()) is Reader
    with dry_run(kernel="fused") as trace, dry_source(trace).open_folder(folder) as dry:
        assert {name: dry.stored(name) for name in dry} == headers
        name = next(iter(dry))
        out = torch.empty(headers[name].shape, dtype=torch.float32, device=DEVICE)
        dry.reader().read(headers[name], out)
        assert trace.moved[FILE, "cpu"] == headers[name].size_bytes
        assert type(dry[name]) is type(out)  # a fake tensor


@pytest.mark.parametrize("field", ["most_threads", "prefetch"])
def test_by_default_the_machine_decides_how_weights_are_loaded(field: str) -> None:
    """Real files leave threads to the device, and open what is there."""
    assert getattr(WeightSource(), field) is None
    assert WeightSource() == FILES
