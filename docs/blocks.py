"""The parts of documents that are made from the code: `python docs/blocks.py [--check]`.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. Without `--check` the blocks are
written again. With it nothing is written, and the exit code is 1 if a block is out of date. Both check
what is written by hand, too: command lines must use commands and options that exist, the messages
that troubleshooting quotes must be in the package, and the modules that are named must be there.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Sizes come from the catalogue, whatever weights this machine happens to have.
os.environ["HF_HUB_CACHE"] = tempfile.gettempdir() + "/no-weights-here"

from generators.command_line import command_reference, commands, unknown_words
from generators.machines import machines, profiles
from generators.messages import unknown_messages
from generators.modules import modules, unknown_files
from generators.published import published
from generators.python_api import python_api

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
CONTRIBUTING = DOCS.parent / "CONTRIBUTING.md"
TROUBLESHOOTING = DOCS / "troubleshooting.md"

FILES: dict[Path, tuple[Callable[[], str], ...]] = {
    README: (machines,),
    DOCS / "profile-matrix.md": (profiles,),
    DOCS / "architecture.md": (modules,),
    DOCS / "reference/command-line.md": (commands, command_reference),
    DOCS / "reference/python.md": (python_api,),
    DOCS / "measurements/published-figures.md": (published,),
}
"""Which blocks stand in which document."""


def main() -> int:
    """Write or check the blocks, and check what is written by hand."""
    stale = [_update(file, blocks) for file, blocks in FILES.items()]
    wrong = [sys.stderr.write(f"{problem}\n") for problem in _wrong()]
    return int(any(stale) or bool(wrong))


def _wrong() -> Iterator[str]:
    logs = {DOCS / "log.md", *(DOCS / "log").glob("*.md")}
    for file in (README, CONTRIBUTING, *sorted(DOCS.rglob("*.md"))):
        if file not in logs:  # they tell what was true then
            text = file.read_text(encoding="utf-8")
            yield from (f"{file.name}: {problem}" for problem in unknown_words(text))
    for file in (DOCS / "architecture.md", CONTRIBUTING):
        names = unknown_files(file.read_text(encoding="utf-8"))
        yield from (f"{file.name}: no such file: {name}" for name in names)
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    yield from (f"{TROUBLESHOOTING.name}: no such message: {m}" for m in unknown_messages(text))


def _update(file: Path, blocks: tuple[Callable[[], str], ...]) -> int:
    text = file.read_text(encoding="utf-8")
    fresh = text
    for block in blocks:
        begin, end = f"<!-- begin {block.__name__} -->", f"<!-- end {block.__name__} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(fresh):
            sys.stderr.write(f"{file.name} has no block {block.__name__}\n")
            return 1
        content = f"{begin}\n\n{block()}\n\n{end}"
        fresh = pattern.sub(lambda _match, content=content: content, fresh)
    if "--check" in sys.argv:
        if fresh != text:
            sys.stderr.write(f"{file.name} is out of date: run `make format`\n")
        return int(fresh != text)
    file.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
