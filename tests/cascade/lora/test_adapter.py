"""LoRAs in requests and plans: found, told apart, and given to the stage that they are for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import kohya, peft, random_lora, write
from runs import CPU, plan_of

from lowmem_if.cascade.lora.adapter import Lora, loras, parse_lora
from lowmem_if.cascade.lora.lora_fit import Misfit, fitted
from lowmem_if.cascade.lora.lora_keys import read_pairs
from lowmem_if.cli.main import main
from lowmem_if.errors import LoraError, RequestError, RunFolderError
from lowmem_if.planning.plan import Plan, make_plan
from lowmem_if.request.build import make_request


@pytest.fixture
def first(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA for stage 1."""
    return write(tmp_path / "first.safetensors", peft(random_lora(tiny, "stage_1")))


@pytest.fixture
def second(tiny: Path, tmp_path: Path) -> Path:
    """A LoRA for stage 2."""
    return write(tmp_path / "second.safetensors", peft(random_lora(tiny, "stage_2")))


# --- what a user writes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.safetensors", (None, "x.safetensors", 1.0)),
        ("x.safetensors:0.5", (None, "x.safetensors", 0.5)),
        ("x.safetensors:-1", (None, "x.safetensors", -1.0)),
        ("x.safetensors:0", (None, "x.safetensors", 0.0)),
        ("x.safetensors:1e-2", (None, "x.safetensors", 0.01)),
        ("stage_1=x.safetensors", ("stage_1", "x.safetensors", 1.0)),
        ("stage_2=x:2", ("stage_2", "x", 2.0)),
        (r"C:\a\x.safetensors", (None, r"C:\a\x.safetensors", 1.0)),
        (r"C:\a\x.safetensors:0.5", (None, r"C:\a\x.safetensors", 0.5)),
        (r"stage_1=C:\x.safetensors:0.5", ("stage_1", r"C:\x.safetensors", 0.5)),
        ("a=b.safetensors", (None, "a=b.safetensors", 1.0)),
        ("x.safetensors:half", (None, "x.safetensors:half", 1.0)),
    ],
)
def test_a_text_says_stage_file_and_scale(text: str, expected: tuple[Any, ...]) -> None:
    """Whatever colons and equals signs a path has."""
    assert parse_lora(text) == expected


def test_a_file_with_a_number_behind_a_colon_is_meant_as_it_is(tmp_path: Path) -> None:
    """Where there is one of that very name."""
    (tmp_path / "x:5").touch()
    assert parse_lora("x:5") == (None, "x:5", 1.0)


@pytest.mark.parametrize("text", ["x:nan", "x:inf", "x:-inf"])
def test_a_scale_is_a_finite_number(text: str) -> None:
    """Python would read these as numbers."""
    with pytest.raises(RequestError, match="is not a number"):
        parse_lora(text)


def test_other_components_take_no_lora() -> None:
    """A component's name before the file is meant as one."""
    with pytest.raises(RequestError, match="upscaler takes no LoRA"):
        parse_lora("upscaler=x.safetensors")


def test_a_request_takes_texts_paths_and_loras(first: Path, tmp_path: Path) -> None:
    """One or several; each is looked into, and kept with its absolute path and content."""
    one = make_request("x", lora=first).lora
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert [(lora.path, lora.scale, lora.digest) for lora in one] == [(str(first), 1.0, digest)]
    assert one == make_request("x", lora="first.safetensors").lora
    given = ["first.safetensors:2", first, Lora(str(first), -0.5, "stage_1"), one[0]]
    several = make_request("x", lora=given).lora  # type: ignore[arg-type]
    assert [lora.scale for lora in several] == [2.0, 1.0, -0.5, 1.0]
    assert [lora.stage for lora in several] == [None, None, "stage_1", None]
    assert several[1:2] == several[3:] == one
    assert make_request("x").lora == make_request("x", lora=None).lora == ()


def test_a_folder_of_diffusers_is_its_file(first: Path, tmp_path: Path) -> None:
    """`pytorch_lora_weights.safetensors`, whose name is kept even where it is a link."""
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").symlink_to(first)
    assert loras("trained:0.5")[0].path == str(folder / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("given", [3, [3], Lora("x", float("nan")), Lora("x", 1.0, "postprocess")])
def test_what_is_no_lora_at_all_is_told(given: Any) -> None:
    """Of other types, or made by hand with values that no text could have."""
    with pytest.raises(RequestError):
        loras(given)


# --- which stage it is for -------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [peft, kohya])
def test_the_stage_is_told_by_names_and_shapes(tiny: Path, tmp_path: Path, spelling: Any) -> None:
    """The plan says for which, the request and the step alike."""
    files = [
        write(tmp_path / f"{stage}.safetensors", spelling(random_lora(tiny, stage)))
        for stage in ("stage_2", "stage_1")
    ]
    plan = plan_of(tiny, size=256, lora=[f"{files[0]}:0.5", files[1]])
    assert [lora.stage for lora in plan.request.lora] == ["stage_2", "stage_1"]
    for step in plan.steps:
        names = {"stage_1": ["stage_1.safetensors"], "stage_2": ["stage_2.safetensors"]}
        assert [Path(lora.path).name for lora in step.lora] == names.get(step.component, [])
    assert "LoRA stage_2.safetensors at 0.5, merged with" in plan.step("stage_2").reason


def test_one_that_fits_no_stage_is_told_with_what_was_expected(
    tiny: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    """The first key, its shape, and that of the stage; or that there is no such layer."""
    with pytest.raises(
        LoraError, match=r"in stage 1 'unet\..*' is for a weight of shape .*, but this weight is"
    ):
        plan_of(tiny, size=64, lora=second)
    strange = {"a.b.lora_A.weight": torch.ones(2, 3), "a.b.lora_B.weight": torch.ones(4, 2)}
    write(tmp_path / "b.safetensors", strange)
    layer = "there is no layer for 'a.b.lora_A.weight'"
    with pytest.raises(LoraError, match=f"in stage 1 {layer}; in stage 2 {layer}"):
        plan_of(tiny, size=256, lora="b.safetensors")
    with pytest.raises(LoraError, match="in stage 2 'unet"):
        plan_of(tiny, size=256, lora=f"stage_2={first}")


def test_one_that_fits_both_stages_asks_for_which(tiny: Path, tmp_path: Path) -> None:
    """By a prefix it is taken, and where only one of the stages runs."""
    lora = random_lora(tiny, "stage_1", wanted=lambda layer: layer == "encoder_hid_proj")
    file = write(tmp_path / "both.safetensors", peft(lora))
    with pytest.raises(
        LoraError, match=r"fits stage 1 and stage 2: .* stage_1=both.safetensors or"
    ):
        plan_of(tiny, size=256, lora=file)
    for stage in ("stage_1", "stage_2"):
        plan = plan_of(tiny, size=256, lora=f"{stage}={file}")
        assert len(plan.step(stage).lora) == 1
    assert len(plan_of(tiny, size=64, lora=file).step("stage_1").lora) == 1


def test_a_stage_that_does_not_run_takes_none(tiny: Path, second: Path, tmp_path: Path) -> None:
    """Neither by prefix, nor where the upscaler works alone."""
    with pytest.raises(LoraError, match="stage 2 does not run"):
        plan_of(tiny, size=64, lora=f"stage_2={second}")
    from PIL import Image

    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    upscale: dict[str, Any] = {"mode": "upscale", "image": tmp_path / "large.png"}
    with pytest.raises(LoraError, match="neither stage 1 nor stage 2 runs"):
        plan_of(tiny, "", lora=second, **upscale)


def test_an_enlarged_picture_goes_through_stage_2_with_its_lora(
    tiny: Path, second: Path, tmp_path: Path
) -> None:
    """`upscale` of a small one; stage 1 does not run, so nothing has to be said."""
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    plan = plan_of(tiny, "", mode="upscale", image=tmp_path / "small.png", lora=second)
    assert [step.component for step in plan.steps if step.lora] == ["stage_2"]


def test_weights_that_are_not_here_cannot_be_compared(first: Path) -> None:
    """Of a cascade that is not downloaded the stage must be said, or be the only one."""
    request = make_request("x", cascade="if-m", seed=(1,), size=256, lora=first)
    with pytest.raises(LoraError, match=r"not on this disk: run `lowmem-if fetch if-m`"):
        make_plan(CPU, request)
    said = make_request("x", cascade="if-m", seed=(1,), size=256, lora=f"stage_1={first}")
    assert len(make_plan(CPU, said).step("stage_1").lora) == 1
    assert len(make_plan(CPU, request.no_larger_than(64)).step("stage_1").lora) == 1


def test_underscores_that_could_be_two_layers_are_told(tmp_path: Path) -> None:
    """kohya's keys are read by the network's own names; where that leaves two, neither is meant."""
    pair = {
        "lora_unet_a_b_c.lora_down.weight": torch.ones(2, 3),
        "lora_unet_a_b_c.lora_up.weight": torch.ones(3, 2),
    }
    pairs = read_pairs(write(tmp_path / "a.safetensors", pair))
    assert [*fitted(pairs, {"a.b_c.weight": (3, 3)})] == ["a.b_c.weight"]
    with pytest.raises(Misfit, match=r"could be for a.b_c and a_b.c"):
        fitted(pairs, {"a.b_c.weight": (3, 3), "a_b.c.weight": (3, 3)})


def test_two_spellings_of_one_layer_are_told(tmp_path: Path) -> None:
    """Neither takes the place of the other."""
    both = {
        "lora_unet_a_b.lora_down.weight": torch.ones(2, 3),
        "lora_unet_a_b.lora_up.weight": torch.ones(3, 2),
        "a.b.lora_A.weight": torch.ones(2, 3),
        "a.b.lora_B.weight": torch.ones(3, 2),
    }
    pairs = read_pairs(write(tmp_path / "a.safetensors", both))
    with pytest.raises(Misfit, match="are for the same layer"):
        fitted(pairs, {"a.b.weight": (3, 3)})


# --- plans -----------------------------------------------------------------------------------------


def test_a_plan_with_loras_is_a_value(tiny: Path, first: Path, second: Path) -> None:
    """JSON out, JSON in, equal; an older plan, without a word of LoRAs, is read as well."""
    plan = plan_of(tiny, size=256, lora=[f"{first}:0.5", second])
    data = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(data) == plan
    older = json.loads(json.dumps(plan_of(tiny).to_json()))
    del older["request"]["lora"]
    for step in older["steps"]:
        del step["lora"]
    assert Plan.from_json(older) == plan_of(tiny)
    data["request"]["lora"][0] |= {"digest": "", "path": "nowhere"}
    with pytest.raises(RunFolderError, match="the plan cannot be read"):
        Plan.from_json(data)


def test_memory_for_merging_is_planned(tiny: Path, first: Path) -> None:
    """In RAM, which is where it is done; at a scale of 0 nothing is."""
    without = plan_of(tiny, size=64).step("stage_1").estimate
    step = plan_of(tiny, size=64, lora=[first, first]).step("stage_1")
    assert step.estimate.ram_bytes - without.ram_bytes == 2 * step.lora[0].merge_bytes > 0
    assert step.estimate == replace(without, ram_bytes=step.estimate.ram_bytes)
    nothing = plan_of(tiny, size=64, lora=f"{first}:0").step("stage_1")
    assert nothing.estimate == without


def test_what_would_fit_instead_is_asked_with_the_lora(tiny: Path, second: Path) -> None:
    """A smaller size on which its stage does not run is no way out, and no error of its own."""
    from lowmem_if.errors import DoesNotFit

    machine = replace(CPU, ram_bytes=759 * 10**6)
    asked: dict[str, Any] = {"cascade": str(tiny), "seed": 1, "size": 256}
    with pytest.raises(DoesNotFit, match=r"available\. Try --size 64, or free"):
        make_plan(machine, make_request("x", **asked))
    with pytest.raises(DoesNotFit, match=r"\. No smaller request fits\. Free .* more RAM"):
        make_plan(machine, make_request("x", lora=second, **asked))


def test_planning_with_a_lora_imports_no_torch(tiny: Path, first: Path) -> None:
    """Names and shapes are read from headers."""
    import subprocess
    import sys

    code = (
        "import sys; from lowmem_if.cli.main import main\n"
        f"assert main(['plan', 'x', '--cascade', {str(tiny)!r}, '--lora', {str(first)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": root})


# --- files that are none, on the command line ------------------------------------------------------


def truncated(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:-100])
    return "it is truncated"


def garbled(file: Path) -> str:
    file.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"no json at all!!" + b"\0" * 64)
    return "its header is not valid JSON"


def empty(file: Path) -> str:
    file.write_bytes(b"")
    return "has no safetensors header"


def pickled(file: Path) -> str:
    torch.save({"a": torch.ones(2)}, file)
    return "is a pickle, and opening a pickle can run any code"


def old_pickle(file: Path) -> str:
    file.rename(file.with_suffix(".bin"))
    file.mkdir()
    file.with_suffix(".bin").rename(file / "pytorch_lora_weights.bin")
    return "is a pickle, and opening a pickle can run any code"


def gone(file: Path) -> str:
    file.unlink()
    return "does not exist: give a safetensors file"


def a_folder(file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "does not contain pytorch_lora_weights.safetensors"


def weights(file: Path) -> str:
    write(file, {"conv_in.weight": torch.ones(3, 3)})
    return "does not belong to a LoRA"


@pytest.mark.parametrize(
    "harm", [truncated, garbled, empty, pickled, old_pickle, gone, a_folder, weights]
)
@pytest.mark.parametrize("command", ["plan", "generate"])
def test_files_that_cannot_be_used_are_told_in_one_line(
    tiny: Path,
    first: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], str],
    command: str,
) -> None:
    """Before anything is loaded or written, with exit code 1."""
    words = harm(first)
    assert main([command, "x", "--cascade", str(tiny), "--lora", str(first)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert str(first) in captured.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("someone/lora-on-the-hub", 1, "`hf download`"),
        ("{first}:nan", 2, "is not a number"),
        ("postprocess={first}", 2, "postprocess takes no LoRA"),
        ("{first}:strong", 1, "does not exist"),
        ("x\0y", 1, "does not exist"),
        ("~nobody-of-that-name/x", 1, "does not exist"),
        ("x" * 5000, 1, "does not exist"),
    ],
)
def test_what_names_no_file_is_told_in_one_line(
    tiny: Path,
    first: Path,
    capsys: pytest.CaptureFixture[str],
    given: str,
    code: int,
    words: str,
) -> None:
    """A name on the Hub, a scale that is a word, and what no system could find."""
    given = given.format(first=first)
    assert main(["plan", "x", "--cascade", str(tiny), "--lora", given]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_every_command_that_draws_takes_loras(
    tiny: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told by an error that only looking at the file gives."""
    from PIL import Image

    for name, color in (("a.png", "red"), ("m.png", "white")):
        Image.new("RGB", (32, 32), color).save(tmp_path / name)
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    shutil.copy(first, tmp_path / "x.bin")
    openings = {
        "generate": ["x"], "plan": ["x"], "vary": ["a.png", "x"], "inpaint": ["a.png", "m.png", "x"],
        "upscale": ["a.png"], "batch": ["prompts.txt"],
    }  # fmt: skip
    for command, opening in openings.items():
        assert main([command, *opening, "--cascade", str(tiny), "--lora", "x.bin"]) == 1
        assert "is a pickle" in capsys.readouterr().err
