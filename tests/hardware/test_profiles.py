"""Machine profiles: the shipped ones load, and nothing in a file is ignored."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowmem_if.cascade.catalog import PUBLISHED, SIZES
from lowmem_if.cascade.strategies import Pin
from lowmem_if.cli.main import main
from lowmem_if.errors import DoesNotFit, ProfileError, RequestError
from lowmem_if.hardware import profiles
from lowmem_if.hardware.cards import NVIDIA, Card
from lowmem_if.hardware.machine import Machine, with_budget
from lowmem_if.hardware.profiles import FOLDER, choose_machine, load_profile, profile_names
from lowmem_if.hardware.speeds import assumed
from lowmem_if.hardware.torch_build import TorchFacts, why_unused
from lowmem_if.planning.plan import make_plan
from lowmem_if.request.build import make_request
from lowmem_if.units import GIB, parse_bytes

SHIPPED = (
    "apple-m-16gb", "apple-m-8gb", "arc-a770-16gb", "colab-free", "gtx-1660-6gb", "kaggle-p100",
    "kaggle-t4", "l4-24gb", "laptop-cpu-16gb", "laptop-cpu-8gb", "rtx-2060-6gb", "rtx-3050-4gb",
    "rtx-3060-12gb", "rtx-3070-8gb", "rtx-3080-10gb", "rtx-4060-8gb", "rtx-4060-ti-16gb",
    "rtx-4070-12gb", "rtx-5060-ti-16gb", "rx-7600-8gb", "rx-7800-xt-16gb",
)  # fmt: skip

GOOD = """
description = "A card"
sources = ["here"]
device = "cuda"
device_name = "Card"
compute_capability = [8, 6]
vram_total = "12GiB"
vram_available = "11GB"
ram_total = 16000000000
ram_available = "12GB"
disk_free = "100GB"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(GOOD, encoding="utf-8")
    return tmp_path / "mine.toml"


def refused(file: Path, text: str | bytes) -> str:
    """The one line in which a profile of that text is refused; it names the file."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProfileError) as caught:
        load_profile(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the shipped ones ---------------------------------------------------------------------------


def test_the_promised_profiles_are_shipped() -> None:
    """Every machine that the documentation speaks of has its profile."""
    assert set(SHIPPED) <= set(profile_names())
    assert list(profile_names()) == sorted(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_and_makes_sense(name: str) -> None:
    """Each has a source, a known device, a number type with a reason, and uses no more than there is."""
    loaded = load_profile(name)
    machine = loaded.machine
    assert machine.name == name
    assert loaded.description
    assert loaded.sources
    assert machine.kind in ("cpu", "cuda", "mps", "xpu")
    assert 0 < machine.ram_bytes <= machine.ram_total_bytes
    assert machine.vram_bytes <= machine.vram_total_bytes
    assert (machine.vram_bytes > 0) == (machine.kind != "cpu")
    assert machine.disk_free_bytes > 0
    assert machine.compute_dtype_reason
    assert not (machine.kind == "cpu" and machine.compute_dtype == "float16")


def test_a_profile_says_what_its_file_says() -> None:
    """Figures, name and device are the file's; the device gets its number."""
    text = (profiles.FOLDER / "colab-free.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    machine = load_profile("colab-free").machine
    assert (machine.device, machine.device_name) == ("cuda:0", "Tesla T4")
    assert machine.vram_total_bytes == parse_bytes(content["vram_total"])
    assert machine.vram_bytes == parse_bytes(content["vram_available"])
    assert machine.ram_total_bytes == content["ram_total"] == 13_297_192 * 1024
    assert machine.ram_bytes == parse_bytes(content["ram_available"])
    assert machine.disk_free_bytes == parse_bytes(content["disk_free"])
    assert machine.compute_dtype == "float16"
    assert "Ampere" in machine.compute_dtype_reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kaggle-p100", "cannot be used with the torch of PyPI or of Kaggle's image"),
        ("kaggle-p100", "--index-url https://download.pytorch.org/whl/cu126`"),
        ("gtx-1660-6gb", "black pictures in float16"),
    ],
)
def test_a_profiles_notes_are_in_the_plans_text(
    capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    """What its author warns of is printed with the plan and is in its JSON."""
    assert main(["plan", "x", "--profile", name]) == 0
    assert words in capsys.readouterr().out
    assert main(["plan", "x", "--profile", name, "--json"]) == 0
    assert words in json.loads(capsys.readouterr().out)["machine"]["notes"][0]


def test_the_command_of_the_p100_profile_is_the_one_that_a_real_p100_gets() -> None:
    """Profile and verdict name the same build."""
    (note,) = load_profile("kaggle-p100").machine.notes
    card = Card(NVIDIA, "Tesla P100-PCIE-16GB", (6, 0), "580.65.06")
    facts = TorchFacts("2.13.0", cuda="13.0", kind="cuda", arches=("sm_75",))
    facts = replace(facts, packages=("torchvision", "torchaudio"))
    assert re.findall("`(.*?)`", note) == re.findall("`(.*?)`", why_unused(card, facts))


def test_kaggle_has_two_cards_of_which_one_is_planned_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The number is in the text; memory is that of one card."""
    machine = load_profile("kaggle-t4").machine
    assert (machine.devices, machine.vram_total_bytes) == (2, int(14.7 * GIB))
    assert main(["plan", "x", "--profile", "kaggle-t4"]) == 0
    assert "Tesla T4 (one of 2)" in capsys.readouterr().out


def test_a_file_of_ones_own_may_have_notes_and_several_devices(file: Path) -> None:
    """Both are left out where there is nothing to say."""
    machine = load_profile(str(file)).machine
    assert (machine.notes, machine.devices) == ((), 1)
    file.write_text(GOOD + 'notes = ["one", "two"]\ndevices = 4\n')
    machine = load_profile(str(file)).machine
    assert (machine.notes, machine.devices) == (("one", "two"), 4)
    noted = with_budget(machine, vram_bytes=99 * 10**9).notes
    assert noted[:2] == ("one", "two")


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    """The error lists every shipped profile and says that a file will do."""
    with pytest.raises(ProfileError) as caught:
        load_profile("colab-pro")
    assert "'colab-pro'" in str(caught.value)
    assert all(name in str(caught.value) for name in (*SHIPPED, ".toml"))


@pytest.mark.parametrize("name", ["", "../profiles/colab-free", "colab-free.TOML", "/etc/passwd"])
def test_a_name_is_not_a_path(name: str) -> None:
    """Only what ends with `.toml` is read as a file."""
    with pytest.raises(ProfileError, match="no profile"):
        load_profile(name)


# --- a file of one's own ------------------------------------------------------------------------


def test_a_file_of_ones_own_is_a_profile(file: Path) -> None:
    """Sizes may be written as text or as a number of bytes."""
    loaded = load_profile(str(file))
    assert loaded.machine == Machine(
        name="mine",
        device="cuda:0",
        device_name="Card",
        vram_bytes=11 * 10**9,
        vram_total_bytes=12 * 2**30,
        ram_bytes=12 * 10**9,
        ram_total_bytes=16 * 10**9,
        disk_free_bytes=100 * 10**9,
        compute_dtype="float16",
        compute_dtype_reason=loaded.machine.compute_dtype_reason,
        capability=(8, 6),
    )
    assert loaded.pins == {}
    assert (loaded.description, loaded.sources) == ("A card", ("here",))


def test_without_available_vram_the_whole_card_is_taken(file: Path) -> None:
    """`vram_available` may be left out."""
    file.write_text(GOOD.replace('vram_available = "11GB"', ""))
    assert load_profile(str(file)).machine.vram_bytes == 12 * 2**30


def test_a_cpus_features_decide_its_number_type(file: Path) -> None:
    """A CPU profile computes in bfloat16 only if its features say so."""
    cpu = "\n".join(line for line in GOOD.splitlines() if "vram" not in line)
    cpu = cpu.replace('"cuda"', '"cpu"').replace("compute_capability = [8, 6]", "")
    file.write_text(cpu + '\ncpu_features = ["avx2"]')
    assert load_profile(str(file)).machine.compute_dtype == "float32"
    file.write_text(cpu + '\ncpu_features = ["avx2", "avx512_bf16"]')
    machine = load_profile(str(file)).machine
    assert (machine.device, machine.vram_bytes, machine.compute_dtype) == ("cpu", 0, "bfloat16")


def test_a_profile_may_pin_components(file: Path) -> None:
    """`[pins]` are written as on the command line."""
    own = 'text_encoder = "resident:nf4"\nstage_1 = "sequential_offload"\n'
    file.write_text(f"{GOOD}[pins]\n{own}")
    assert load_profile(str(file)).pins == {
        "text_encoder": Pin("resident", "nf4"),
        "stage_1": Pin("sequential_offload"),
    }


def test_a_path_with_unicode_works(tmp_path: Path) -> None:
    """Folder and text of a profile may be in any script."""
    file = tmp_path / "ملف 🎨" / "私.toml"
    file.parent.mkdir()
    file.write_text(GOOD.replace("A card", "بطاقة"), encoding="utf-8")
    loaded = load_profile(str(file))
    assert (loaded.machine.name, loaded.description) == ("私", "بطاقة")


def test_a_file_in_the_home_may_be_written_with_a_tilde(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` is the home folder, also when no shell put it in."""
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_profile("~/mine.toml") == load_profile(str(file))


# --- strictness ---------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_by_file_and_name(file: Path) -> None:
    """A key with a slip in it is an error, never ignored."""
    assert "unknown key 'vram_availible'" in refused(file, GOOD + 'vram_availible = "1GB"\n')


def test_an_unknown_table_is_refused_by_name(file: Path) -> None:
    """Whole tables are keys too."""
    assert "unknown key 'tuning'" in refused(file, GOOD + "[tuning]\nx = 1\n")


@pytest.mark.parametrize(
    "key",
    ["description", "sources", "device", "device_name", "ram_total", "ram_available", "disk_free"],
)
def test_a_missing_key_is_refused_by_name(file: Path, key: str) -> None:
    """What every machine has must be given."""
    text = "\n".join(line for line in GOOD.splitlines() if not line.startswith(key + " "))
    assert f"missing key '{key}'" in refused(file, text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("description", "5"),
        ("sources", '"here"'),
        ("sources", "[]"),
        ("sources", "[5]"),
        ("device", '"gpu"'),
        ("device", '"cuda:0"'),
        ("device", "0"),
        ("device_name", "[]"),
        ("compute_capability", '"8.6"'),
        ("compute_capability", "8.6"),
        ("compute_capability", "[8]"),
        ("compute_capability", "[8, 6, 1]"),
        ("compute_capability", '["8", "6"]'),
        ("vram_total", "0"),
        ("vram_total", '"lots"'),
        ("vram_available", '""'),
        ("ram_total", "-1"),
        ("ram_total", "1.5e9"),
        ("ram_total", "true"),
        ("ram_total", "[1]"),
        ("ram_available", '"12 gigs"'),
        ("disk_free", '"0GB"'),
        ("devices", "0"),
        ("devices", '"2"'),
        ("notes", '"one"'),
        ("disk_free", "2020-01-01"),
    ],
)
def test_a_wrong_value_is_refused_by_its_keys_name(file: Path, key: str, value: str) -> None:
    """Values of another type, no sizes and unknown devices are told by file and key."""
    lines = [line for line in GOOD.splitlines() if not line.startswith(key + " ")]
    assert f"'{key}" in refused(file, "\n".join([*lines, f"{key} = {value}\n"]))


@pytest.mark.parametrize(
    ("pins", "key"),
    [
        ('stage_9 = "resident"', "stage_9"),
        ('stage_1 = "warp"', "stage_1"),
        ('stage_1 = "resident:nf4"', "stage_1"),
        ('text_encoder = "resident:int3"', "text_encoder"),
        ("stage_2 = 5", "stage_2"),
    ],
)
def test_a_wrong_pin_is_refused_by_its_keys_name(file: Path, pins: str, key: str) -> None:
    """Pins are as strict as on the command line, and the error says which pin it is."""
    assert key in refused(file, f"{GOOD}[pins]\n{pins}\n")


@pytest.mark.parametrize(
    "text", ["not toml", "a = ", "[", GOOD + 'device = "cpu"\n', b"\xff\xfe", b"a = '\xff'", "{}"]
)
def test_a_file_that_is_no_toml_is_refused(file: Path, text: str | bytes) -> None:
    """Text that TOML does not know, keys given twice and bytes that are no UTF-8 are told."""
    assert "not valid TOML" in refused(file, text)


def test_an_empty_file_misses_its_first_key(file: Path) -> None:
    """An empty file is valid TOML with every key missing."""
    assert "missing key" in refused(file, "")


@pytest.mark.parametrize("name", ["gone.toml", "folder.toml", "~no-such-user/x.toml"])
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Missing files, folders and homes of nobody are told in one line."""
    (tmp_path / "folder.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError) as caught:
        load_profile(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


# --- choosing -----------------------------------------------------------------------------------


def test_a_profile_is_taken_under_the_users_budgets(file: Path) -> None:
    """Budgets given beside a profile replace its figures; its pins come along."""
    file.write_text(GOOD + '[pins]\nstage_1 = "resident"\n')
    machine, pins = choose_machine(str(file), ram="6GB", vram="4GiB")
    assert (machine.ram_bytes, machine.vram_bytes) == (6 * 10**9, 4 * 2**30)
    assert machine.name == "mine"
    assert pins == {"stage_1": Pin("resident")}


def test_without_a_profile_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device and budgets go to probe(), and nothing is pinned."""
    asked: dict[str, object] = {}
    machine = load_profile("colab-free").machine

    def probe(device: str, **budgets: object) -> Machine:
        asked.update(device=device, **budgets)
        return machine

    monkeypatch.setattr(profiles, "probe", probe)
    assert choose_machine(device="cuda:1", ram="1GB") == (machine, {})
    assert asked == {"device": "cuda:1", "ram_bytes": 10**9, "vram_bytes": None}


@pytest.mark.parametrize("budget", [{"ram": "lots"}, {"vram": "0"}, {"ram": "-1GB"}])
def test_a_budget_that_is_no_size_is_refused(file: Path, budget: dict[str, Any]) -> None:
    """Budgets are sizes as people write them."""
    with pytest.raises(RequestError, match="not a memory size"):
        choose_machine(str(file), **budget)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("compute_capability = [8, 6]\n", "", "a cuda machine needs compute_capability"),
        ("compute_capability = [8, 6]", "compute_capability = [-1, 0]", "negative"),
        ('vram_total = "12GiB"\nvram_available = "11GB"\n', "", "needs vram_total"),
        ('vram_available = "11GB"', 'vram_available = "13GiB"', "vram_available is more than"),
        (
            'ram_available = "12GB"\ndisk',
            'ram_available = "17GB"\ndisk',
            "ram_available is more than",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_told(
    file: Path, old: str, new: str, told: str
) -> None:
    """A machine that cannot exist, or an accelerator of which too little is said."""
    assert old in GOOD
    assert told in refused(file, GOOD.replace(old, new))


def test_an_empty_budget_is_no_budget_of_any_size() -> None:
    """`--ram "$UNSET"` is a mistake to be told, not a run without a limit."""
    with pytest.raises(RequestError, match="not a memory size"):
        choose_machine("laptop-cpu-8gb", ram="")


# --- the mission's case, and speeds ---------------------------------------------------------------


def mission(vram_share: float = 1.0, ram_share: float = 1.0) -> Machine:
    machine = load_profile("colab-free").machine
    return with_budget(
        machine,
        vram_bytes=int(machine.vram_bytes * vram_share),
        ram_bytes=int(machine.ram_bytes * ram_share),
    )


@pytest.mark.parametrize(("vram_share", "ram_share"), [(1, 1), (0.9, 1), (1, 0.9), (0.9, 0.9)])
def test_free_colab_runs_the_largest_cascade(vram_share: float, ram_share: float) -> None:
    """8-bit T5, float16 stages 1 and 2 and the upscaler, one at a time, in 14.7 GiB and 12.7 GB; with
    a tenth less of either, too."""
    machine = mission(vram_share, ram_share)
    plan = make_plan(machine, make_request(("a",), cascade="if-xl", seed=(1,)))
    assert [step.config.storage_dtype for step in plan.steps] == [
        "int8",
        *["float16"] * 3,
        "float32",
    ]
    assert all(step.config.strategy == "resident" for step in plan.steps)
    for step in plan.steps:
        assert step.estimate.vram_bytes <= min(14.7 * GIB * vram_share, machine.vram_bytes)
        assert step.estimate.ram_bytes <= min(12.7e9 * ram_share, machine.ram_bytes)
    assert 60 < plan.seconds < 3600


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_speeds_and_says_where_from(name: str) -> None:
    """A shipped machine has constants of its own, and among its sources one for its speed."""
    profile = load_profile(name)
    assert profile.machine.rates is not None
    assert profile.machine.rates.origin
    words = " ".join(profile.sources).lower()
    assert "estimate" in words or "benchmark" in words


@pytest.mark.parametrize("name", profile_names())
@pytest.mark.parametrize("cascade", sorted(PUBLISHED))
@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_profile_cascade_and_size_is_planned_within_the_machine(
    name: str, cascade: str, size: int
) -> None:
    """Exact or balanced, there is a plan, and each step of it stays within VRAM and RAM."""
    loaded = load_profile(name)
    request = make_request(("a",), cascade=cascade, seed=(1,), size=size)
    try:
        plan = make_plan(loaded.machine, request)
    except DoesNotFit:
        plan = make_plan(loaded.machine, request, prefer="balanced")
    for step in plan.steps:
        assert step.estimate.ram_bytes <= loaded.machine.ram_bytes
        assert step.estimate.vram_bytes <= loaded.machine.vram_bytes


def test_rates_of_a_file_replace_what_is_assumed(tmp_path: Path) -> None:
    """What the file gives counts, what it leaves open is what is assumed of the class of device."""
    text = (FOLDER / "laptop-cpu-8gb.toml").read_text(encoding="utf-8")
    own = tmp_path / "own.toml"
    own.write_text(text.replace("cpu_float32_gflops = 180", "cpu_float32_gflops = 7"))
    rates = load_profile(own).machine.speeds
    assert rates.flops_per_s("cpu", "stage_1", "float32") == 7e9
    assert rates.cached_bytes == assumed("cpu").cached_bytes
    for wrong in ("cpu_float32_gflops = 0", "cpu_float32_gflops = -1", "tflops = 3"):
        own.write_text(text.replace("cpu_float32_gflops = 180", wrong))
        with pytest.raises(ProfileError):
            load_profile(own)
