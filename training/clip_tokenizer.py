"""A CLIP tokenizer without merges: every letter is a token. The upscaler's pipeline asks for one."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": START,
    "eos_token": END,
    "unk_token": END,
    "pad_token": END,
    "model_max_length": 77,
}


def write_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write `vocab.json`, `merges.txt` and the configuration, and load them."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    pieces = [START, END, *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


def _byte_letters() -> list[str]:
    """A visible letter for each byte, in CLIP's order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + place) for place in range(len(hidden))]
