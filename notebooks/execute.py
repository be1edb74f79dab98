"""Run the notebooks from top to bottom and keep what came out: `python notebooks/execute.py [NAME...]`.

They run with the bundled demo cascade, each in an empty folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
TIMEOUT_S = 900


def notebooks() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("*.ipynb"))


def executed(file: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh run in `folder`, and with what they were made of."""
    notebook = nbformat.read(file, as_version=4)
    folder.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()
    notebook.metadata["lowmem_if"] = {"outputs_made_by": sources_digest(notebook)}
    return notebook


def sources_digest(notebook: NotebookNode) -> str:
    """What the cells say, in one number."""
    sources = [(cell.cell_type, cell.source) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def main() -> None:
    """Run those that are named, or all, and write them with their outputs."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    chosen = [HERE / f"{name}.ipynb" for name in sys.argv[1:]] or notebooks()
    for file in chosen:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["LOWMEM_IF_CACHE"] = f"{folder}/cache"
            notebook = executed(file, Path(folder) / "work")
        nbformat.write(notebook, file)


if __name__ == "__main__":
    main()
