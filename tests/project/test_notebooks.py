"""The notebooks run, their outputs are those of their cells, and they install safely."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from importlib import metadata, util
from pathlib import Path
from typing import Any

import nbformat
import numpy
import pytest
from fork_client import ADDRESS
from PIL import Image

ROOT = Path(__file__).parents[2]
NAMES = ("01_first_image", "02_own_sampling_loops", "colab_free_tier")
MOST_BYTES = 1_500_000
OF_THE_MACHINE = re.compile(r"lowmem-if (probe|plan|show)|lm\.probe\(\)|memory\.png|stage_1\.plan")
"""Cells whose outputs tell of the machine that ran them."""
TIMES = re.compile(r"(?<=done in )[^<]*")
PICTURES = re.compile(r"data:image/jpeg;base64,([^\"]+)")


def load_execute() -> Any:
    """`notebooks/execute.py`, which is in no package."""
    spec = util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_execute()


def committed(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def test_all_notebooks_are_tested() -> None:
    """One that is added here is run here."""
    assert [file.stem for file in execute.notebooks()] == [*NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_were_made_by_the_cells(name: str) -> None:
    """Whoever changes a cell runs `make notebooks`."""
    notebook = committed(name)
    assert notebook.metadata["lowmem_if"]["outputs_made_by"] == execute.sources_digest(notebook)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == [*range(1, len(ran) + 1)]
    assert not [o for cell in ran for o in cell.outputs if o.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_pictures_and_is_small(name: str) -> None:
    """Real ones, in a file that a browser opens at once; and nothing of the machine it was made on."""
    file = ROOT / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < MOST_BYTES
    outputs = [o for cell in committed(name).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    assert not re.search(r"/(home|root|work|tmp)/", file.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_only_the_public_interface_is_used(name: str) -> None:
    """`import lowmem_if as lm`, and commands."""
    code = "\n".join(cell.source for cell in committed(name).cells if cell.cell_type == "code")
    assert "import lowmem_if as lm" in code
    assert not re.search(r"lowmem_if\.|lm\._", code)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.worker
def test_a_fresh_run_gives_what_is_committed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cell runs; texts and pictures are those in the file, but for times and for the machine."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(forking_kernel(tmp_path / "ipython")))
    fresh = execute.executed(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "work")
    for ours, theirs in zip(fresh.cells, committed(name).cells, strict=True):
        if ours.cell_type == "code":
            told, expected = told_by(ours), told_by(theirs)
            assert told[0] == expected[0], ours.source
            for picture, other in zip(told[1], expected[1], strict=True):
                assert_alike(picture, other)


def forking_kernel(folder: Path) -> Path:
    """IPython's folder for a kernel whose workers the tests' server forks, if there is one."""
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    if ADDRESS in os.environ:
        helpers = str(ROOT / "tests" / "helpers")
        code = f"import sys; sys.path.insert(0, {helpers!r}); import fork_client; sys.path.pop(0)"
        (startup / "fork.py").write_text(f"{code}\nfork_client.in_kernel()\n")
    return folder


def told_by(cell: Any) -> tuple[list[str], list[bytes]]:
    """The texts of a cell's outputs without what changes from run to run, and its pictures."""
    if OF_THE_MACHINE.search(cell.source):
        return sorted({output.output_type for output in cell.outputs}), []
    stream = "".join(output.get("text", "") for output in cell.outputs)  # it comes in any pieces
    texts, pictures = [stream], []
    for output in cell.outputs:
        data = output.get("data", {})
        page = data.get("text/html", "")
        pictures += [data["image/png"]] if "image/png" in data else PICTURES.findall(page)
        texts += [PICTURES.sub("", TIMES.sub("", page))] if page else []
    return texts, [base64.b64decode(picture) for picture in pictures]


def assert_alike(picture: bytes, other: bytes) -> None:
    """The same but for the last bits that another processor rounds differently."""
    ours, theirs = (
        numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)
        for content in (picture, other)
    )
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).mean() < 2


def install_cell(name: str = NAMES[0]) -> str:
    """The source of the cell that installs the package."""
    (cell,) = (cell for cell in committed(name).cells if 'SOURCE = ""' in cell.source)
    return str(cell.source)


class StubPip:
    """Stands in for `subprocess.run`: answers `pip install` with reports, and notes each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.new = {"lowmem-if": "0.1.0", "ftfy": "6.3.1"}
        self.error = ""

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:6] == [sys.executable, "-m", "pip", "install", "--quiet", "--report"]
        report, *arguments = command[6:]
        self.calls.append(arguments)
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        new = {"bitsandbytes": "0.50.2"} if command[-1].startswith("bitsandbytes") else self.new
        items = [{"metadata": {"name": name, "version": new[name]}} for name in new]
        Path(report).write_text(json.dumps({"install": items}))
        return subprocess.CompletedProcess(command, 0, "\x1b[1mcoloured\x1b[0m", "")

    @property
    def packages(self) -> list[str]:
        """What the calls named, without options."""
        return [word for call in self.calls for word in call if word[0] != "-"]

    @property
    def changed_nothing(self) -> bool:
        return all("--dry-run" in call for call in self.calls)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that the cell finds."""
    packages = {"torch": "2.11.0", "transformers": "5.15.0"}

    def version(name: str) -> str:
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(metadata, "version", version)
    return packages


@pytest.fixture
def pip(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> StubPip:
    stub = StubPip()
    monkeypatch.setattr(subprocess, "run", stub)
    return stub


def run_install_cell(source: str = "") -> None:
    """Run the cell in this process and this folder, with its SOURCE set."""
    code = install_cell().replace('SOURCE = ""', f"SOURCE = {source!r}", 1)
    exec(compile(code, "install cell", "exec"), {})


def make_clone(folder: Path, name: str = "lowmem-if") -> Path:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder


def test_all_notebooks_install_alike() -> None:
    """One cell, tested once."""
    assert len({install_cell(name) for name in NAMES}) == 1


def test_nothing_is_installed_where_the_package_is(
    pip: StubPip, installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A development install stays, and a cell that runs twice installs once."""
    installed["lowmem-if"] = "0.1.0"
    run_install_cell("https://example.org/lowmem_if-9-py3-none-any.whl")
    assert not pip.calls
    assert "installed already" in capsys.readouterr().out


@pytest.mark.parametrize("here", ["clone/notebooks", "clone", "."])
def test_a_clone_is_found_around_and_beside_the_notebook(
    here: str, pip: StubPip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its `notebooks` folder, from its root, and from the folder that it was cloned into."""
    make_clone(tmp_path / "a_other", "other")
    clone = make_clone(tmp_path / "clone")
    (clone / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / here)
    run_install_cell()
    assert pip.packages[0] == f"lowmem-if[plot] @ {clone.as_uri()}"


def test_a_wheel_is_found_beside_the_notebook(pip: StubPip, tmp_path: Path) -> None:
    """Another project's clone is passed over."""
    make_clone(tmp_path / "other", "lowmem-if-other")
    wheel = tmp_path / "lowmem_if-0.1.0-py3-none-any.whl"
    wheel.touch()
    run_install_cell()
    assert pip.packages[0] == f"lowmem-if[plot] @ {wheel.as_uri()}"


@pytest.mark.parametrize(
    "source", ["https://example.org/lowmem_if-0.1.0-py3-none-any.whl", "git+https://example.org/a"]
)
def test_the_address_that_was_set_is_taken(source: str, pip: StubPip, tmp_path: Path) -> None:
    """What the user chose comes before what lies there."""
    make_clone(tmp_path / "clone")
    run_install_cell(source)
    assert pip.packages[0] == f"lowmem-if[plot] @ {source}"


def test_a_path_that_was_set_is_taken(pip: StubPip, tmp_path: Path) -> None:
    """Relative to the notebook; pip gets an address, so it cannot read it as a name."""
    make_clone(tmp_path / "clone")
    folder = make_clone(tmp_path / "elsewhere" / "lowmem-if")
    run_install_cell("elsewhere/lowmem-if")
    assert pip.packages[0] == f"lowmem-if[plot] @ {folder.as_uri()}"


@pytest.mark.parametrize("source", ["", "lowmem-if", "lowmem-if==0.1.0", "no/such/folder"])
def test_the_cell_stops_where_there_is_no_package(source: str, pip: StubPip) -> None:
    """It says what to do, and asks no registry for a name that anyone may register."""
    with pytest.raises(SystemExit, match="was not found in") as stopped:
        run_install_cell(source)
    assert "Upload a wheel" in str(stopped.value)
    assert "SOURCE" in str(stopped.value)
    assert not pip.calls


def test_what_was_reported_is_installed_and_nothing_else(
    pip: StubPip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dry runs first; then these versions, without dependencies; the package only by its address."""
    package = f"lowmem-if[plot] @ {make_clone(tmp_path / 'clone').as_uri()}"
    run_install_cell()
    assert pip.calls == [
        ["--dry-run", package],
        ["--dry-run", "--no-deps", "bitsandbytes>=0.48"],
        ["--no-deps", package, "ftfy==6.3.1", "bitsandbytes==0.50.2"],
    ]
    said = capsys.readouterr().out
    assert "Adds  lowmem-if 0.1.0, ftfy 6.3.1, bitsandbytes 0.50.2\n" in said
    assert "Keeps torch 2.11.0, transformers 5.15.0\n" in said


def test_bitsandbytes_stays_where_it_is(
    pip: StubPip, installed: dict[str, str], tmp_path: Path
) -> None:
    """Any version of it is left alone."""
    installed["bitsandbytes"] = "0.45.0"
    make_clone(tmp_path / "clone")
    run_install_cell()
    assert not [word for word in pip.packages if word.startswith("bitsandbytes")]


def test_the_cell_stops_before_it_replaces_a_package(pip: StubPip, tmp_path: Path) -> None:
    """It names the package with both versions."""
    make_clone(tmp_path / "clone")
    pip.new |= {"torch": "2.14.1", "transformers": "5.20.0"}
    replaced = r"Nothing was .* torch 2\.11\.0 with 2\.14\.1, transformers 5\.15\.0 with 5\.20\.0\."
    with pytest.raises(SystemExit, match=replaced):
        run_install_cell()
    assert pip.calls
    assert pip.changed_nothing


def test_the_cell_stops_where_pip_does(pip: StubPip, tmp_path: Path) -> None:
    """With pip's message."""
    make_clone(tmp_path / "clone")
    pip.error = "ERROR: requires a different Python: 3.10 not in '>=3.11'"
    with pytest.raises(SystemExit, match="requires a different Python"):
        run_install_cell()
    assert len(pip.calls) == 1


def make_wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel with one empty module."""
    info = f"{name}-{version}.dist-info"
    described = "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\n"
        f"Version: {version}\nProvides-Extra: plot\n{described}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)


@pytest.mark.slow
def test_the_cell_works_with_the_real_pip(tmp_path: Path) -> None:
    """It stops for a dependency that is too old; else it installs, and imports in this process."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name, version in (("a_helper", "1.0"), ("a_helper", "2.0"), ("bitsandbytes", "0.50")):
        make_wheel(shelf, name, version, *["torch"] if name == "bitsandbytes" else [])
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    alone = {
        name: text for name, text in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))
    }
    alone |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": os.devnull}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *arguments], env=alone, capture_output=True, text=True)

    assert run("-m", "pip", "install", "a_helper==1.0").returncode == 0
    make_wheel(tmp_path, "lowmem_if", "0.1.0", "a-helper>=2")
    stopped = run("-c", install_cell())
    assert stopped.returncode == 1
    assert "would replace a-helper 1.0 with 2.0.\n" in stopped.stderr
    make_wheel(tmp_path, "lowmem_if", "0.1.0", "a-helper>=1")
    done = run("-c", install_cell() + "\nimport bitsandbytes, lowmem_if")
    assert "Adds  lowmem-if 0.1.0, bitsandbytes 0.50\n" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    assert "installed already" in run("-c", install_cell()).stdout


def one_cell(folder: Path, source: str) -> Path:
    """A notebook with this cell."""
    file = folder / "one.ipynb"
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), file)
    return file


ADD_A_HELPER = """
import sys, nbformat, sysconfig, shutil
from pathlib import Path
packages = Path(sysconfig.get_path("purelib"))
assert packages not in Path(nbformat.__file__).parents
assert Path(shutil.which("python")).parent == Path(sys.executable).parent
info = packages / "a_helper-1.0.dist-info"
info.mkdir()
(info / "METADATA").write_text("Name: a_helper\\nVersion: 1.0\\n")
"""


def test_a_check_runs_above_the_environment(tmp_path: Path) -> None:
    """The kernel uses its packages, and installs elsewhere."""
    _, added = execute.check(one_cell(tmp_path, ADD_A_HELPER), Path(sys.executable))
    assert added == {"a-helper": "1.0"}


def test_a_check_fails_if_the_wheel_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel alone lies beside the notebook; an environment that has the package is refused."""
    wheel = tmp_path / "lowmem_if-1-py3-none-any.whl"
    wheel.touch()
    alone = "from pathlib import Path\nassert [file.name for file in Path.cwd().iterdir()] == "
    file = one_cell(tmp_path, alone + repr([wheel.name]))
    real = execute.versions
    monkeypatch.setattr(execute, "versions", lambda python: real(python) | {"lowmem-if": "0.1"})
    with pytest.raises(execute.CheckFailed, match="already has lowmem-if"):
        execute.check(file, Path(sys.executable), wheel)

    def without(python: Path) -> dict[str, str]:
        return {name: found for name, found in real(python).items() if name != "lowmem-if"}

    monkeypatch.setattr(execute, "versions", without)
    with pytest.raises(execute.CheckFailed, match="did not install lowmem_if-1-py3"):
        execute.check(file, Path(sys.executable), wheel)


def test_a_check_fails_with_the_cell(tmp_path: Path) -> None:
    """Its source and its traceback are the message."""
    file = one_cell(tmp_path, "shape = 'star'\n1 / 0")
    with pytest.raises(
        SystemExit, match=r"(?s)one\.ipynb with .*shape = 'star'.*ZeroDivisionError"
    ):
        execute.main(["--check", str(file)])


def test_a_check_fails_if_a_package_changes(tmp_path: Path) -> None:
    """Whatever the notebook itself says."""
    file = one_cell(
        tmp_path,
        "import sysconfig\nfrom pathlib import Path\n"
        "info = Path(sysconfig.get_path('purelib'), 'nbformat-0.1.dist-info')\ninfo.mkdir()\n"
        "(info / 'METADATA').write_text('Name: nbformat\\nVersion: 0.1\\n')",
    )
    with pytest.raises(
        execute.CheckFailed, match=f"changed .* nbformat {metadata.version('nbformat')}$"
    ):
        execute.check(file, Path(sys.executable))
