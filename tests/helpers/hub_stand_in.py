"""A small Hugging Face Hub on this machine's loopback, for tests that run the real client.

It serves a folder tree `ORGANISATION/NAME/files`: model information, `resolve` (HEAD and GET; the
large files by a redirect to another host, as on the Hub) and ranges, with the headers that
huggingface_hub reads. It writes down every request, and can fail on purpose. It speaks no Xet.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from lowmem_if.cascade.catalog import PUBLISHED

LARGE = (".safetensors", ".bin", ".model", ".ckpt", ".msgpack")
"""What is stored by its SHA-256 (git-lfs); everything else by its git hash."""


@dataclass(frozen=True)
class Request:
    """One answered request; `file` is `ORGANISATION/NAME/path` for downloads, else empty."""

    method: str
    url: str
    host: str
    range: str | None
    token: str | None
    status: int
    file: str = ""
    first_byte: int = 0
    sent_bytes: int = 0


@dataclass
class Outage:
    """`times` answers with an HTTP status in place of the right ones, after some right ones."""

    status: int
    times: int = 1000
    after: int = 0

    def strikes(self) -> bool:
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return self.times >= 0


@dataclass
class Faults:
    """What goes wrong, by the file's path in its repository (or a part of the URL for `status`).

    Attributes:
        cut, reset, stall: bytes after which the connection ends, is reset, or says no more until
            `go_on` is set; once each.
        farewell: the Hub is gone before the connection of a `cut` ends, so that no retry is too quick.
        short: bytes after which the body ends as if that were all of it.
        claimed: size that the Hub says the file has.
        damaged: files that arrive with other bytes.
        status: part of a URL -> the HTTP status that answers it, for how many requests.
        ignore_range: send the whole file whatever was asked for.
        html: answer everything with a web page, as a network that wants a login does.
        narrow_tokens: tokens that may not read gated repositories.
    """

    cut: dict[str, int] = field(default_factory=dict)
    reset: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    farewell: bool = False
    short: dict[str, int] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    status: dict[str, Outage] = field(default_factory=dict)
    ignore_range: bool = False
    html: bool = False
    narrow_tokens: set[str] = field(default_factory=set)


class HubStandIn:
    """Serves `tree` while its `with` block lasts.

    Attributes:
        url: for `HF_ENDPOINT`.
        requests: those answered so far, oldest first.
        tokens: the ones that exist; `gated`: repository -> tokens whose owner accepted its licence.
        faults: see there; may be changed at any time; `go_on` ends a stall.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.requests: list[Request] = []
        self.tokens: set[str] = set()
        self.gated: dict[str, set[str]] = {}
        self.faults = Faults()
        self.go_on = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubStandIn:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone: from now on connections are refused."""
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, repository: str) -> str:
        """The commit of `main`: it changes with any file."""
        content = hashlib.sha1(repository.encode())
        for path, file in self.files(repository).items():
            content.update(path.encode() + etag(file).encode())
        return content.hexdigest()

    def files(self, repository: str) -> dict[str, Path]:
        root = self.tree / repository
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path for path in found}

    def downloads(self) -> Counter[str]:
        """How often the body of each file was sent, wholly or in part."""
        return Counter(r.file for r in self.requests if r.method == "GET" and r.file)

    def parts(self, file: str) -> list[Request]:
        """The requests that sent something of one file, oldest first."""
        return [r for r in self.requests if r.method == "GET" and r.file == file]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(_Handler):
            stand_in = hub

        return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for the client's delayed acknowledgement
    stand_in: HubStandIn

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.stand_in, unquote(urlsplit(self.path).path)
        if hub.faults.html:
            return self._answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        for fragment, outage in hub.faults.status.items():
            if fragment in url and outage.strikes():
                return self._answer(outage.status, b"", {})
        if url.startswith("/api/models/"):
            return self._information(url.removeprefix("/api/models/"))
        if url.startswith("/cdn/"):
            return self._file(*_split(url.removeprefix("/cdn/")))
        name, _, rest = url.removeprefix("/").partition("/resolve/")
        return self._resolve(name, *rest.split("/", 1))

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean; `requests` has it all."""

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _information(self, rest: str) -> None:
        hub = self.stand_in
        repository, _, revision = rest.partition("/revision/")
        if self._refused(repository, revision or "main", is_file=False):
            return
        siblings = [
            {"rfilename": path, "size": self._length(path, file), "blobId": etag(file)[:40]}
            for path, file in hub.files(repository).items()
        ]
        body = {"id": repository, "sha": hub.commit(repository), "siblings": siblings}
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        hub = self.stand_in
        if self._refused(repository, revision, is_file=True):
            return
        commit = {"X-Repo-Commit": hub.commit(repository)}
        file = hub.files(repository).get(path)
        if file is None:
            self._answer(404, b"", {**commit, "X-Error-Code": "EntryNotFound"})
        elif file.suffix in LARGE:
            # Another host name of the same machine: to the client it is a foreign one.
            place = f"http://localhost:{hub.port}/cdn/{repository}/{path}"
            size = str(self._length(path, file))
            linked = {"X-Linked-Etag": f'"{etag(file)}"', "X-Linked-Size": size, "Location": place}
            self._answer(302, b"", {**commit, **linked})
        elif self.command == "HEAD":
            self._answer(200, file.read_bytes(), {**commit, "ETag": f'"{etag(file)}"'})
        else:
            self._file(repository, path)

    def _refused(self, repository: str, revision: str, *, is_file: bool) -> bool:
        hub, token = self.stand_in, self._token()
        if token is not None and token not in hub.tokens:
            message = "Invalid credentials in Authorization header"
            return self._refuse(401, "", message)
        if not (hub.tree / repository).is_dir():
            # To a stranger the Hub does not tell a missing repository from a private one.
            return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", hub.commit(repository)):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        # What a gated repository holds is public, only its files are not.
        if not is_file or repository not in hub.gated:
            return False
        restricted = f"Access to model {repository} is restricted"
        if token is None:
            return self._refuse(401, "GatedRepo", f"{restricted}. Please log in.")
        if token in hub.faults.narrow_tokens:
            return self._refuse(403, "", "Please enable access to public gated repositories")
        if token not in hub.gated[repository]:
            return self._refuse(403, "GatedRepo", f"{restricted} and you are not authorized.")
        return False

    def _refuse(self, status: int, code: str, message: str) -> bool:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer(status, json.dumps({"error": message}).encode(), headers)
        return True

    def _length(self, path: str, file: Path) -> int:
        return self.stand_in.faults.claimed.get(path, file.stat().st_size)

    def _file(self, repository: str, path: str) -> None:
        faults = self.stand_in.faults
        body = self.stand_in.files(repository)[path].read_bytes()
        if path in faults.damaged:
            body = bytes(255 - byte for byte in body)
        body = body[: faults.short.get(path)]
        # What may be compressed on the way is sent whole, as the Hub's own network does.
        whole = faults.ignore_range or "gzip" in self.headers.get("Accept-Encoding", "")
        asked = None if whole else self.headers.get("Range")
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(body)), len(body) - 1)
        headers = {"Content-Range": f"bytes {start}-{end}/{len(body)}"} if asked else {}
        status = 206 if asked else 200
        self._answer(status, body[start : end + 1], headers, f"{repository}/{path}", start, path)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        file: str = "",
        start: int = 0,
        path: str = "",
    ) -> None:
        end, stop = self._break_off(path, len(body))
        sent = b"" if self.command == "HEAD" else body[:stop]
        # Written down before it is sent: a client that has its answer may ask the test at once.
        host, ranges = self.headers["Host"], self.headers.get("Range")
        entry = (self.command, self.path, host, ranges, self._token(), status, file, start)
        self.stand_in.requests.append(Request(*entry, len(sent)))
        try:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            if end == "stall":
                self.stand_in.go_on.wait()
                self.wfile.write(body[stop:])
        except OSError:
            end = "cut"
        if end == "cut" and self.stand_in.faults.farewell:
            self.stand_in.stop()
        if end == "reset":
            # A reset throws away what the other side has not read yet: leave it a moment.
            time.sleep(0.3)
            # Closed with a zero linger time, a connection is reset instead of ended in order.
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
        self.close_connection = self.close_connection or end in ("cut", "reset")

    def _break_off(self, path: str, length: int) -> tuple[str, int]:
        faults = self.stand_in.faults
        for name, table in (("cut", faults.cut), ("reset", faults.reset), ("stall", faults.stall)):
            if path in table and self.command == "GET":
                return name, table.pop(path)
        return "", length


def etag(file: Path) -> str:
    """SHA-256 of a large file, git's hash of a small one, as the Hub names them."""
    facts = file.stat()
    return _etag(file, facts.st_size, facts.st_mtime_ns)


@cache
def _etag(file: Path, size: int, written: int) -> str:
    content = file.read_bytes()
    if file.suffix in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % size + content).hexdigest()


def _split(path: str) -> tuple[str, str]:
    organisation, name, rest = path.split("/", 2)
    return f"{organisation}/{name}", rest


# --- repositories as the real ones are laid out, with everything that must not be fetched ---------

_T5 = (
    "config.json",
    "model.8bit.safetensors",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.fp16-00001-of-00002.bin", "pytorch_model.fp16-00002-of-00002.bin",
    "pytorch_model.bin.index.fp16.json",
    "pytorch_model.8bit.bin", "flax_model.msgpack",
)  # fmt: skip
_DIFFUSERS = (
    "config.json",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin",
    "diffusion_flax_model.msgpack",
)  # fmt: skip
_TRANSFORMERS = (
    "config.json", "model.safetensors", "model.fp16.safetensors",
    "pytorch_model.bin", "pytorch_model.fp16.bin",
)  # fmt: skip
_ROOT = (".gitattributes", "README.md", "model_index.json")
_T5_TOKENIZER = (
    "spiece.model", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.bin",
)  # fmt: skip
_STAGE = {
    "": (*_ROOT, "pytorch_model.bin", "config.yml", "LICENSE.md"),
    "text_encoder": _T5,
    "tokenizer": _T5_TOKENIZER,
    "unet": _DIFFUSERS,
    "scheduler": ("scheduler_config.json",),
    "image_noising_scheduler": ("scheduler_config.json",),
    "safety_checker": _TRANSFORMERS,
    "feature_extractor": ("preprocessor_config.json",),
    "watermarker": (
        "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
    ),
}  # fmt: skip
_UPSCALER = {
    "": (*_ROOT, "x4-upscaler-ema.ckpt", "x4-upscaler-ema.safetensors"),
    "text_encoder": _TRANSFORMERS,
    "tokenizer": (
        "merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json",
    ),
    "unet": _DIFFUSERS,
    "vae": _DIFFUSERS,
    "scheduler": ("scheduler_config.json",),
    "low_res_scheduler": ("scheduler_config.json",),
}  # fmt: skip


_SCHEDULER = {"_class_name": "DDPMScheduler"}
_DRAWING = {"sample_size": 64, "cross_attention_dim": 8, "block_out_channels": [8]}
_ENLARGING = {**_DRAWING, "in_channels": 6, "class_embed_type": "timestep"}
_CLIP_TOKENIZER = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
_SAYS: dict[str, Any] = (
    {
        "v1.0/text_encoder/config.json": {"d_model": 8},
        "upscaler/text_encoder/config.json": {"hidden_size": 8},
        "upscaler/tokenizer/tokenizer_config.json": _CLIP_TOKENIZER,
        "upscaler/unet/config.json": {**_DRAWING, "in_channels": 7},
        "/scheduler_config.json": _SCHEDULER,
    }
    | {
        f"IF-I-{size}-v1.0/unet/config.json": {**_DRAWING, "in_channels": 3}
        for size in ("XL", "L", "M")
    }
    | {f"IF-II-{size}-v1.0/unet/config.json": _ENLARGING for size in ("L", "M")}
)
"""What the planner asks of configurations, by how their paths end."""


def write_repositories(tree: Path, cascade: str = "if-xl") -> None:
    """Write made-up repositories of a published cascade, about a hundred small files, into `tree`.

    Their safetensors are valid and tiny, every file's content is its own.
    """
    for repository in PUBLISHED[cascade].repositories:
        layout = _UPSCALER if "upscaler" in repository else _STAGE
        for folder, names in layout.items():
            (tree / repository / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                file = tree / repository / folder / name
                file.write_bytes(_content(f"{repository}/{folder}/{name}"))


def _content(path: str) -> bytes:
    if path.endswith(".json"):
        says: Mapping[str, object] = next(
            (says for end, says in _SAYS.items() if path.endswith(end)), {}
        )
        return json.dumps({"made_up": path, **says}).encode()
    unlike_others = hashlib.sha512(path.encode()).digest() * 8
    if not path.endswith(".safetensors"):
        return unlike_others
    return safetensors(unlike_others)


def safetensors(content: bytes) -> bytes:
    """A valid file with one fp16 tensor of these bytes."""
    tensor = {"dtype": "F16", "shape": [len(content) // 2], "data_offsets": [0, len(content)]}
    header = json.dumps({"weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + content
