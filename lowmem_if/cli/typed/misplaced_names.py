"""Names of cascades, profiles and files where the prompt belongs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowmem_if.cascade.locating.cascade_names import canonical_name
from lowmem_if.cli.typed.typed_line import Mistake, TypedLine
from lowmem_if.hardware.profiles import profile_names

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
_LISTS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_SHOWN = 3
"""How many lines are written out if each picture needs one."""

_PROMPT = "a prompt"
_OUT = "--out"


def cascade_or_profile(line: TypedLine) -> Mistake | None:
    """`plan if-xl`: what an option names stands where the prompt belongs."""
    for index, prompt in line.prompts.items():
        option, what = _known_name(prompt)
        if option not in line.options:
            continue
        given = any(word.partition("=")[0] == option for word in line.words)
        needed = len(line.prompts) == 1 and line.command.name != "upscale"
        words = ([_PROMPT] if needed else []) + ([] if given else [option, prompt])
        return Mistake(
            f"{prompt!r} is the name of a {what}, not a prompt",
            (line.with_words(index, index + 1, *words),),
        )
    return None


def _known_name(text: str) -> tuple[str, str]:
    """The option that takes this name, and what it names; empty if it is no name."""
    if canonical_name(text):
        return "--cascade", "cascade"
    return ("--profile", "machine profile") if text in profile_names() else ("", "")


def file_names(line: TypedLine) -> Mistake | None:
    """`upscale *.png`: files where prompts belong."""
    for suffixes, answers in ((_PICTURES, _OF_PICTURES), (_LISTS, _OF_LISTS)):
        files = [index for index, word in line.prompts.items() if _is_file(word, suffixes)]
        answer = answers.get(line.command.name or "")
        if files and answer:
            return answer(line, files)
    return None


def _is_file(word: str, suffixes: tuple[str, ...]) -> bool:
    try:
        return word.lower().endswith(suffixes) and Path(word).is_file()
    except (OSError, ValueError):
        return False  # too long for a name, or with a zero byte


def _another_picture(line: TypedLine, files: list[int]) -> Mistake:
    """A command that takes one picture was given more, or the prompt before the picture."""
    named = {name: index for index, name in line.arguments.items() if name in ("image", "mask")}
    file = line.words[files[0]]
    for index in named.values():
        own = line.words[index]
        if len(files) == 1 and not _is_file(own, _PICTURES):
            swapped = line.with_words(files[0], files[0] + 1, own).with_words(
                index, index + 1, file
            )
            return Mistake(f"the picture {file!r} stands where the prompt belongs", (swapped,))
    pictures = [named["image"], *files]
    lines = tuple(_with_one(line, pictures, index) for index in pictures[:_SHOWN])
    others = len(pictures) - _SHOWN
    return Mistake(
        f"{file!r} is a picture, not a prompt, and {line.command.name} takes one picture",
        lines,
        f" (and so on, for {others} more)" if others > 0 else "",
    )


def _with_one(line: TypedLine, pictures: list[int], kept: int) -> TypedLine:
    """The line with one of its pictures only; a run folder that it names gets a folder for each."""
    first, stem = pictures[0], Path(line.words[kept]).stem
    words = dict(enumerate(line.words)) | {first: line.words[kept]}
    for index in range(1, line.length):
        follows = line.words[index - 1] == _OUT and index in line.values
        if follows or line.words[index].startswith(f"{_OUT}="):
            words[index] = f"{words[index].rstrip('/')}/{stem}"
    if len(line.prompts) == len(pictures) - 1 and _needs_prompt(line):
        words[pictures[-1]] = _PROMPT
        pictures = pictures[:-1]
    left = (word for index, word in words.items() if index not in pictures[1:])
    return line.with_words(0, len(line.words), *left)


def _needs_prompt(line: TypedLine) -> bool:
    has_style = any(word.partition("=")[0] == "--style-prompt" for word in line.words)
    return line.command.name == "inpaint" or (line.command.name == "vary" and not has_style)


def _picture_to_vary(line: TypedLine, files: list[int]) -> Mistake:
    """`generate photo.jpg`: a command that starts from text was given pictures."""
    index = files[0]
    words = (line.words[index], *([_PROMPT] if len(line.prompts) == len(files) else []))
    meant = line.with_words(index, index + 1).of_command("vary")
    return _is_not_a_prompt(line, index, meant.with_words(0, 0, *words))


def _picture_to_plan(line: TypedLine, files: list[int]) -> Mistake:
    index = files[0]
    words = [_PROMPT] if len(line.prompts) == 1 else []
    words += ["--mode", "vary", "--image", line.words[index]]
    return _is_not_a_prompt(line, index, line.with_words(index, index + 1, *words))


def _list_to_draw(line: TypedLine, files: list[int]) -> Mistake:
    """`generate prompts.txt`: a file of prompts was given as a prompt."""
    index, others = files[0], {*line.prompts} - {files[0]}
    words = tuple(word for n, word in enumerate(line.words) if n not in others)
    return _is_not_a_prompt(
        line, index, line.with_words(0, len(line.words), *words).of_command("batch")
    )


def _list_to_embed(line: TypedLine, files: list[int]) -> Mistake:
    index = files[0]
    meant = line.with_words(index, index + 1, "--file", line.words[index])
    return _is_not_a_prompt(line, index, meant)


def _is_not_a_prompt(line: TypedLine, index: int, meant: TypedLine) -> Mistake:
    return Mistake(f"{line.words[index]!r} is a file, not a prompt", (meant,))


_Answers = dict[str, Callable[[TypedLine, list[int]], Mistake]]
_OF_PICTURES: _Answers = {
    "vary": _another_picture, "upscale": _another_picture, "inpaint": _another_picture,
    "generate": _picture_to_vary, "plan": _picture_to_plan,
}  # fmt: skip
_OF_LISTS: _Answers = {"generate": _list_to_draw, "embed": _list_to_embed}
