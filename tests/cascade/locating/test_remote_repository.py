"""A part on the Hub: planned by its headers, downloaded alone, and drawn with; against a stand-in.

Commands run in processes of their own: huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from hub_stand_in import HubStandIn, Outage
from safetensors.numpy import load_file, save_file

MINE = "me/my-if"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
ROOT = Path(__file__).parents[3]
SMALL = ("--size", "64", "--device", "cpu", "--ram", "4GB")


class Commands:
    """Runs the command line with a Hub and an empty cache of its own."""

    def __init__(self, hub: HubStandIn, home: Path) -> None:
        self.hub, self.home = hub, home
        self.environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home),
            "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.url, "NO_PROXY": "*",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "SSL_CERT_DIR": str(home),
            "LOWMEM_IF_CACHE": str(home / "own"),
        }  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lowmem_if", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=self.home, text=True, capture_output=True
        )

    def plan(self, cascade: Path, *arguments: str) -> dict[str, Any]:
        done = self.run("plan", "a", "--cascade", str(cascade), "--json", *SMALL, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refusal(self, cascade: Path | str, *arguments: str) -> str:
        """The one line in which a plan is refused."""
        done = self.run("plan", "a", "--cascade", str(cascade), *SMALL, *arguments)
        assert done.returncode == 1, done.stdout
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr.strip()

    @property
    def cached_files(self) -> set[str]:
        """The files of the repository that are in the cache."""
        snapshots = self.home / "hf" / "hub" / "models--me--my-if" / "snapshots"
        paths = (path for path in snapshots.rglob("*") if path.is_file())
        return {"/".join(path.relative_to(snapshots).parts[1:]) for path in paths}


@pytest.fixture
def mine(tiny: Path, tmp_path: Path) -> Path:
    """The repository of the user's own: a whole stage 1, on the Hub's side."""
    return Path(shutil.copytree(tiny / "stage_1", tmp_path / "hub" / MINE))


@pytest.fixture
def commands(mine: Path, tmp_path: Path) -> Iterator[Commands]:
    home = tmp_path / "home"
    home.mkdir()
    with HubStandIn(tmp_path / "hub") as hub:
        yield Commands(hub, home)


def grow(file: Path, *, header: int = 0) -> int:
    """Add a tensor of 8 MB to a file, and `header` bytes to its header; returns its size."""
    tensors = load_file(file) | {"zzz": numpy.zeros(4_000_000, numpy.float16)}
    save_file(tensors, file, metadata={"format": "pt", "note": "x" * header})
    return file.stat().st_size


@pytest.mark.parametrize("header", [0, 400_000], ids=["one request", "a long header"])
def test_before_a_download_a_plan_reads_only_headers(
    commands: Commands, mine: Path, tiny: Path, header: int
) -> None:
    """The plan has the part's own sizes, and of its weights only the header was sent."""
    size = grow(mine / UNET, header=header)
    plan = commands.plan(tiny, "--part", f"stage_1={MINE}")
    assert plan["download_bytes"] == size
    parts = commands.hub.parts(f"{MINE}/{UNET}")
    assert [part.status for part in parts] == [206] * (2 if header else 1)
    assert sum(part.sent_bytes for part in parts) < 1_000_000
    assert commands.cached_files == {"unet/config.json", "scheduler/scheduler_config.json"}
    assert plan["request"]["parts"] == [
        {"component": "stage_1", "source": MINE, "revision": "main"}
    ]


def test_a_server_that_ignores_ranges_is_read_no_further_than_the_header(
    commands: Commands, mine: Path, tiny: Path
) -> None:
    """A proxy may send whole files; the plan is the same."""
    size = grow(mine / UNET, header=400_000)
    commands.hub.faults.ignore_range = True
    assert commands.plan(tiny, "--part", f"stage_1={MINE}")["download_bytes"] == size


def test_a_busy_hub_is_asked_again(commands: Commands, mine: Path, tiny: Path) -> None:
    """One answer of 503 is no failure."""
    commands.hub.faults.status[UNET] = Outage(503, times=1)
    assert commands.plan(tiny, "--part", f"stage_1={MINE}")["fits"]


@pytest.mark.worker
def test_only_the_part_is_fetched_and_it_draws(commands: Commands, mine: Path, tiny: Path) -> None:
    """Of the repository the UNet and scheduler are downloaded; the rest is the local cascade's."""
    part = ("--part", f"stage_1={MINE}")
    missing = commands.run("generate", "a", "--cascade", str(tiny), *part, *SMALL, "--seed", "1")
    assert missing.returncode == 1
    assert f"`lowmem-if fetch {tiny} --part stage_1={MINE}` downloads it" in missing.stderr
    done = commands.run("fetch", str(tiny), *part, "--size", "64", "--ram", "4GB")
    assert done.returncode == 0, done.stderr
    assert commands.cached_files == {
        "model_index.json", "unet/config.json", UNET, "scheduler/scheduler_config.json",
    }  # fmt: skip
    assert commands.plan(tiny, *part)["download_bytes"] == 0
    commands.hub.stop()
    options = (*part, *SMALL, "--seed", "1", "--steps", "2", "--out", "run", "--json")
    drawn = commands.run("generate", "a", "--cascade", str(tiny), *options)
    assert drawn.returncode == 0, drawn.stderr
    plain = commands.run("generate", "a", "--cascade", str(tiny), *options[2:-2], "plain")
    assert plain.returncode == 0, plain.stderr
    pictures = [
        (commands.home / run / "stage_1" / "0000.png").read_bytes() for run in ("run", "plain")
    ]
    assert pictures[0] == pictures[1]  # the repository holds the same weights


@pytest.mark.parametrize("cascade", ["tiny", "if-m"])
def test_what_does_not_fit_is_refused_before_a_download(
    commands: Commands, mine: Path, tiny: Path, cascade: str
) -> None:
    """Another stage, and a UNet for another text encoder, are known by their configurations."""
    if cascade == "tiny":
        shutil.rmtree(mine)
        shutil.copytree(tiny / "stage_2", mine)
        text = commands.refusal(tiny, "--part", f"stage_1={MINE}")
        assert f"this is stage 2, not stage 1: did you mean --part stage_2={MINE}?" in text
    else:
        text = commands.refusal("if-m", "--part", f"stage_1={MINE}")
        assert "reads 64 numbers per token, and the text encoder of this cascade gives 4096" in text


def test_pickles_on_the_hub_are_never_read(commands: Commands, mine: Path, tiny: Path) -> None:
    """The line says that there is nothing else."""
    (mine / UNET).rename(mine / UNET.replace(".safetensors", ".bin"))
    text = commands.refusal(tiny, "--part", f"stage_1={MINE}")
    assert f"{MINE}: unet/ has only pickles (.bin)" in text
    assert not commands.hub.parts(f"{MINE}/{UNET.replace('.safetensors', '.bin')}")


def test_a_broken_file_on_the_hub_is_named(commands: Commands, mine: Path, tiny: Path) -> None:
    """A web page in place of weights has no header."""
    (mine / UNET).write_bytes(b"<html>not found</html>")
    assert f"{MINE}/{UNET}: " in commands.refusal(tiny, "--part", f"stage_1={MINE}")


@pytest.mark.slow
def test_what_is_not_on_the_hub_is_told_in_one_line(
    commands: Commands, mine: Path, tiny: Path
) -> None:
    """A missing repository, a missing revision, a gated repository and no diffusers layout."""
    assert "there is no folder 'missing/folder' here" in commands.refusal(
        tiny, "--part", "stage_1=missing/folder"
    )
    assert "has no revision 'v9'" in commands.refusal(tiny, "--part", f"stage_1={MINE}@v9")
    commands.hub.gated[MINE] = set()
    assert "needs a login" in commands.refusal(tiny, "--part", f"stage_1={MINE}")
    commands.hub.gated.clear()
    shutil.rmtree(mine / "unet")
    assert "has no folder unet/" in commands.refusal(tiny, "--part", f"stage_1={MINE}")
