"""Made-up weights are written into an empty folder, or over the same cascade, and nowhere else."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from runs import plan_of

from lowmem_if.cli.main import main
from lowmem_if.engine.run_folder.folder import RunFolder
from lowmem_if.errors import CascadeError
from lowmem_if.weights.synthetic.architectures import networks
from lowmem_if.weights.synthetic.checkpoints import synthesize
from lowmem_if.weights.synthetic.target_folder import check_target


def check(folder: Path, name: str) -> None:
    check_target(folder, name, chain.from_iterable(networks(name).values()))


def test_a_run_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its `stage_1` looks like a cascade's, its record does not."""
    folder = RunFolder.for_plan(tmp_path / "run", plan_of("demo", size=64))
    folder.prepare()
    before = sorted(folder.path.rglob("*"))
    assert main(["synthesize", "if-m", str(folder.path), "--fill", "zeros"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "holds something else" in told
    assert "give a new or empty folder" in told
    assert sorted(folder.path.rglob("*")) == before


def test_the_same_cascade_can_be_completed_and_another_is_refused(tmp_path: Path) -> None:
    """Component by component; if-l's first stage is larger than if-m's, and says so."""
    folder = tmp_path / "weights"
    synthesize("if-m", folder, fill="zeros", components=("stage_1",))
    synthesize("if-m", folder, fill="zeros", components=("stage_1", "postprocess"))
    check(folder, "if-m")
    with pytest.raises(CascadeError, match=r"another cascade than if-l .stage_1/unet: block_out"):
        synthesize("if-l", folder, fill="zeros", components=("stage_2",))
    assert not (folder / "stage_2").exists()


def test_new_empty_and_hidden_content_is_no_obstacle(tmp_path: Path) -> None:
    """File managers and notebooks leave hidden files everywhere."""
    check(tmp_path / "new", "if-m")
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"")
    check(folder, "if-m")
    (folder / "stage_1").write_bytes(b"a file")
    with pytest.raises(CascadeError, match=r"something else .stage_1"):
        check(folder, "if-m")


@pytest.mark.parametrize("content", ["{", json.dumps({"sample_size": 32})])
def test_a_configuration_that_is_broken_or_differs_is_refused(tmp_path: Path, content: str) -> None:
    """The fields that tell cascades apart are compared."""
    file = tmp_path / "weights" / "stage_1" / "unet" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(CascadeError, match=r"another cascade than if-m .stage_1/unet"):
        check(tmp_path / "weights", "if-m")
