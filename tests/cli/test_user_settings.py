"""The user's own defaults: where a value comes from, what is refused, and that the file is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_if.cli.main import app, main
from lowmem_if.cli.user_settings import (
    SETTINGS,
    WITH_SETTINGS,
    defaults,
    settable,
    settings_file,
    without_preset,
    write_setting,
)
from lowmem_if.errors import RequestError

Planned = Callable[..., dict[str, Any]]


@pytest.fixture
def file() -> Path:
    return Path(os.environ["LOWMEM_IF_CONFIG"])


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Planned:
    """The request of `lowmem-if plan` with these arguments, in a machine of which nothing matters."""

    def plan(*arguments: str) -> dict[str, Any]:
        line = ["plan", "a fox", "--profile", "colab-free", "--json", *arguments]
        assert main(line) == 0
        data: dict[str, Any] = json.loads(capsys.readouterr().out)
        return data

    return plan


def test_without_a_file_nothing_changes(planned: Planned, file: Path) -> None:
    """The built-in defaults hold."""
    assert not file.exists()
    assert planned()["request"]["cascade"] == "demo"


def test_the_nearest_source_counts(
    planned: Planned, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Command line, environment, preset, file."""
    file.write_text('cascade = "if-m"\nsize = 256\n[presets.large]\ncascade = "if-xl"\n')
    assert planned()["request"]["cascade"] == "if-m"
    assert planned("--preset", "large")["request"]["cascade"] == "if-xl"
    assert planned("--preset=large")["request"]["size"] == 256
    monkeypatch.setenv("LOWMEM_IF_CASCADE", "if-l")
    assert planned("--preset", "large")["request"]["cascade"] == "if-l"
    assert planned("--preset", "large", "--cascade", "demo")["request"]["cascade"] == "demo"


def test_numbers_lists_and_texts_are_read_as_on_the_command_line(
    planned: Planned, file: Path
) -> None:
    """One value or several, of whatever TOML type is natural."""
    file.write_text(
        'steps = [20, 10, 5]\nsize = 1024\nguidance-scale = 5.5\nprefer = "balanced"\n'
        'pin = ["stage_1=stream", "stage_2=resident"]\n'
    )
    plan = planned("--cascade", "if-m")
    assert plan["prefer"] == "balanced"
    assert plan["pins"] == {"stage_1": "stream", "stage_2": "resident"}
    steps = {step["component"]: step for step in plan["steps"]}
    assert steps["stage_1"]["strategy"] == "stream"
    assert main(["plan", "a fox", "--profile", "colab-free", "--pin", "stage_1=resident"]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cascde = 1", "no setting 'cascde'; did you mean 'cascade'?"),
        ("seed = 1", "no setting 'seed'; known: cascade"),
        ("[presets.a]\nramm = 1", "preset a: no setting 'ramm'; did you mean 'ram'?"),
        ("presets = 1", "presets are tables"),
        ("cascade = ", "cannot be read"),
        ("cascade = 1979-05-27", "cascade is not a text, a number, or a list"),
        ("\\udcff", "cannot be read"),
    ],
)
def test_a_wrong_file_is_told_in_a_line_that_names_it(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    """Every command but the ones that mend it ends before it does anything."""
    file.write_bytes(text.encode("utf-8", "surrogateescape").replace(b"\\udcff", b"\xff"))
    assert main(["plan", "a fox"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(file) in line
    assert told in line


def test_an_unknown_preset_is_told_with_the_known_ones(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where there is none."""
    assert main(["plan", "a fox", "--preset", "x"]) == 2
    assert "no preset 'x'" in (told := capsys.readouterr().err)
    assert "it has none" in told
    file.write_text("[presets.a]\n[presets.b]\n")
    assert main(["plan", "a fox", "--preset", "x"]) == 2
    assert "it has a, b" in capsys.readouterr().err


def test_a_preset_is_taken_from_anywhere_but_behind_two_dashes() -> None:
    """What follows `--` is a prompt."""
    assert without_preset(["plan", "--preset", "a", "x"]) == (["plan", "x"], "a")
    assert without_preset(["plan", "--", "--preset", "a"]) == (
        ["plan", "--", "--preset", "a"],
        None,
    )
    assert without_preset(["--preset=a", "--preset", "b"]) == ([], "b")


def test_every_setting_is_an_option_of_some_command_and_resuming_has_none() -> None:
    """A run that is resumed keeps its own settings."""
    known = {name for command in WITH_SETTINGS for name in settable(app.commands[command])}
    assert known == {*SETTINGS}
    assert not {"resume", "continue", "show"} & defaults(app, None).keys()


def test_setting_a_value_keeps_every_other_line(file: Path) -> None:
    """Comments, presets and their keys of the same name."""
    text = '# mine\nram = "8GB"  # small\n\n[presets.a]\n# why\nram = "4GB"\n'
    file.write_text(text)
    write_setting(file, "ram", "10GB")
    write_setting(file, "cascade", 'a "quoted" folder')
    written = file.read_text()
    assert '# mine\nram = "10GB"\ncascade = "a \\"quoted\\" folder"\n' in written
    assert '[presets.a]\n# why\nram = "4GB"\n' in written
    write_setting(file, "ram", None)
    write_setting(file, "cascade", None)
    assert file.read_text().startswith("# mine\n")
    assert "10GB" not in file.read_text()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """In one line that names the file."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(RequestError, match=r"taken.config\.toml cannot be (written|read)"):
        write_setting(tmp_path / "taken" / "config.toml", "ram", "8GB")


def test_the_file_lies_where_the_platform_keeps_such_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a variable names another one."""
    monkeypatch.delenv("LOWMEM_IF_CONFIG")
    assert settings_file().name == "config.toml"
    assert settings_file().parent.name == "lowmem-if"
