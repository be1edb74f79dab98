"""The built wheel works in an empty environment and from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.worker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel in it.

    Its dependencies are this environment's, put on its path by name so that none of this
    environment's own packages, the editable lowmem-if above all, can stand in for the wheel.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = folder.glob("lowmem_if-*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=os.name != "nt")
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    target = Path(site.stdout.strip())
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    (target / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def command(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "lowmem-if", *arguments], cwd=cwd, capture_output=True, text=True
    )


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    """The package comes from the new environment, not from this checkout."""
    code = "import lowmem_if; print(lowmem_if.__file__)"
    where = subprocess.run(
        [installed / "python", "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert str(installed.parent) in where.stdout, where.stderr


def test_the_wheel_finds_its_profiles(installed: Path, tmp_path: Path) -> None:
    """Profiles are in the wheel."""
    planned = command(installed, tmp_path, "plan", "x", "--profile", "colab-free")
    assert planned.returncode == 0, planned.stderr
    assert "Tesla T4" in planned.stdout


def test_the_wheel_draws_with_its_bundled_cascade(installed: Path, tmp_path: Path) -> None:
    """The bundled cascade is in the wheel, and the worker starts from the installed package."""
    arguments = ["generate", "a red circle", "--size", "64", "--steps", "2", "--out", "run"]
    drawn = command(installed, tmp_path, *arguments)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "run" / "0000.png").is_file()


def test_the_wheel_carries_nothing_else(installed: Path) -> None:
    """Tests and training stay at home, and the weights are small."""
    (wheel,) = installed.parents[1].glob("lowmem_if-*.whl")
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lowmem_if"}
    assert "lowmem_if/py.typed" in names
    assert wheel.stat().st_size < 17_000_000
