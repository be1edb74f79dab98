"""The table: lines of figures in, a section of `RESULTS.md` out, one for each cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import (
    CONVERT,
    FROM_PRETRAINED,
    LIMIT,
    LIMIT_THREADS,
    SUBJECTS,
    UNET_WAYS,
    WAYS,
    title,
)
from lowmem_if.units import GB, format_bytes

Line = dict[str, Any]

HEAD = """# Measured side by side

Made by `make bench`. Each row is a process of its own that loads a network from the same file of
made-up weights, fp16 as published, and computes with it. The file is in the system's cache before,
unless the section says otherwise. *Anonymous* is memory that the system cannot drop, *RSS* counts the
mapped files' pages too; both are peaks of the whole process, sampled 50 times a second while it
loads / while it computes, and include what the libraries take once they are imported. A *step* is a
UNet's guided step (a batch of two), or one prompt of 77 tokens through a text encoder; the first, in
brackets, includes what is done once. *On disk* is what a way writes beside the file. *Output* compares
all bits of all steps. Ratios are to `from_pretrained`, below 1 is better: seconds to load, the higher
of the two anonymous peaks, seconds a step.
"""

COLUMNS = (
    "way", "load, s", "anonymous, GB", "RSS, GB", "a step, s", "on disk, GB", "output",
    "ratios: load, anonymous, step",
)  # fmt: skip


def update(file: Path, cascade: str, lines: Sequence[Line]) -> None:
    """Write the cascade's section into the file; other cascades' sections stay as they are."""
    write_section(file, cascade, section(cascade, lines))


def write_section(file: Path, name: str, content: str) -> None:
    """Write one section into the file; the others stay as they are."""
    old = file.read_text(encoding="utf-8") if file.is_file() else ""
    sections = {
        part.partition(" -->")[0]: part.partition("<!-- end ")[0].partition(" -->\n")[2]
        for part in old.split("<!-- begin ")[1:]
    }
    sections[name] = content
    text = HEAD
    # Cascades first, the largest of them at the head.
    for known in sorted(sections, key=lambda part: (part.startswith("if-"), part), reverse=True):
        text += f"\n<!-- begin {known} -->\n{sections[known].strip()}\n<!-- end {known} -->\n"
    file.write_text(text, encoding="utf-8")


def section(cascade: str, lines: Sequence[Line]) -> str:
    """The cascade's tables, under one machine."""
    text = f"## {cascade}\n\n{machine_text(lines)}\n"
    for subject in SUBJECTS:
        rows = [line for line in lines if line["subject"] == subject]
        if rows:
            text += f"\n### {title(cascade, subject)}\n\n{table(rows)}\n"
    return text


def machine_text(lines: Sequence[Line]) -> str:
    """Where and with what the lines were measured."""
    last = lines[-1]
    machine, versions = last["machine"], last["versions"]
    loads = [line["load_average"] for line in lines]
    first, *_, final = sorted(line["time"][:10] for line in lines) * 2
    threads = {line["threads"] for line in lines if "threads" in line}
    start = [line["start"]["anon"] for line in lines if "start" in line]
    repeats = 1 + max(line["repeat"] for line in lines)
    parts = [
        f"{machine['cpu']}, usable cores: {machine['cores']}, {format_bytes(machine['ram_bytes'])} of "
        f"RAM, kernel {machine['kernel']}; computing on {last['device']} in {last['dtype']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"measured on {first}" if first == final else f"measured from {first} to {final}",
        f"threads: {', '.join(map(str, sorted(threads)))}; "
        f"load average before a row: {min(loads):.1f} to {max(loads):.1f}",
        "ours run in the environment that lowmem-if gives its worker (one malloc arena), the "
        "libraries' ways in the plain one",
    ]
    if start:
        parts.append(f"before loading a process holds {format_bytes(int(median(start)))} anonymous")
    if last["device"] == "cpu":
        parts.append("offloading to RAM moves nothing where RAM is what is computed in")
    if repeats > 1:
        parts.append(f"{repeats} rounds: seconds are medians, with the extremes; peaks the highest")
    if last["cold"]:
        parts.append("**files dropped from the cache before each row**")
    return "\n".join(f"- {part}" for part in parts)


def table(lines: Sequence[Line]) -> str:
    """One network's rows, in the order of the ways."""
    by_way = {way: [line for line in lines if line["way"] == way] for way in WAYS}
    baseline = _succeeded(by_way[FROM_PRETRAINED])
    computed = _succeeded([line for rows in by_way.values() for line in rows if "output" in line])
    reference = next(iter(baseline or computed), None)
    sizes = next((line for line in lines if "file_bytes" in line), None)
    counted = next((line for line in lines if "steps" in line), lines[0])
    text = ""
    if sizes:
        text = (
            f"{format_bytes(sizes['file_bytes'])} on file, {format_bytes(sizes['weight_bytes'])} "
            f"in {lines[0]['dtype']}; steps: {counted['steps_asked']}.\n\n"
        )
    text += _row(COLUMNS) + _row(["---", *["---:"] * 5, "---", "---:"])
    for way, rows in by_way.items():
        if rows:
            text += _row([_label(way, rows), *_cells(way, rows, baseline, reference)])
    return text.rstrip("\n")


def _label(way: str, rows: list[Line]) -> str:
    failed = len(rows) - len(_succeeded(rows))
    some = 0 < failed < len(rows)
    return WAYS[way] + (f" (failed in {failed} of {len(rows)} rounds)" if some else "")


def _cells(way: str, rows: list[Line], baseline: list[Line], reference: Line | None) -> list[str]:
    good = _succeeded(rows)
    if not good:
        return [_failure(rows[-1]["failed"]), *[""] * (len(COLUMNS) - 2)]
    return [
        _seconds([line["load"]["seconds"] for line in good]),
        _peaks(good, "anon"),
        _peaks(good, "rss"),
        _step(good),
        _gb(good[-1]["written_bytes"]) if good[-1]["written_bytes"] else "",
        _output(good[-1], reference),
        _ratios(way, good, baseline),
    ]


def _failure(failed: dict[str, str]) -> str:
    """One line; what memory ended is not what cannot run."""
    text = failed["text"].replace("|", "\\|")
    if failed["kind"] == "memory":
        return f"ran out of memory: {text}"
    return f"{'does not run here' if failed['kind'] == 'error' else 'failed'}: {text}"


def _seconds(values: list[float]) -> str:
    text = _number(median(values))
    if len(values) > 1:
        text += f" ({_number(min(values))} to {_number(max(values))})"
    return text


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _peaks(lines: list[Line], kind: str) -> str:
    phases = [phase for phase in ("load", "steps") if phase in lines[0]]
    return " / ".join(_gb(max(line[phase][kind] for line in lines)) for phase in phases)


def _gb(size: int) -> str:
    return f"{size / GB:.2f}"


def _step(lines: list[Line]) -> str:
    if "steps" not in lines[0]:
        return ""
    first = median(line["steps"]["seconds"][0] for line in lines)
    return f"{_seconds([_later(line) for line in lines])} ({_number(first)})"


def _later(line: Line) -> float:
    """Seconds of a step once what is done once has been done."""
    seconds = line["steps"]["seconds"]
    return median(seconds[1:] or seconds)


def _output(line: Line, reference: Line | None) -> str:
    if reference is None or "output" not in line:
        return ""
    output, same = line["output"], reference["output"]
    if not output["finite"]:
        return "not finite"
    if line["way"] == reference["way"]:
        return "the reference"
    if output["hash"] == same["hash"]:
        return "same bits"
    if line["way"] in UNET_WAYS:
        return f"rounded otherwise (sum {output['sum']:.6g}, {same['sum']:.6g})"
    return f"**differs** ({output['hash'][:8]}, sum {output['sum']:.6g}, not {same['sum']:.6g})"


def _ratios(way: str, good: list[Line], baseline: list[Line]) -> str:
    """Ours, or the libraries', to `from_pretrained`: load, anonymous memory, step."""
    if not baseline or way == CONVERT:
        return ""
    figures: list[Callable[[Line], float]] = [lambda line: line["load"]["seconds"]]
    if way not in (LIMIT, LIMIT_THREADS):
        figures += [_anonymous, _later]
    return ", ".join(
        f"{median(map(figure, good)) / median(map(figure, baseline)):.2f}" for figure in figures
    )


def _anonymous(line: Line) -> float:
    return float(max(line[phase]["anon"] for phase in ("load", "steps")))


def _succeeded(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if "failed" not in line]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"
