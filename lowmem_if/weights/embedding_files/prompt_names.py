"""The names under which a file keeps the embeddings of prompts, whatever characters they hold.

A prompt is its own name, so that other programs find it. A few prompts cannot be names: a zip file
cuts a name at a zero byte, Windows replaces a backslash, `__metadata__` is reserved in safetensors, and
numpy drops `.npy` from the end. Those get another name, and an index in the file maps it to the prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping

from lowmem_if.errors import EmbeddingsError

INDEX = "__prompts__"
"""The name of the index: an array in an npz file, metadata in a safetensors file."""

_RESERVED = (INDEX, "__metadata__")
_SUBSTITUTE = re.compile(r"prompt-[0-9a-f]{64}")
_LONGEST_BYTES = 60_000
"""A zip file has two bytes for the length of a name."""


def names_of(prompts: Iterable[str]) -> dict[str, str]:
    """Prompt -> its name in a file, in the same order."""
    return {prompt: prompt if _is_name(prompt) else _substitute(prompt) for prompt in prompts}


def index_text(names: Mapping[str, str]) -> str:
    """The index of the prompts that are not their own names, as JSON; empty if all are."""
    others = {name: prompt for prompt, name in names.items() if name != prompt}
    return json.dumps(others) if others else ""


def prompts_of(names: Iterable[str], index: str) -> dict[str, str]:
    """Prompt -> its name in a file that holds these names and this index.

    Raises:
        EmbeddingsError: the index is broken, or two names stand for one prompt.
    """
    others = _read(index) if index else {}
    found: dict[str, str] = {}
    for name in names:
        prompt = others.get(name, name)
        if prompt in found:
            raise EmbeddingsError(f"it has two embeddings for the prompt {prompt[:60]!r}")
        found[prompt] = name
    return found


def _is_name(prompt: str) -> bool:
    odd = "\0" in prompt or "\\" in prompt or prompt.endswith(".npy") or prompt in _RESERVED
    return not (odd or _SUBSTITUTE.fullmatch(prompt) or len(prompt.encode()) > _LONGEST_BYTES)


def _substitute(prompt: str) -> str:
    return f"prompt-{hashlib.sha256(prompt.encode()).hexdigest()}"


def _read(index: str) -> dict[str, str]:
    try:
        others = json.loads(index)
    except (ValueError, RecursionError) as error:
        raise EmbeddingsError(f"its index of prompts is not valid JSON ({error})") from error
    if not isinstance(others, dict) or not all(isinstance(one, str) for one in others.values()):
        raise EmbeddingsError("its index of prompts is not a table of texts")
    return others
