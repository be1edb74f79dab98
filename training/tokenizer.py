"""Train the demo's sentencepiece vocabulary and write a T5 tokenizer folder with it.

python -m training.tokenizer build/demo/tokenizer
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

from training.scenes import random_caption, random_scene

CAPTIONS = 30_000
MAX_TOKENS = 77
OTHER_WORDS = (
    "above below under over photo drawing painting draw picture image big tiny little medium huge "
    "middle centre center one two three and with of the next to beside behind right left top bottom "
    "a an no not without only very bright dark light shape shapes object objects"
)
CONFIG = {
    "tokenizer_class": "T5Tokenizer",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "extra_ids": 0,
    "model_max_length": MAX_TOKENS,
}
SPECIAL_TOKENS = {name: CONFIG[name] for name in ("eos_token", "unk_token", "pad_token")}


def train_tokenizer(folder: Path, seed: int = 1) -> T5Tokenizer:
    """Write `spiece.model` and its two JSON files into `folder` and load the result."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.txt"
        corpus.write_text("\n".join(_corpus(random.Random(seed))))
        _train_spiece(corpus, Path(scratch) / "spiece")
        shutil.copy(Path(scratch) / "spiece.model", folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL_TOKENS, indent=2))
    return T5Tokenizer.from_pretrained(folder)


def _corpus(rng: random.Random) -> list[str]:
    """Captions, words a stranger may type, and single letters, so that nothing is unknown."""
    captions = [random_caption(random_scene(rng), rng) for _ in range(CAPTIONS)]
    return captions + OTHER_WORDS.split() * 30 + list("abcdefghijklmnopqrstuvwxyz,.") * 5


def _train_spiece(corpus: Path, prefix: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(prefix),
        vocab_size=256,
        model_type="unigram",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        minloglevel=2,
    )


if __name__ == "__main__":
    trained = train_tokenizer(Path(sys.argv[1]))
    print(f"{len(trained)} pieces")
