"""The command that encodes prompts and draws nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lowmem_if.cascade.catalog import MAX_TOKENS
from lowmem_if.cli.command import argument, command, option
from lowmem_if.cli.output import Interrupted, note, planner, print_json, steps_json
from lowmem_if.cli.shared_options import (
    COMMON,
    FILE,
    OUTPUT,
    as_json,
    budgets,
    cascade,
    pin,
    prefer,
    profile,
    quiet,
    revision,
    simulate,
)
from lowmem_if.engine.embedding import DTYPES, FLOAT16, EmbedResult, embed_into
from lowmem_if.errors import RequestError
from lowmem_if.report.progress import RunProgress
from lowmem_if.report.tables import console
from lowmem_if.request.batch_request import read_texts
from lowmem_if.units import format_bytes

SECTION = "Draw pictures"


@command(
    "embed",
    'lowmem-if embed "a red circle" "a green star" --out prompts.pth',
    "lowmem-if embed --file prompts.txt --cascade if-xl --out prompts.safetensors",
    section=SECTION,
)
@argument("prompts", nargs=-1, metavar="[PROMPT...]", help="The prompts to encode.")
@option(
    "--file", group=COMMON, type=FILE,
    help="A file of prompts, one a line, or a batch's own file; - reads input.",
)  # fmt: skip
@option(
    "--out", "-o", group=COMMON, type=FILE, required=True,
    help="The file to write: .pth, .pt, .safetensors or .npz.",
)  # fmt: skip
@cascade
@option(
    "--dtype", group=OUTPUT, default=FLOAT16,
    help=f"Number type of the embeddings in the file: {' or '.join(DTYPES)}.",
)  # fmt: skip
@budgets
@profile
@pin
@prefer
@simulate
@revision
@as_json
@quiet
def embed(
    prompts: tuple[str, ...], file: Path | None, out: Path, as_json: bool, quiet: bool,
    simulate: bool, **options: Any,
) -> None:  # fmt: skip
    """Encode prompts with T5 alone into a file; the same command resumes after an interruption."""
    texts = (*prompts, *(read_texts(file, note) if file is not None else ()))
    if not texts:
        raise RequestError("there is nothing to encode: give prompts, or a file of them by --file")
    with RunProgress(console(sys.stderr), quiet=quiet) as progress:
        options |= {"report": progress, "planner": planner(simulate=simulate)}
        try:
            result = embed_into(texts, out.expanduser(), **options)
        except KeyboardInterrupt:
            raise Interrupted("what is done is kept; the same command continues") from None
    if as_json:
        print_json(_result_json(result))
    else:
        shape = f"(1, {MAX_TOKENS}, {result.width}) in {result.dtype}"
        size = format_bytes(result.file.stat().st_size)
        click.echo(f"{result.file}: {len(result.prompts)} prompts, each {shape}, {size}")


def _result_json(result: EmbedResult) -> dict[str, Any]:
    """The file, what is in it, and the step that encoded it."""
    return {
        "file": str(result.file),
        "prompts": list(result.prompts),
        "dtype": result.dtype,
        "shape": [1, MAX_TOKENS, result.width],
        "steps": steps_json(result.folder),
        "notices": list(result.notices),
    }


COMMANDS = (embed,)
