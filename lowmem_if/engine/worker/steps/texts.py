"""The step of the text encoder: every text of the run becomes an embedding in the folder."""

from __future__ import annotations

from lowmem_if.cascade import catalog
from lowmem_if.engine.events import Drawing
from lowmem_if.engine.worker.embedding_cache import EmbeddingCache
from lowmem_if.engine.worker.steps.step_run import StepRun
from lowmem_if.planning.needed_texts import texts_of
from lowmem_if.stages.finite import check_finite
from lowmem_if.stages.stage import TextInputs
from lowmem_if.stages.text_encoder import CleanedText, TextCleaner
from lowmem_if.units import shorten
from lowmem_if.weights.files.tensor_file import is_sound, tensor_bytes

_LISTED = 10
"""How many unknown words a notice lists."""


def encode_texts(run: StepRun) -> None:
    """Encode the texts that have no embedding in the folder yet; known ones are taken from the cache."""
    folder = run.folder
    texts = texts_of(folder.plan)
    cleaner = TextCleaner(run.place.folder("tokenizer").parent)
    cleaned = {text: cleaner.clean(text) for text in texts}
    _warn(run, cleaned, cleaner.known_words)
    cache = EmbeddingCache(run.weights, run.step)
    for text in _missing(run, texts):
        kept = cache.get(cleaned[text].text)
        if kept is not None:
            folder.keep_weights(catalog.TEXT_ENCODER, run.weights)
            folder.write(folder.embedding_file(text), tensor_bytes(kept))
    missing = _missing(run, texts)
    if not missing:
        return

    def on_step(done: int, total: int) -> None:
        run.report(Drawing(catalog.TEXT_ENCODER, 0, done, total))

    with run.loaded() as encoder:
        embeddings = encoder.run(TextInputs(missing, run.step.config.batch), on_step)
        for text, embedding in zip(missing, embeddings, strict=True):
            check_finite(embedding, f"the embedding of {shorten(text, 40)!r}")
            folder.write(folder.embedding_file(text), tensor_bytes(embedding))
            if trouble := cache.put(cleaned[text].text, embedding):
                run.notice(f"embeddings are not kept for later runs: {trouble}")


def _missing(run: StepRun, texts: list[str]) -> list[str]:
    return [text for text in texts if not is_sound(run.folder.embedding_file(text))]


def _warn(run: StepRun, cleaned: dict[str, CleanedText], known: dict[str, list[str]]) -> None:
    """Note which parts of the texts cannot show in the images."""
    for text, seen in cleaned.items():
        if seen.cut:
            run.notice(
                f"{shorten(text, 40)!r} has over {catalog.MAX_TOKENS} tokens, left out: {seen.cut!r}"
            )
        if text.strip() and not seen.text:
            run.notice(f"IF's caption cleaning leaves nothing of the prompt {text!r}")
    unknown = list(dict.fromkeys(word for seen in cleaned.values() for word in seen.unknown))
    if unknown:
        language = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in known.items())
        more = f" and {len(unknown) - _LISTED} more" if unknown[_LISTED:] else ""
        listed = ", ".join(unknown[:_LISTED])
        run.notice(f"this cascade never learnt {listed}{more}; it knows {language}")
