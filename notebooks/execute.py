"""Run the notebooks from top to bottom, with the bundled demo cascade.

`python notebooks/execute.py [NAME...]` runs them in this environment and keeps their outputs.
`python notebooks/execute.py --check NOTEBOOK --python PYTHON --source WHEEL` runs one with the packages of another
environment, and fails if a cell fails or if the notebook changes what is installed there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).parent
TIMEOUT_S = 900
"""For one cell."""


class CheckFailed(Exception):
    """A notebook does not work with another environment; the message says why."""


def notebooks() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("*.ipynb"))


def executed(
    file: Path,
    folder: Path,
    *,
    python: Path = Path(sys.executable),
    environment: Mapping[str, str] | None = None,
) -> NotebookNode:
    """Run a notebook in `folder` and return it with its outputs and the digest of its cells.

    The kernel and the commands in the cells are those of `python`, whatever kernels are registered. `environment`
    replaces this process's variables. Raises CellExecutionError.
    """
    notebook = nbformat.read(file, as_version=4)
    folder.mkdir(parents=True, exist_ok=True)
    python = python.absolute()  # not resolved: a virtual environment's interpreter is a link
    variables = dict(os.environ if environment is None else environment)
    variables["PATH"] = f"{python.parent}{os.pathsep}{variables['PATH']}"
    with tempfile.TemporaryDirectory() as kernels:
        client = NotebookClient(
            notebook,
            km=kernel_manager(python, Path(kernels)),
            timeout=TIMEOUT_S,
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
        )
        client.execute(env=variables, cleanup_kc=True)
    for cell in notebook.cells:  # libraries' warnings name paths of this machine
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if output.get("name") != "stderr"]
    notebook.metadata["lowmem_if"] = {"outputs_made_by": sources_digest(notebook)}
    return notebook


def kernel_manager(python: Path, kernels: Path) -> KernelManager:
    """Describe a kernel of `python` in the folder `kernels`, and return its manager; nothing runs yet."""
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (kernels / "chosen").mkdir()
    (kernels / "chosen" / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    specs = KernelSpecManager(kernel_dirs=[str(kernels)])
    return KernelManager(kernel_name="chosen", kernel_spec_manager=specs)


def sources_digest(notebook: NotebookNode) -> str:
    """Return a digest of the cells' sources."""
    sources = [(cell.cell_type, cell.source) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def check(
    notebook: Path, python: Path, source: Path | None = None
) -> tuple[NotebookNode, dict[str, str]]:
    """Run a notebook with the packages of `python`'s environment; return its outputs and what it installed.

    It runs in an empty folder, where only `source` lies, a wheel of lowmem-if. What it installs goes into a virtual
    environment on top of the other one, which stays as it was. Raises CheckFailed if the environment has no kernel
    or already has lowmem-if, if a cell fails, if an installed package has changed, or if the wheel is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        work.mkdir()
        if source is not None:
            shutil.copy2(source, work)
        upper = environment_above(python, Path(scratch) / "environment")
        before = versions(upper)
        if "ipykernel" not in before:
            raise CheckFailed("the environment has no ipykernel")
        if source is not None and "lowmem-if" in before:
            raise CheckFailed(
                "the environment already has lowmem-if, so nothing would be installed"
            )
        try:
            ran = executed(notebook, work, python=upper, environment=clean_environment(scratch))
        except CellExecutionError as error:
            raise CheckFailed(str(error)) from error
        after = versions(upper)
    changed = [f"{name} {old}" for name, old in before.items() if after.get(name) != old]
    if changed:
        raise CheckFailed(f"the notebook changed installed packages: {', '.join(changed)}")
    added = {name: after[name] for name in sorted(after.keys() - before.keys())}
    if source is not None and "lowmem-if" not in added:
        raise CheckFailed(f"the notebook did not install {source.name}")
    return ran, added


def environment_above(python: Path, folder: Path) -> Path:
    """Make a virtual environment that also has the packages of `python`'s, and return its interpreter.

    pip takes packages of the lower environment for installed, and cannot change them.
    """
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    upper = folder / python.parent.name / python.name
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    lower_packages, packages = (
        subprocess.run([each, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
        for each in (python, upper)
    )
    line = f"import site; site.addsitedir({lower_packages!r})\n"  # reads the .pth files there, too
    (Path(packages) / "lower.pth").write_text(line, encoding="utf-8")
    return upper


def clean_environment(home: str) -> dict[str, str]:
    """Return this process's variables without other Python packages, and with caches in `home`.

    Hugging Face's client is offline: the demo needs no download.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {
        "PYTHONNOUSERSITE": "1",
        "HF_HOME": f"{home}/hf",
        "HF_HUB_OFFLINE": "1",
        "LOWMEM_IF_CACHE": f"{home}/cache",
    }


def versions(python: Path) -> dict[str, str]:
    """Return the version of each package that `python` finds, by its normalized name."""
    ask = (
        "import importlib.metadata, json, re\n"
        "found = [(d.name, d.version) for d in importlib.metadata.distributions()]\n"
        "found = {re.sub('[-_.]+', '-', name).lower(): version for name, version in reversed(found)}\n"
        "print(json.dumps(found))"
    )
    run = subprocess.run(
        [python, "-c", ask], check=True, capture_output=True, text=True, env=clean_environment("")
    )
    found: dict[str, str] = json.loads(run.stdout)
    return found


def keep_outputs(files: list[Path]) -> None:
    """Run notebooks in this environment and write them with their outputs."""
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"LOWMEM_IF_CACHE": f"{folder}/cache"}
            notebook = executed(file, Path(folder) / "work", environment=environment)
        nbformat.write(notebook, file)


def main(arguments: list[str] | None = None) -> None:
    """Check one notebook, or run those that are named, or all."""
    parser = argparse.ArgumentParser(description="Run notebooks from top to bottom.")
    parser.add_argument("names", nargs="*", help="notebooks here whose outputs to keep (all)")
    parser.add_argument("--check", type=Path, metavar="NOTEBOOK", help="run this; keep no outputs")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter")
    parser.add_argument("--source", type=Path, metavar="WHEEL", help="wheel to put beside it")
    chosen = parser.parse_args(arguments)
    if chosen.check is None:
        keep_outputs([HERE / f"{name}.ipynb" for name in chosen.names] or notebooks())
        return
    try:
        _, added = check(chosen.check, chosen.python, chosen.source)
    except CheckFailed as error:
        sys.exit(f"{chosen.check.name} with {chosen.python}: {error}")
    print(f"{chosen.check.name} runs with {chosen.python}. It installed {added}.")


if __name__ == "__main__":
    main()
