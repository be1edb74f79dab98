"""`embed` on the command line, and the commands that take its file by --embeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_dicts import made_up, write
from sample_pictures import noise

from lowmem_if.api import fetch
from lowmem_if.cascade.catalog import POSTPROCESS, STAGE_1, TEXT_ENCODER
from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.folder import RunFolder

RED = "a red circle"


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


@pytest.mark.worker
def test_a_batchs_own_file_is_encoded_and_drawn(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts, styles and negative prompts of its rows; then the batch runs without a text encoder."""
    rows = [
        {"prompt": RED, "negative_prompt": "blurry"},
        {"prompt": RED, "style_prompt": "oil", "mode": "vary", "image": "own.png"},
    ]
    noise(tmp_path / "own.png")
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--cascade", str(tiny), "--device", "cpu", "--quiet", "--json"]
    code = main(["embed", "a fox", "--file", "rows.jsonl", "--out", "a.pth", *common])
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == ["a fox", RED, "blurry", "oil", ""]
    assert (found["file"], found["dtype"], found["shape"]) == ("a.pth", "float16", [1, 77, 64])
    (step,) = found["steps"]
    assert step["component"] == TEXT_ENCODER
    assert step["measured"]["ram_bytes"] > 0
    cascade = Path(shutil.copytree(tiny, tmp_path / "cascade"))
    shutil.rmtree(cascade / "stage_1" / "text_encoder")
    common[1] = str(cascade)
    options = ["--size", "64", "--steps", "2", "--seed", "1", "--out", "run", *common]
    assert main(["batch", "rows.jsonl", "--embeds", "a.pth", *options]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert [step["component"] for step in drawn["steps"]] == [STAGE_1, POSTPROCESS]
    assert len(drawn["images"]) == 2
    Path("a.pth").unlink()
    (RunFolder.open(Path("run")).path / "0000.png").unlink()
    assert main(["resume", "run", "--quiet"]) == 0
    assert len(capsys.readouterr().out.split()) == 2


@pytest.mark.worker
def test_the_file_is_named_and_described(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, in one line."""
    arguments = ["embed", RED, "--out", "a.npz", "--cascade", str(tiny), "--dtype", "float32"]
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("a.npz: 2 prompts, each (1, 77, 64) in float32, ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["embed", RED], 2, "--out"),
        (["embed", "--out", "a.pth"], 2, "nothing to encode: give prompts, or a file"),
        (["embed", RED, "--out", "a.bin"], 1, "must end in .pth, .pt, .safetensors, .npz"),
        (["embed", RED, "--out", "a.pth", "--dtype", "int8"], 2, "float16 and float32"),
        (["embed", "--file", "none.txt", "--out", "a.pth"], 1, "none.txt cannot be read"),
        (["embed", "--file", "blank.txt", "--out", "a.pth"], 1, "holds no prompt"),
        (
            ["embed", "--file", "bad.jsonl", "--out", "a.pth"],
            1,
            "bad.jsonl, line 1: it is not valid",
        ),
        (["plan", RED, "--embeds", "none.pth"], 1, "none.pth does not exist"),
        (["plan", RED, "--embeds", "blank.txt"], 1, "must end in .pth"),
        (["plan", "a fox", "--embeds", "good.pth"], 1, "'a fox'; it has 'a red circle', ''"),
        (["plan", RED, "--embeds", "text.pth"], 1, "text.pth"),
        (["generate", RED, "--embeds", "wide.pth", "--out", "r"], 1, "shape (1, 77, 4096)"),
        (["vary", "own.png", "b", "--embeds", "good.pth", "--out", "r"], 1, "prompt 'b'"),
        (["inpaint", "own.png", "own.png", "b", "--embeds", "good.pth", "--out", "r"], 1, "'b'"),
        (["fetch", "if-m", "--embeds", "none.pth"], 1, "none.pth does not exist"),
    ],
)
def test_wrong_files_and_options_end_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    """And nothing is drawn."""
    write(Path("good.pth"), made_up(RED, "", width=128))
    write(Path("wide.pth"), made_up(RED, "", width=4096))
    for name, content in (("blank.txt", "\n \n"), ("bad.jsonl", "{"), ("text.pth", "mine")):
        Path(name).write_text(content)
    noise(tmp_path / "own.png")
    assert main(arguments) == code
    assert words in line(capsys)
    assert not Path("r/run.json").exists()


def test_the_plan_shows_no_text_encoder(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --embeds; and nothing else with the mode of `embed`."""
    write(Path("a.safetensors"), made_up(RED, "", width=64))
    arguments = ["plan", RED, "--cascade", str(tiny), "--size", "64", "--json"]
    for more, components in (
        (["--embeds", "a.safetensors"], [STAGE_1, POSTPROCESS]),
        (["--mode", "embed"], [TEXT_ENCODER]),
    ):
        assert main([*arguments, *more]) == 0
        steps = json.loads(capsys.readouterr().out)["steps"]
        assert [step["component"] for step in steps] == components


def test_fetch_leaves_the_text_encoder_out(
    monkeypatch: pytest.MonkeyPatch, nothing_downloaded: Path
) -> None:
    """Eleven gigabytes less."""
    asked: list[Any] = []

    def list_files(_cascade: Any, components: tuple[str, ...], **_options: Any) -> tuple[()]:
        asked.append(components)
        return ()

    from lowmem_if.weights.hub import repository

    monkeypatch.setattr(repository, "list_files", list_files)
    monkeypatch.setattr(repository, "fetch", lambda *_given, **_options: None)
    torch.save({"": torch.zeros(1, 77, 4096)}, "a.pth")
    for embeds in (None, "a.pth"):
        fetch.fetch("if-m", size=64, embeds=embeds, profile="colab-free")
    assert asked == [(TEXT_ENCODER, STAGE_1, POSTPROCESS), (STAGE_1, POSTPROCESS)]
