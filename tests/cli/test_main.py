"""The command line's contract: exit codes, one-line errors, results on stdout, progress on stderr."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from runs import plan_of, run_here

from lowmem_if.cascade.catalog import COMPONENTS
from lowmem_if.cascade.locate import DEMO_FOLDER
from lowmem_if.cli.main import main
from lowmem_if.engine import session
from lowmem_if.engine.results import RunResult
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.hardware.profiles import FOLDER, profile_names
from lowmem_if.report.tables import print_run
from lowmem_if.units import format_bytes

STRANGE = "a 'red' \"circle\"\nدائرة حمراء 🟥 赤い円 \\ & <b>"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and the one line on standard error; standard output must be empty."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return code, captured.err.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan", ""], 2, "prompt is empty"),
        (["plan", "  \n "], 2, "prompt is empty"),
        (["plan"], 2, "PROMPT"),
        (["plan", "x", "--seed", "-2"], 2, "seed -2"),
        (["plan", "x", "--seed", "1.5"], 2, "seed '1.5'"),
        (["plan", "x", "y", "--seed", "1,2,3"], 2, "3 seeds for 2 prompts"),
        (["plan", "x", "--seed", "9..1"], 2, "not a rising series"),
        (["plan", "x", "--steps", "0"], 2, "steps 0"),
        (["plan", "x", "--steps", "-3"], 2, "steps -3"),
        (["plan", "x", "--steps", "two"], 2, "steps 'two'"),
        (["plan", "x", "--steps", "2,2"], 2, "2 values for steps"),
        (["plan", "x", "--steps", "1001"], 2, "steps 1001"),
        (["plan", "x", "--size", "65"], 2, "64, 256 and 1024"),
        (["plan", "x", "--size", "-64"], 2, "64, 256 and 1024"),
        (["plan", "x", "--size", "big"], 2, "integer"),
        (["plan", "x", "--images", "0"], 2, "images 0"),
        (["plan", "x", "--guidance-scale", "nan"], 2, "guidance scale nan"),
        (["plan", "x", "--guidance-scale", "-1"], 2, "guidance scale -1"),
        (["plan", "x", "--timesteps", "fast28"], 2, "did you mean 'fast27'?"),
        (["plan", "x", "--mode", "inpant"], 2, "did you mean 'inpaint'?"),
        (["plan", "x", "--scheduler", "dpmsolver"], 2, "did you mean 'dpmsolver++'?"),
        (["plan", "x", "--steps", "2,2,2,2"], 2, "4 values for steps"),
        (["plan", "x", "--steps", "2,2,2,2", "--size", "64"], 2, "stages that run (1)"),
        (["plan", "x", "--aspect", "16-9"], 2, "is not like 3:2"),
        (["plan", "x", "--pin", "stge_1=stream"], 2, "did you mean 'stage_1'?"),
        (["plan", "x", "--pin", "stage_1=strem"], 2, "did you mean 'stream'?"),
        (["plan", "x", "--pin", "stage_1=stream:flot16"], 2, "did you mean 'float16'?"),
        (["plan", "x", "--profile", "colab-fre"], 1, "did you mean 'colab-free'?"),
        (["plan", "x", "--profile", "RTX-2060"], 1, "did you mean 'rtx-2060-6gb'?"),
        (["plan", "x", "--cascade", "if-x1"], 1, "did you mean 'if-xl'?"),
        (["plan", "x", "--prefer", "best"], 2, "balanced"),
        (["plan", "x", "--ram", "much"], 2, "8GB"),
        (["plan", "x", "--ram", "0"], 2, "8GB"),
        (["plan", "x", "--pin", "stage_9=resident"], 2, "stage_1"),
        (["plan", "x", "--pin", "stage_1=magic"], 2, "sequential_offload"),
        (["plan", "x", "--pin", "stage_1=resident:int3"], 2, "bfloat16"),
        (["plan", "x", "--pin", "stage_1=resident:nf4"], 2, "int8 or int4"),
        (["plan", "x", "--pin", "resident"], 2, "unknown component"),
        (["plan", "x", "--pin", "stage_1=resident:float16"], 1, "400 times slower"),
        (["plan", "x", "--pin", "stage_1=sequential_offload"], 1, "pin stage_1=resident"),
        (["plan", "x", "--cascade", "if-xxl"], 1, "if-xl, if-l, if-m, demo"),
        (["plan", "x", "--cascade", "."], 1, "no stage_1/"),
        (["plan", "x", "--cascade", "I-L+II-XL"], 1, "did you mean 'I-L+II-L'?"),
        (["plan", "x", "--cascade", "II-M"], 1, "is a stage 2"),
        (["plan", "x", "--part", "stage1=x"], 2, "did you mean 'stage_1'?"),
        (["plan", "x", "--part", "x"], 2, "write it like stage_1=x"),
        (["plan", "x", "--part", "stage_1=./missing"], 2, "there is no such folder"),
        (["plan", "x", "--part", "stage_1=missing/folder"], 1, "there is no folder"),
        (["plan", "x", "--part", "stage_1=II-L"], 1, "did you mean --part stage_2="),
        (["fetch", "if-m", "--part", "stage2=x"], 2, "did you mean 'stage_2'?"),
        (["synthesize", "demo", "x"], 1, "two stages like I-L+II-L"),
        (["plan", "x", "--profile", "cray"], 1, "colab-free"),
        (["plan", "x", "--profile", "none.toml"], 1, "none.toml"),
        (["plan", "x", "--device", "cuda"], 1, "--device cpu"),
        (["plan", "x", "--device", "tpu"], 1, "cuda"),
        (["plan", "x", "--ram", "100MB"], 1, "does not fit"),
        (["plan", "x", "--nonsense"], 2, "--nonsense"),
        (["paint", "x"], 2, "paint"),
        (["gener", "x"], 2, "did you mean 'generate'?"),
        (["plan", "x", "--stepz", "3"], 2, "--steps"),
        ([], 2, "Missing command"),
        (["resume", "nowhere"], 1, "no run folder"),
        (["show", "nowhere"], 1, "no run folder"),
    ],
)
def test_bad_input_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    """Exit 1 or 2, one line that says what and what to do, nothing on standard output."""
    got, line = told(capsys, *arguments)
    assert got == code, line
    assert words in line


@pytest.mark.parametrize("option", ["ram", "vram"])
def test_a_budget_without_a_unit_is_in_gigabytes(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """With a note at the command line, and a notice in Python."""
    arguments = ["plan", "x", "--size", "64", "--profile", "colab-free", f"--{option}", "8"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"note: --{option} 8 is read as 8 GB: write 8GB\n"
    assert json.loads(captured.out)["machine"][f"{option}_bytes"] == 8 * 10**9
    events: list[Any] = []
    with session.Session(report=events.append) as begun:
        budgets: Any = {option: 8}
        machine = begun.measure(profile="colab-free", **budgets)
    assert getattr(machine, f"{option}_bytes") == 8 * 10**9
    assert [event.text for event in events] == [f"{option} 8 is read as 8 GB: write 8GB"]


def test_a_folder_that_cannot_be_made_is_told_after_the_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only trying shows it, and nothing is written before the user has seen what would run."""
    assert main(["generate", "x", "--out", "/proc/nowhere/run"]) == 1
    _summary, error = capsys.readouterr().err.splitlines()
    assert "cannot be written" in error


def test_a_budget_nothing_fits_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """DoesNotFit says component, needed and available bytes, and what would fit."""
    arguments = ["plan", "x", "--cascade", "if-xl", "--profile", "laptop-cpu-8gb", "--ram", "2GB"]
    code, line = told(capsys, *arguments)
    assert code == 1
    assert "text encoder does not fit: it needs" in line
    assert "GB of RAM and 2.0 GB are available. Try --cascade demo" in line
    assert main([*arguments, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] is False
    assert answer["does_not_fit"]["component"] == "text_encoder"
    assert answer["does_not_fit"]["available_bytes"] == 2 * 10**9


def test_the_plans_table_has_a_time_for_each_step_and_a_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every row has a time; below stand what the times rest on and the total."""
    arguments = ["plan", "x", "--cascade", "if-m", "--size", "64", "--profile", "colab-free"]
    assert main(arguments) == 0
    heading, *rows = capsys.readouterr().out.splitlines()[1:]
    end = heading.index("time") + len("time")
    table = rows[: rows.index("level: faithful")]
    cells = [re.split(r"\s{2,}", row[:end])[-1] for row in table if row[:1].isalpha()]
    assert len(cells) == 3
    assert all(re.fullmatch(r"(\d+ min )?\d+(\.\d)? s", cell) for cell in cells)
    assert rows[-2] == "times: IF on a T4, published; disk and bus of a cloud T4"
    assert re.fullmatch(
        r"total [\d.]+ (s|min \d+ s) an image, [\d.]+ GB to download, 70.0 GB of disk free. It fits.",
        rows[-1],
    )


def test_a_disk_that_is_too_small_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A plan within the memory says so where the download has no room."""
    text = (FOLDER / "colab-free.toml").read_text(encoding="utf-8")
    own = tmp_path / "small.toml"
    own.write_text(text.replace('disk_free = "70GB"', 'disk_free = "9GB"'), encoding="utf-8")
    assert main(["plan", "x", "--cascade", "if-xl", "--profile", str(own)]) == 0
    assert "9.0 GB of disk free. It fits the memory, not the disk" in capsys.readouterr().out


SMALL_CARD = ("plan", "x", "--cascade", "if-xl", "--profile", "rtx-3050-4gb")


def test_a_plan_says_its_level_and_what_looser_ones_save(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A newcomer's 4 GB card: it runs, and lines say at what price, and what would be quicker."""
    assert main([*SMALL_CARD]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "level: faithful" in lines
    assert any(re.fullmatch(r"--prefer fast: .* less", line) for line in lines)
    assert main([*SMALL_CARD, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["prefer"], plan["automatic"]) == ("faithful", True)
    assert [each["level"] for each in plan["looser"]] == ["balanced", "fast"]


def test_a_plan_says_what_looser_levels_would_save(capsys: pytest.CaptureFixture[str]) -> None:
    """Four pictures share passes over the weights that stream, which `exact` never does."""
    arguments = ["plan", "x", "--cascade", "if-xl", "--size", "256", "--images", "4"]
    assert main([*arguments, "--profile", "rtx-2060-6gb", "--prefer", "exact"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "level: exact" in lines
    (line,) = [line for line in lines if line.startswith("--prefer faithful")]
    assert re.search(r": .*\d s .*less", line)


def test_where_a_preference_does_not_fit_the_plan_without_it_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error says what is short, the table what would run all the same."""
    assert main([*SMALL_CARD, "--prefer", "exact"]) == 1
    shown = capsys.readouterr()
    assert "upscaler does not fit" in shown.err
    assert "Try --prefer faithful" in shown.err
    assert shown.out.startswith("without --prefer:\nif-xl on rtx-3050-4gb")
    assert "VAE in strips" in shown.out
    assert len(shown.out.splitlines()) < 30


def test_plan_json_has_the_documented_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """`plan --json` is one object with fits, machine, request and steps."""
    assert main(["plan", "x", "--cascade", "if-xl", "--profile", "colab-free", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["machine"]["name"] == "colab-free"
    assert plan["request"]["prompts"] == ["x"]
    assert [step["component"] for step in plan["steps"]] == list(COMPONENTS)
    for step in plan["steps"]:
        assert {
            "strategy",
            "storage_dtype",
            "compute_dtype",
            "batch",
            "reason",
            "instead_of",
        } <= set(step)
        predicted = {"vram_bytes", "ram_bytes", "seconds", "read_bytes"}
        assert set(step["predicted"]) == predicted
    assert plan["steps"][0]["storage_dtype"] == "int8"
    assert plan["steps"][1]["storage_dtype"] == "float16"


@pytest.mark.parametrize("profile", profile_names())
def test_a_plan_for_every_profile_prints(capsys: pytest.CaptureFixture[str], profile: str) -> None:
    """Each shipped profile has a plan of the demo cascade that prints with its reasons."""
    assert main(["plan", "x", "--profile", profile]) == 0
    printed = capsys.readouterr().out
    assert profile in printed
    assert "It fits." in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "a red circle"],
        ["plan", "a red circle", "--profile", "colab-free", "--json"],
        ["probe", "--no-accelerator"],
        ["show", "RUN"],
    ],
)
def test_what_only_tells_imports_no_torch(tiny: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Help, plan, probe without accelerator and show start without the heavy libraries."""
    if "RUN" in arguments:
        run_here(plan_of(tiny, size=64), tmp_path / "RUN")
    code = (
        "import sys; from lowmem_if.cli.main import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'diffusers', 'transformers', 'bitsandbytes', 'accelerate'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_imports_no_torch() -> None:
    """`import lowmem_if` is light, and all its names are there."""
    code = (
        "import sys, lowmem_if; assert 'torch' not in sys.modules;"
        "assert all(hasattr(lowmem_if, name) for name in lowmem_if.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.worker
def test_generate_prints_the_pictures_and_keeps_progress_apart(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """stdout carries the paths, stderr a line a step; strange prompts arrive unchanged in the PNG."""
    path = tmp_path / "run Ünïcode 🟥"
    arguments = ["generate", STRANGE, "--cascade", str(tiny), "--steps", "2", "--size", "64"]
    assert main([*arguments, "--images", "2", "--out", str(path)]) == 0
    captured = capfd.readouterr()
    images = [Path(line) for line in captured.out.splitlines()]
    assert images == [path / "0000.png", path / "0001.png"]
    with Image.open(images[1]) as image:
        image.load()
        assert image.info["prompt"] == STRANGE
    assert "stage 1: done in" in captured.err
    assert main([*arguments, "--images", "2", "--out", str(path)]) == 0, "the drawn seed is kept"
    assert main(["show", str(path)]) == 0
    shown = capfd.readouterr().out
    assert "predicted" in shown
    assert "2 of 2 image(s), complete" in shown
    assert main(["resume", str(path), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["images"] == [str(image) for image in images]
    assert set(result["steps"][1]["measured"]) == {"vram_bytes", "ram_bytes", "seconds"}


@pytest.mark.worker
def test_switching_the_check_or_the_mark_off_is_noted(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """--no-watermark and --no-safety-checker print what that means."""
    options = ["--no-watermark", "--no-safety-checker", "--size", "64", "--steps", "1"]
    assert (
        main(["generate", "x", "--cascade", str(tiny), "--out", str(tmp_path / "r"), *options]) == 0
    )
    told = capfd.readouterr().err
    assert "Safety checker off" in told
    assert "Watermark off: please disclose" in told


@pytest.mark.worker
def test_broken_weights_end_with_exit_1(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker's known error is the command's: one line, no traceback, a folder to resume."""
    cascade = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    vocabulary = cascade / "stage_1/tokenizer/spiece.model"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1])
    out = tmp_path / "run"
    assert (
        main(["generate", "x", "--cascade", str(cascade), "--out", str(out), "--size", "64"]) == 1
    )
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "spiece.model" in last
    shutil.copy(tiny / "stage_1/tokenizer/spiece.model", vocabulary)
    assert main(["resume", str(out)]) == 0


def test_broken_configurations_end_before_anything_is_begun(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the planner can see leaves no run folder; `plan` says the same."""
    cascade = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    (cascade / "upscaler/scheduler/scheduler_config.json").write_text("{")
    for command in (["plan"], ["generate", "--out", str(tmp_path / "run")]):
        code, line = told(capsys, *command, "x", "--cascade", str(cascade))
        assert code == 1
        assert "scheduler_config.json" in line
    assert not (tmp_path / "run").exists()


def test_a_bug_ends_with_exit_3_and_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody foresaw prints versions, arguments and a traceback to paste."""

    def fail(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(session, "choose_machine", fail)
    assert main(["probe"]) == 3
    report = capsys.readouterr().err
    for words in ("bug of lowmem-if", "ZeroDivisionError: unforeseen", "diffusers", "['probe']"):
        assert words in report


def test_fetching_a_cascade_that_is_here_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo is in the package: there is nothing to download."""
    assert DEMO_FOLDER.is_dir()
    assert main(["fetch", "demo"]) == 0
    assert "on this disk" in capsys.readouterr().out


def test_output_survives_an_encoding_that_lacks_the_prompts_letters() -> None:
    """JSON stays JSON, and tables lose no more than a letter, where the terminal speaks Latin-1."""
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    for options in (["--json"], []):
        command = [sys.executable, "-m", "lowmem_if", "plan", "🦊 红", "--size", "64", *options]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        if options:
            assert json.loads(done.stdout.decode("latin-1"))["request"]["prompts"] == ["🦊 红"]


def test_tables_lose_no_figure_on_a_narrow_terminal(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns cells wrap; nothing is cut off with dots."""
    folder = run_here(plan_of(tiny, size=64), tmp_path / "run")
    out = io.StringIO()
    print_run(folder, Console(file=out, width=80, highlight=False))
    assert "…" not in out.getvalue()
    measured = folder.measured("stage_1")
    assert measured is not None
    assert format_bytes(measured.ram_bytes) in out.getvalue()


def test_what_to_type_can_be_copied(tiny: Path, tmp_path: Path) -> None:
    """The line that says how to go on is one line, however long the path, and quoted for a shell."""
    folder = RunFolder.for_plan(tmp_path / ("deep folder " * 12), plan_of(tiny, size=64))
    out = io.StringIO()
    print_run(folder, Console(file=out, width=80, highlight=False))
    assert f"lowmem-if resume '{folder.path}'" in out.getvalue()


def test_a_prompt_too_long_for_the_upscaler_is_told(tiny: Path, tmp_path: Path) -> None:
    """Its own encoder counts other tokens than T5: letters, in the tests' cascade."""
    prompt = "a red circle on a wonderfully blue background, " * 3
    notices = run_here(plan_of(tiny, prompt), tmp_path / "run").notices
    assert any("upscaler's own encoder" in notice for notice in notices)


@pytest.mark.parametrize("code_page", ["cp1252", "cp437"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["probe", "--no-accelerator"],
        ["plan", STRANGE, "--size", "64", "--cascade", "demo"],
        ["plan", STRANGE, "--cascade", "日本 🟥"],
        ["plan", STRANGE, "--日本"],
        ["show", "日本 🟥"],
        ["gallery", "日本 🟥"],
        ["resume", "日本 🟥", "--json"],
    ],
)
def test_a_code_page_without_a_character_ends_no_command(
    arguments: list[str], code_page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows gives pipes and files the code page of its language; what that lacks is escaped."""
    RunFolder.for_plan(Path("日本 🟥"), plan_of("demo", size=64))
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=code_page) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(
        session, "continue_run", lambda folder, _worker, **_: RunResult(folder.path, (), (), ())
    )
    code = main(arguments)
    written = []
    for stream in streams:
        stream.flush()
        written.append(stream.buffer.getvalue().decode(code_page))
    monkeypatch.undo()
    assert code in (0, 1, 2)
    assert "UnicodeEncodeError" not in "".join(written)
    assert (code == 0) == bool(written[0])
    if "日本 🟥" in arguments:
        assert "\\u65e5\\u672c" in "".join(written)


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["plan", "x", "--cascade", "nope", "--json"], "CascadeError", 1),
        (["generate", "x", "--json", "--steps", "none"], "RequestError", 2),
        (["show", "/nowhere", "--json"], "RunFolderError", 1),
        (["plan", "x", "--json", "--sise", "64"], "UsageError", 2),
    ],
)
def test_a_failure_is_json_where_json_is_asked_for(
    capsys: pytest.CaptureFixture[str], arguments: list[str], kind: str, code: int
) -> None:
    """One object on standard output, with the words of standard error."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert captured.err == f"error: {error['message']}\n"


def test_words_behind_two_dashes_ask_for_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    """They are prompts."""
    assert main(["plan", "--cascade", "nope", "--", "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_a_plan_as_json_has_totals(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of its table's last line and of its largest steps."""
    line = ["plan", "a fox", "--images", "3", "--profile", "colab-free", "--json"]
    assert main(line) == 0
    plan = json.loads(capsys.readouterr().out)
    predicted = [step["predicted"] for step in plan["steps"]]
    total = plan["total"]
    assert total["pictures"] == 3
    assert total["seconds"] > sum(each["seconds"] for each in predicted)
    assert total["seconds_a_picture"] == pytest.approx(total["seconds"] / 3, abs=0.1)
    for key in ("vram_bytes", "ram_bytes"):
        assert total[key] == max(each[key] for each in predicted)
