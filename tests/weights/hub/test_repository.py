"""`weights/hub/repository.py` against a stand-in of the Hub, through the real huggingface_hub client.

The client runs in a process of its own: huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn, Outage, etag, safetensors, write_repositories
from huggingface_hub import constants

from lowmem_if.cascade import catalog
from lowmem_if.cascade.parts import Cascade, Part

XL, L, X4 = catalog.PUBLISHED["if-xl"].repositories
EVERYTHING = list(catalog.COMPONENTS)
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
MIB = 2**20
PIECE = 2**16
BROKEN_AT, KEPT = 12 * PIECE + 1000, 12 * PIECE
"""Where the server stops, and what of it the client has written: whole pieces."""

CLIENT = """
import json, sys, time
order = json.loads(sys.argv[1])
if order["hasty"]:
    time.sleep = lambda seconds: None  # the waits between attempts are not what is tested
from huggingface_hub import constants
from lowmem_if.errors import LowmemError
from lowmem_if.cascade import catalog, locate as locations
from lowmem_if.weights.hub import repository as hub
# Pieces of 64 kiB instead of 10 MiB, so that one megabyte shows what ten gigabytes do.
constants.DOWNLOAD_CHUNK_SIZE = 2**16
progress, answer = [], {}
try:
    cascade = catalog.PUBLISHED[order["cascade"]]
    repos = hub.list_files(
        cascade, order["components"], eight_bit=order["eight_bit"], revision=order["revision"]
    )
    answer["repos"] = [[r.repository, r.revision, [p for p, _ in r.files], r.asked] for r in repos]
    answer["missing"] = hub.missing_bytes(repos)
    answer["total"] = sum(r.total_bytes for r in repos)
    if order["fetch"]:
        hub.fetch(repos, report=lambda p: progress.append([p.done_bytes, p.total_bytes, p.file]))
        answer["missing_after"] = hub.missing_bytes(repos)
    location = locations.locate(order["cascade"], revision=order["revision"])
    answer["found"] = [c for c in catalog.COMPONENTS if location.folder(c)]
except LowmemError as error:
    answer.update(error=str(error), kind=type(error).__name__)
answer["progress"] = progress
print(json.dumps(answer))
"""


class Client:
    """Runs `list_files` and `fetch` in a fresh process with a cache of its own."""

    def __init__(self, hub: HubStandIn, home: Path) -> None:
        self.hub, self.home = hub, home
        self.cache = home / "hub"
        self.before: Callable[[], None] | None = None
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "HOME": str(home),
            "HF_HOME": str(home),
            "HF_ENDPOINT": hub.url,
            "NO_PROXY": "*",
            # The stand-in speaks no Xet, which is a protocol and a server of its own.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # No TLS on the loopback: without this each process reads all the world's certificates.
            "SSL_CERT_DIR": str(home),
        }

    def start(self, components: list[str], **order: Any) -> subprocess.Popen[str]:
        standard = {
            "cascade": "if-xl",
            "components": components,
            "eight_bit": False,
            "revision": "main",
            "fetch": True,
            "hasty": False,
        }
        command = [sys.executable, "-c", CLIENT, json.dumps(standard | order)]
        return subprocess.Popen(
            command,
            env=self.environment,
            text=True,
            preexec_fn=self.before,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, components: list[str], **order: Any) -> dict[str, Any]:
        return self.answer(self.start(components, **order))

    def answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        return json.loads(out)

    def fetch(self, components: list[str], **order: Any) -> dict[str, Any]:
        answer = self.run(components, **order)
        assert "error" not in answer, answer["error"]
        return answer

    def refusal(self, components: list[str], **order: Any) -> str:
        """The text of the HubError that this must end in: one line."""
        answer = self.run(components, **order)
        assert answer["kind"] == "HubError"
        assert "\n" not in answer["error"]
        return answer["error"]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line itself, which may find what is broken in the cache."""
        command = [sys.executable, "-m", "lowmem_if", *arguments]
        return subprocess.run(command, env=self.environment, text=True, capture_output=True)

    def storage(self, repository: str) -> Path:
        return self.cache / f"models--{repository.replace('/', '--')}"

    def snapshot(self, repository: str) -> Path:
        return self.storage(repository) / "snapshots" / self.hub.commit(repository)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubStandIn]:
    write_repositories(tmp_path / "tree")
    with HubStandIn(tmp_path / "tree") as stand_in:
        yield stand_in


@pytest.fixture
def client(hub: HubStandIn, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "home")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home with every file in its cache, and what the fetch that filled it said."""
    folder = tmp_path_factory.mktemp("everything")
    write_repositories(folder / "tree")
    with HubStandIn(folder / "tree") as stand_in:
        return folder / "home", Client(stand_in, folder / "home").fetch(EVERYTHING)


@pytest.fixture
def cached(everything: tuple[Path, dict[str, Any]], client: Client) -> dict[str, Any]:
    """`client` has every file in its cache already; the answer of the fetch that got them."""
    shutil.copytree(everything[0], client.home, symlinks=True)
    return everything[1]


def big_unet(hub: HubStandIn) -> bytes:
    """Make stage 1's UNet larger than the pieces in which the client writes."""
    content = safetensors(os.urandom(MIB))
    (hub.tree / XL / UNET).write_bytes(content)
    return content


def files(root: Path) -> dict[str, bytes]:
    found = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def expected(repository: str, *paths: str) -> set[str]:
    return {f"{repository}/{path}" for path in paths}


MODEL_INDEX = "model_index.json"
T5_AROUND = (
    "text_encoder/config.json",
    "tokenizer/spiece.model",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
)
T5_FP16 = (
    *T5_AROUND,
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
)
STAGE_1 = ("unet/config.json", UNET, "scheduler/scheduler_config.json")
POSTPROCESS = (
    "safety_checker/config.json",
    "safety_checker/model.fp16.safetensors",
    "watermarker/config.json",
    "watermarker/diffusion_pytorch_model.safetensors",
    "feature_extractor/preprocessor_config.json",
)
STAGE_2 = (*STAGE_1, "image_noising_scheduler/scheduler_config.json")
UPSCALER = (
    "unet/config.json",
    UNET,
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
    "low_res_scheduler/scheduler_config.json",
)


# --- what is chosen -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("components", "eight_bit", "wanted"),
    [
        (["text_encoder"], False, expected(XL, MODEL_INDEX, *T5_FP16)),
        (
            ["text_encoder"],
            True,
            expected(XL, MODEL_INDEX, *T5_AROUND, "text_encoder/model.8bit.safetensors"),
        ),
        (
            ["text_encoder", "stage_1", "postprocess"],
            False,
            expected(XL, MODEL_INDEX, *T5_FP16, *STAGE_1, *POSTPROCESS),
        ),
        (
            EVERYTHING,
            False,
            expected(XL, MODEL_INDEX, *T5_FP16, *STAGE_1, *POSTPROCESS)
            | expected(L, MODEL_INDEX, *STAGE_2)
            | expected(X4, MODEL_INDEX, *UPSCALER),
        ),
    ],
    ids=["text encoder", "8-bit text encoder", "size 64", "size 1024"],
)
def test_exact_files(
    hub: HubStandIn, client: Client, components: list[str], eight_bit: bool, wanted: set[str]
) -> None:
    """Each needed file is downloaded once, whole and in its place; no other is even asked for."""
    client.fetch(components, eight_bit=eight_bit)

    assert hub.downloads() == dict.fromkeys(wanted, 1)
    assert asked_for(hub) == wanted
    for repository in catalog.PUBLISHED["if-xl"].repositories:
        for path, content in files(client.snapshot(repository)).items():
            assert content == (hub.tree / repository / path).read_bytes()
            wanted.discard(f"{repository}/{path}")
    assert not wanted


def asked_for(hub: HubStandIn) -> set[str]:
    urls = [r.url.removeprefix("/").partition("/resolve/") for r in hub.requests]
    return {f"{name}/{rest.split('/', 1)[1]}" for name, _, rest in urls if rest}


def test_8bit_not_published(hub: HubStandIn, client: Client) -> None:
    """Where no 8-bit file is published, 8 bit takes the fp16 shards, which are quantised later."""
    (hub.tree / XL / "text_encoder/model.8bit.safetensors").unlink()

    client.fetch(["text_encoder"], eight_bit=True)

    assert set(hub.downloads()) == expected(XL, MODEL_INDEX, *T5_FP16)


def test_8bit_is_for_t5_only(hub: HubStandIn, client: Client) -> None:
    """8 bit is asked of T5 alone: the upscaler's own text encoder stays fp16."""
    folder = hub.tree / X4 / "text_encoder"
    (folder / "model.8bit.safetensors").write_bytes(b"trap")

    client.fetch(["upscaler"], eight_bit=True)

    assert set(hub.downloads()) == expected(X4, MODEL_INDEX, *UPSCALER)


def test_found_afterwards(client: Client) -> None:
    """What was fetched is what `locate` finds, and only that."""
    assert client.fetch(["text_encoder", "stage_1"])["found"] == ["text_encoder", "stage_1"]


def test_plan_before_fetching(hub: HubStandIn, client: Client) -> None:
    """Listing says commit and bytes of every repository and downloads nothing."""
    answer = client.fetch(["stage_1", "stage_2"], fetch=False)

    sizes = [(hub.tree / XL / p).stat().st_size for p in (MODEL_INDEX, *STAGE_1)]
    sizes += [(hub.tree / L / p).stat().st_size for p in (MODEL_INDEX, *STAGE_2)]
    assert answer["total"] == answer["missing"] == sum(sizes)
    assert [(r[0], r[1], r[3]) for r in answer["repos"]] == [
        (XL, hub.commit(XL), "main"),
        (L, hub.commit(L), "main"),
    ]
    assert not hub.downloads()


def test_local_cascade() -> None:
    """A local cascade has nothing to fetch, and asking that needs no network."""
    from lowmem_if.weights.hub import repository as hub

    part = Part("stage_1", None, ())
    cascade = Cascade("here", {"stage_1": part}, {})
    assert hub.list_files(cascade, ["stage_1"], eight_bit=False) == ()
    assert hub.missing_bytes(()) == 0
    hub.fetch(())


def test_imports_nothing_heavy() -> None:
    """Importing the module imports neither torch nor huggingface_hub."""
    program = (
        "import sys, lowmem_if.weights.hub.repository;"
        "print({'torch', 'huggingface_hub', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    out = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert out.strip() == "set()"


def test_only_bin(hub: HubStandIn, client: Client) -> None:
    """A module that is published as .bin only is refused before anything is downloaded."""
    (hub.tree / XL / "watermarker/diffusion_pytorch_model.safetensors").unlink()

    said = client.refusal(["postprocess"])

    assert "watermarker/*.safetensors (there are only .bin files)" in said
    assert "choose another revision" in said
    assert not hub.downloads()


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("text_encoder/model.fp16-00002-of-00002.safetensors", None),
        ("text_encoder/config.json", None),
        ("text_encoder/model.safetensors.index.fp16.json", "text_encoder/the index of its shards"),
        ("tokenizer/tokenizer_config.json", "tokenizer/*config.json"),
    ],
)
def test_incomplete_on_the_hub(
    hub: HubStandIn, client: Client, lost: str, named: str | None
) -> None:
    """A repository that lacks something needed is refused by the name of it, before a download."""
    (hub.tree / XL / lost).unlink()

    said = client.refusal(["text_encoder"])

    assert (named or lost) in said
    assert "choose another revision" in said
    assert not hub.downloads()


# --- how it is downloaded -----------------------------------------------------------------------


def test_progress(hub: HubStandIn, client: Client) -> None:
    """Progress starts at 0, never falls, moves within a file, names it, ends at the total."""
    big_unet(hub)

    answer = client.fetch(["stage_1"])

    done = [step[0] for step in answer["progress"]]
    assert {step[1] for step in answer["progress"]} == {answer["total"]}
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == answer["total"]
    assert len({step[0] for step in answer["progress"] if step[2] == f"{XL}/{UNET}"}) >= 4


@pytest.mark.usefixtures("cached")
def test_second_fetch(hub: HubStandIn, client: Client) -> None:
    """With everything cached, a fetch asks for no file and reports the whole as done."""
    answer = client.fetch(EVERYTHING)

    assert answer["missing"] == 0
    assert answer["progress"] == [[answer["total"], answer["total"], ""]]
    assert not [r for r in hub.requests if "/resolve/" in r.url]


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_connection_lost(hub: HubStandIn, client: Client, fault: str) -> None:
    """A connection lost within a file is taken up behind the bytes that are already here."""
    content = big_unet(hub)
    getattr(hub.faults, fault)[UNET] = BROKEN_AT

    answer = client.fetch(["stage_1"], hasty=True)

    first, second = hub.parts(f"{XL}/{UNET}")
    assert second.range == f"bytes={second.first_byte}-"
    assert second.first_byte >= PIECE
    assert second.sent_bytes == len(content) - second.first_byte
    assert (client.snapshot(XL) / UNET).read_bytes() == content
    assert answer["progress"][-1][0] == answer["total"]
    assert max(step[0] for step in answer["progress"]) == answer["total"]
    assert first.range is None


def test_killed(hub: HubStandIn, client: Client) -> None:
    """After SIGKILL in the middle of a file, the next process sends for the rest of it only."""
    content = big_unet(hub)
    hub.faults.stall[UNET] = BROKEN_AT
    process = client.start(["stage_1"])
    wait_for(lambda: partly(client) >= KEPT)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = partly(client)
    hub.requests.clear()

    answer = client.fetch(["stage_1"])

    (rest,) = hub.parts(f"{XL}/{UNET}")
    assert rest.first_byte == kept == KEPT
    assert rest.sent_bytes == len(content) - kept
    assert (client.snapshot(XL) / UNET).read_bytes() == content
    assert answer["progress"][-1][0] == answer["total"]
    assert not list(client.cache.rglob("*.incomplete"))


def partial_of(client: Client) -> Path:
    """Where a fetch of stage 1's UNet keeps what has come so far."""
    name = etag(client.hub.tree / XL / UNET)
    return client.storage(XL) / "blobs" / f"{name}.lowmem-if.incomplete"


def partly(client: Client) -> int:
    partial = partial_of(client)
    return partial.stat().st_size if partial.exists() else 0


def test_range_ignored(hub: HubStandIn, client: Client) -> None:
    """A server that sends the whole file again gives the right file and counts it once."""
    content = big_unet(hub)
    leave_partial(client, content[:KEPT])
    hub.faults.ignore_range = True

    answer = client.fetch(["stage_1"])

    assert hub.parts(f"{XL}/{UNET}")[0].range == f"bytes={KEPT}-"
    assert (client.snapshot(XL) / UNET).read_bytes() == content
    assert max(step[0] for step in answer["progress"]) == answer["total"]


def leave_partial(client: Client, content: bytes) -> Path:
    partial = partial_of(client)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    return partial


def test_partial_too_long(hub: HubStandIn, client: Client) -> None:
    """A partial file that is longer than the file itself is begun anew."""
    content = big_unet(hub)
    leave_partial(client, content + b"!")

    client.fetch(["stage_1"])

    assert (client.snapshot(XL) / UNET).read_bytes() == content


def test_two_at_once(hub: HubStandIn, client: Client) -> None:
    """Two fetches of the same files at once download each file once."""
    content = big_unet(hub)
    hub.faults.stall[UNET] = BROKEN_AT
    first = client.start(["stage_1"])
    wait_for(lambda: hub.parts(f"{XL}/{UNET}"))
    second = client.start(["stage_1"])
    wait_for(lambda: [r.method for r in hub.requests if UNET in r.url].count("HEAD") == 2)
    time.sleep(0.3)
    hub.go_on.set()

    assert all("error" not in client.answer(process) for process in (first, second))
    assert len(hub.parts(f"{XL}/{UNET}")) == 1
    assert (client.snapshot(XL) / UNET).read_bytes() == content


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("linked", [True, False])
def test_truncated_in_the_cache(hub: HubStandIn, client: Client, linked: bool) -> None:
    """A cached file that is too short, the blob or a copy in its place, is made whole again."""
    file = client.snapshot(XL) / UNET
    whole = file.read_bytes()
    if not linked:
        file.unlink()
    file.write_bytes(whole[:100])

    client.fetch(["stage_1"])

    assert set(hub.downloads()) == ({f"{XL}/{UNET}"} if linked else set())
    assert file.read_bytes() == whole == (hub.tree / XL / UNET).read_bytes()


def flip(file: Path) -> None:
    """Change a byte in the middle: the length stays, and JSON stays JSON."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


BROKEN: dict[str, Callable[[Path], object]] = {
    UNET: lambda file: file.write_bytes(file.read_bytes()[:300]),
    "unet/config.json": lambda file: file.write_text("{"),
    "safety_checker/model.fp16.safetensors": lambda file: file.write_bytes(
        b"\xff" * file.stat().st_size
    ),
    "safety_checker/config.json": lambda file: file.resolve().unlink(),
    "scheduler/scheduler_config.json": lambda file: file.write_bytes(b" " * file.stat().st_size),
    "tokenizer/special_tokens_map.json": flip,
    "tokenizer/spiece.model": flip,
}


@pytest.mark.usefixtures("cached")
def test_broken_in_the_cache(hub: HubStandIn, client: Client) -> None:
    """`fetch` gets what is broken anew, whatever its length, and nothing else."""
    for path, harm in BROKEN.items():
        harm(client.snapshot(XL) / path)
    order = ("fetch", "if-xl", "--size", "64", "--profile", "colab-free", "--quiet")

    done = client.command(*order)

    assert done.returncode == 0, done.stderr
    assert hub.downloads() == dict.fromkeys(expected(XL, *BROKEN), 1)
    for path in BROKEN:
        assert (client.snapshot(XL) / path).read_bytes() == (hub.tree / XL / path).read_bytes()
    hub.requests.clear()
    assert "broken" not in client.command(*order).stderr
    assert not hub.downloads()


def test_broken_twice(hub: HubStandIn, client: Client) -> None:
    """Two files of one content are one blob in the cache: both are mended."""
    names = ["scheduler/scheduler_config.json", "image_noising_scheduler/scheduler_config.json"]
    shutil.copy(*(hub.tree / L / name for name in names))
    client.fetch(["stage_2"])
    (client.snapshot(L) / names[0]).write_text("{")

    done = client.command("fetch", "if-xl", "--size", "256", "--profile", "colab-free", "--quiet")

    assert done.returncode == 0, done.stderr
    for name in names:
        assert (client.snapshot(L) / name).read_bytes() == (hub.tree / L / name).read_bytes()


def test_converted_when_fetched(hub: HubStandIn, client: Client) -> None:
    """Downloaded and copied in one order; the copy goes, without a download, when that is ordered."""
    order = ("fetch", "if-xl", "--size", "64", "--profile", "colab-free", "--quiet", "--convert")

    done = client.command(*order, "bf16")

    assert done.returncode == 0, done.stderr
    said, folder = done.stdout.splitlines()[1].rsplit(maxsplit=1)
    assert said.startswith("stage 1: ")
    assert (Path(folder) / "diffusion_pytorch_model.bf16.safetensors").is_file()
    hub.requests.clear()
    shutil.rmtree(client.cache)
    assert "copies removed" in client.command(*order, "none").stdout
    assert not Path(folder).exists()
    assert not hub.requests


@pytest.mark.usefixtures("cached")
def test_broken_and_linked_from_elsewhere(client: Client, tmp_path: Path) -> None:
    """What a link in the cache means outside of it is somebody's own file, and stays."""
    own, link = tmp_path / "own.json", client.snapshot(XL) / "unet/config.json"
    own.write_text("{")
    link.unlink()
    link.symlink_to(own)

    done = client.command("fetch", "if-xl", "--size", "64", "--profile", "colab-free", "--quiet")

    assert done.returncode == 0, done.stderr
    assert own.read_text() == "{"
    assert json.loads(link.read_text())["in_channels"] == 3


@pytest.mark.usefixtures("cached")
def test_new_commit(hub: HubStandIn, client: Client) -> None:
    """A new commit downloads what changed, and the branch means it once it is complete."""
    old = hub.commit(XL)
    config = hub.tree / XL / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"changed": True}))
    hub.faults.status["/resolve/"] = Outage(403)
    client.refusal(["stage_1"])
    reference = client.storage(XL) / "refs/main"
    assert reference.read_text() == old
    hub.faults.status.clear()
    hub.requests.clear()

    client.fetch(["stage_1"])

    assert set(hub.downloads()) == {f"{XL}/unet/config.json"}
    assert reference.read_text() == hub.commit(XL)


@pytest.mark.skipif(
    not hasattr(constants, "HF_HUB_DISABLE_SYMLINKS"),
    reason="this huggingface_hub cannot be told to do without links",
)
def test_without_links(hub: HubStandIn, client: Client) -> None:
    """Where the file system has no links, a file lies on the disk once, not twice."""
    client.environment["HF_HUB_DISABLE_SYMLINKS"] = "1"
    content = big_unet(hub)

    client.fetch(["stage_1"])

    assert not (client.snapshot(XL) / UNET).is_symlink()
    assert list(files(client.cache).values()).count(content) == 1
    assert client.fetch(["stage_1"])["missing"] == 0


def test_token_stays_with_the_hub(hub: HubStandIn, client: Client) -> None:
    """The token goes to the Hub and never to the host that stores the large files."""
    hub.tokens, hub.gated = {"secret"}, {XL: {"secret"}}
    client.environment["HF_TOKEN"] = "secret"

    client.fetch(["stage_1"])

    foreign = [r for r in hub.requests if r.host.startswith("localhost")]
    assert {r.token for r in foreign} == {None}
    assert {r.token for r in hub.requests if r not in foreign} == {"secret"}


def test_busy_hub(hub: HubStandIn, client: Client) -> None:
    """A Hub that answers 503 twice, to whatever, is asked again and the fetch succeeds."""
    hub.faults.status = {
        "/api/models/": Outage(503, 2),
        f"/resolve/{hub.commit(XL)}/{UNET}": Outage(503, 2),
        f"/cdn/{XL}/{UNET}": Outage(503, 2),
    }

    assert client.fetch(["stage_1"], hasty=True)["found"] == ["stage_1"]
    assert all(outage.times < 0 for outage in hub.faults.status.values())


# --- errors in plain words ----------------------------------------------------------------------


def test_not_logged_in(hub: HubStandIn, client: Client) -> None:
    """Without a login, a gated repository is refused with page, command and variable."""
    hub.gated = {XL: set(), L: set()}

    said = client.refusal(["stage_2"])

    assert L in said
    assert "`hf auth login`" in said
    assert "HF_TOKEN" in said
    assert catalog.IF_LICENCE_PAGE in said
    assert not hub.downloads()


def test_licence_not_accepted(hub: HubStandIn, client: Client) -> None:
    """A licence that was not accepted is named with the one page that opens every IF repository."""
    hub.tokens, hub.gated = {"mine"}, {L: set()}
    client.environment["HF_TOKEN"] = "mine"

    said = client.refusal(["stage_1", "stage_2"])

    assert f"has not accepted the licence of {L}" in said
    assert catalog.IF_LICENCE_PAGE in said
    assert not hub.downloads(), (
        "stage 1 must not be downloaded before stage 2 is known to be refused"
    )


def test_licence_of_another_repository(hub: HubStandIn, client: Client) -> None:
    """A repository that is not IF's has its licence on its own page."""
    hub.tokens, hub.gated = {"mine"}, {X4: set()}
    client.environment["HF_TOKEN"] = "mine"

    assert f"https://huggingface.co/{X4}" in client.refusal(["upscaler"])


def test_token_from_the_login(hub: HubStandIn, client: Client) -> None:
    """The token that `hf auth login` stored is used."""
    hub.tokens, hub.gated = {"stored"}, {XL: {"stored"}}
    client.home.mkdir()
    (client.home / "token").write_text("stored")

    client.fetch(["stage_1"])


def test_unknown_token(client: Client) -> None:
    """A token that the Hub does not know is called that."""
    client.environment["HF_TOKEN"] = "expired"

    said = client.refusal(["stage_1"])

    assert "does not know your token" in said
    assert "`hf auth login`" in said


def test_narrow_token(hub: HubStandIn, client: Client) -> None:
    """A fine-grained token without the right to gated repositories is sent to the settings."""
    hub.tokens, hub.gated, hub.faults.narrow_tokens = {"narrow"}, {XL: {"narrow"}}, {"narrow"}
    client.environment["HF_TOKEN"] = "narrow"

    assert "https://huggingface.co/settings/tokens" in client.refusal(["stage_1"])


def test_no_such_repository(hub: HubStandIn, client: Client) -> None:
    """A repository that is not there is named, with what to look at."""
    said = client.refusal(["stage_1"], cascade="if-m")

    assert "there is no DeepFloyd/IF-I-M-v1.0" in said
    assert "HF_ENDPOINT" in said


def test_no_such_revision(client: Client) -> None:
    """A revision that is not there is named, with the page that lists them."""
    said = client.refusal(["stage_1"], revision="v9")

    assert f"{XL} has no revision 'v9'" in said
    assert f"https://huggingface.co/{XL}/commits/main" in said


@pytest.mark.parametrize("how", ["no network", "HF_HUB_OFFLINE", "Hub down", "web page"])
def test_no_hub_but_cached(
    hub: HubStandIn, client: Client, cached: dict[str, Any], how: str
) -> None:
    """With everything in the cache, a fetch that cannot reach the Hub succeeds all the same."""
    take_away(how, hub, client)

    offline = client.fetch(EVERYTHING, hasty=True)

    assert offline["repos"] == cached["repos"]
    assert offline["total"] == cached["total"]
    assert offline["missing"] == 0
    assert offline["progress"] == [[offline["total"], offline["total"], ""]]


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(
    ("how", "what", "advice"),
    [
        ("no network", "no connection to http://127.0.0.1:", "check the network"),
        ("HF_HUB_OFFLINE", "HF_HUB_OFFLINE is set", "unset it"),
        ("Hub down", "the Hub is in trouble (503)", "try again later"),
        ("web page", "is not the Hub", "HF_ENDPOINT, the proxy, and whether this network wants"),
    ],
)
def test_no_hub_and_not_cached(
    hub: HubStandIn, client: Client, how: str, what: str, advice: str
) -> None:
    """What the cache lacks when the Hub cannot be reached is named, with reason and remedy."""
    (client.snapshot(XL) / "text_encoder/model.fp16-00002-of-00002.safetensors").unlink()
    (client.snapshot(XL) / "tokenizer/spiece.model").unlink()
    take_away(how, hub, client)

    said = client.refusal(["text_encoder", "stage_1"], hasty=True)

    assert what in said
    assert advice in said
    assert "text_encoder/model.fp16-00002-of-00002.safetensors" in said
    assert "tokenizer/spiece.model" in said


def take_away(how: str, hub: HubStandIn, client: Client) -> None:
    if how == "no network":
        hub.stop()
    elif how == "HF_HUB_OFFLINE":
        client.environment["HF_HUB_OFFLINE"] = "1"
    elif how == "Hub down":
        hub.faults.status["/"] = Outage(503)
    else:
        hub.faults.html = True


def test_nothing_cached_and_no_network(hub: HubStandIn, client: Client) -> None:
    """On a machine that never downloaded anything, no network is one line too."""
    hub.stop()

    assert re.search(
        r"no connection to .* the cache of .* lacks .*: check the network",
        client.refusal(EVERYTHING),
    )


def test_network_lost_for_good(hub: HubStandIn, client: Client) -> None:
    """A network that goes away within a file ends in one line, and keeps what came."""
    big_unet(hub)
    hub.faults.cut[UNET] = BROKEN_AT
    hub.faults.farewell = True

    said = client.refusal(["stage_1"], hasty=True)

    assert "no connection to" in said
    assert "what is downloaded is kept" in said
    assert partly(client) == KEPT


def test_asked_too_often(hub: HubStandIn, client: Client) -> None:
    """Too many requests are called that, with the advice to wait or log in."""
    hub.faults.status["/api/"] = Outage(429)

    assert "wait some minutes; a login allows more" in client.refusal(["stage_1"])


def test_server_error_within_the_download(hub: HubStandIn, client: Client) -> None:
    """A Hub that keeps failing is given up with the advice to come back; what came is kept."""
    hub.faults.status[f"/cdn/{XL}/{UNET}"] = Outage(500)

    said = client.refusal(["stage_1"], hasty=True)

    assert "the Hub is in trouble (500): try again later; what is downloaded is kept" in said
    assert (client.snapshot(XL) / "unet/config.json").is_file()


def test_other_refusals(hub: HubStandIn, client: Client) -> None:
    """Any other refusal is one line with the file and the status."""
    hub.faults.status["/resolve/"] = Outage(410)

    said = client.refusal(["stage_1"])

    assert re.search(r"the Hub refused /.*/model_index\.json \(410\): try another revision", said)


def test_hub_lost_at_the_last_step(hub: HubStandIn, client: Client) -> None:
    """A Hub that fails when a finished file is put in its place is called by its own trouble."""
    # The file is asked for when it is looked up, when it is downloaded, and then once more.
    hub.faults.status[f"/resolve/{hub.commit(XL)}/{UNET}"] = Outage(502, after=2)

    assert "the Hub is in trouble (502): try again later" in client.refusal(["stage_1"], hasty=True)


def test_damaged(hub: HubStandIn, client: Client) -> None:
    """A file that came with other bytes is named and dropped, and comes whole the next time."""
    hub.faults.damaged.add(UNET)

    said = client.refusal(["stage_1"])

    assert f"{UNET} of {XL} arrived damaged" in said
    assert "try again" in said
    assert not (client.snapshot(XL) / UNET).exists()
    hub.faults.damaged.clear()
    client.fetch(["stage_1"])
    assert (client.snapshot(XL) / UNET).read_bytes() == (hub.tree / XL / UNET).read_bytes()


def test_ended_early(hub: HubStandIn, client: Client) -> None:
    """A transfer that ends before the file does says so, and the next one brings the rest."""
    content = big_unet(hub)
    hub.faults.short[UNET] = KEPT

    said = client.refusal(["stage_1"])

    assert f"the transfer of {XL} ended early: try again; what is downloaded is kept" in said
    hub.faults.short.clear()
    hub.requests.clear()
    client.fetch(["stage_1"])
    assert [part.first_byte for part in hub.parts(f"{XL}/{UNET}")] == [KEPT]
    assert (client.snapshot(XL) / UNET).read_bytes() == content


def test_disk_too_small(hub: HubStandIn, client: Client) -> None:
    """A disk that is too small is told by both figures before a byte is downloaded."""
    hub.faults.claimed[UNET] = 10**18

    said = client.refusal(["stage_1"])

    assert re.search(
        r"needs 1000000000\.0 GB of disk and 1\.0 GB to spare, [\d.]+ GB are free", said
    )
    assert "HF_HOME" in said
    assert not hub.downloads()


@pytest.mark.usefixtures("cached")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to run out of disk")
def test_disk_full(hub: HubStandIn, client: Client) -> None:
    """A disk that fills up during the download is one line that says what to do."""
    big_unet(hub)
    partial = leave_partial(client, b"")
    partial.unlink()
    partial.symlink_to("/dev/full")

    said = client.refusal(["stage_1"])

    assert re.search(r"the disk of .* is full: free some and try again", said)


def test_read_only_cache(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written is named, with the variable that moves it."""
    client.cache.mkdir(parents=True)
    client.cache.chmod(0o555)
    if os.geteuid() == 0:
        monkeypatch.setattr(client, "before", bow_to_permissions)

    said = client.refusal(["stage_1"])

    assert f"{client.cache} cannot be written: set HF_HOME" in said


def bow_to_permissions() -> None:
    """Take from root, before it executes Python, the right to write where nobody may."""
    drop_from_bounding_set, dac_override = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)
