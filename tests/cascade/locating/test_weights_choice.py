"""Parts of a user's own: how they are written, and what is refused before anything is planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_if.cascade.locating.weights_choice import (
    PartChoice,
    WeightsChoice,
    parse_parts,
    part_choices,
)
from lowmem_if.errors import RequestError


def refused(call: object) -> str:
    """The one line in which a value is refused."""
    assert callable(call)
    with pytest.raises(RequestError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_part_is_a_repository_with_or_without_revision() -> None:
    """`main` is the revision that needs no name; the order is that of the components."""
    found = part_choices({"stage_2": "me/other@refs/pr/1", "stage_1": "me/my-if"})
    assert found == (
        PartChoice("stage_1", "me/my-if"),
        PartChoice("stage_2", "me/other", "refs/pr/1"),
    )
    assert [str(part) for part in found] == ["stage_1=me/my-if", "stage_2=me/other@refs/pr/1"]
    assert found[0].folder is None


def test_a_part_is_a_folder_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be resumed from another directory, and a folder's name may contain @."""
    (tmp_path / "me" / "mine@2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (part,) = part_choices({"stage_1": "me/mine@2"})
    assert part.folder == tmp_path / "me" / "mine@2"
    assert part_choices({"stage_1": Path("me/mine@2")}) == (part,)
    assert part_choices({"stage_1": part}) == (part,)


def test_a_published_stage_has_short_names() -> None:
    """`stage_2=II-L` is the repository."""
    (part,) = part_choices({"stage_2": "ii-l"})
    assert part == PartChoice("stage_2", "DeepFloyd/IF-II-L-v1.0")


def test_the_option_is_a_component_and_its_source() -> None:
    """Old names of components are read; a source may contain `=`."""
    assert parse_parts(["stage_1=a=b", "finish=c"]) == {"stage_1": "a=b", "postprocess": "c"}


def test_the_choice_is_shown_as_the_user_could_type_it() -> None:
    """The words of a table, and the arguments of `fetch`."""
    choice = WeightsChoice("if-l", "v2", part_choices({"stage_1": "me/my-if@3"}))
    assert str(choice) == "if-l with stage_1=me/my-if@3"
    assert choice.options == "if-l --part stage_1=me/my-if@3 --revision v2"
    assert str(WeightsChoice("if-l")) == WeightsChoice("if-l").options == "if-l"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["stage1=x"], "no component 'stage1': did you mean 'stage_1'?"),
        (["=x"], "no component '': use text_encoder, stage_1"),
        (["folder"], "names no component: write it like stage_1=folder"),
        (["stage_1=a", "stage_1=b"], "stage_1 is given twice"),
    ],
)
def test_a_wrong_option_is_refused(texts: list[str], words: str) -> None:
    """The nearest component is named."""
    assert words in refused(lambda: parse_parts(texts))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "neither a folder nor a repository"),
        (7, "neither a folder nor a repository"),
        ("./missing", "no such folder"),
        ("a/b/c", "no such folder"),
        ("me/my-if@", "no such folder"),
        ("weightz", "no such folder: did you mean 'weights'?"),
        ("./weights/dreambooth1", "did you mean 'weights/dreambooth'?"),
        ("weights@main", "a folder has no revision"),
        (Path("me/my-if"), "no such folder"),
    ],
)
def test_a_wrong_source_is_refused(
    value: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is neither a folder nor like a repository ends at once; a similar folder is named."""
    (tmp_path / "weights" / "dreambooth").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert words in refused(lambda: part_choices({"stage_1": value}))


def test_parts_are_a_mapping() -> None:
    """A list of texts, as on the command line, is refused in Python."""
    assert "mapping" in refused(lambda: part_choices(["stage_1=x"]))  # type: ignore[arg-type]
    assert part_choices(None) == ()
