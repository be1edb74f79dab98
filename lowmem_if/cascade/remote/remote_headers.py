"""Read headers and configurations of weights on the Hub, without downloading the weights.

Headers are read by HTTP range requests through the client's own session, with its login and settings.
The client's `parse_safetensors_file_metadata` would read the whole file into memory where a server or
proxy ignores the range; here reading ends at the header.
"""

from __future__ import annotations

from pathlib import Path

from lowmem_if.cascade.remote.hub_errors import retry_busy
from lowmem_if.cascade.safetensors_header import TensorHeader, check_length, parse_header

_FIRST_BYTES = 2**18
"""Bytes of the first request: the header of I-XL's UNet has 180 kB, and a second request costs more."""


def read_remote_header(
    repository: str, commit: str, path: str, size: int
) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file of `size` bytes on the Hub, by name.

    Raises:
        CheckpointError: its header is not valid.
        OSError, HTTPError: the Hub cannot be reached, or refuses; `plain_words` makes a `HubError`.
    """
    from huggingface_hub import hf_hub_url

    url, name = hf_hub_url(repository, path, revision=commit), Path(repository, path)
    start = retry_busy(lambda: _read(url, 0, min(size, _FIRST_BYTES)))
    length = int.from_bytes(start[:8], "little")
    check_length(name, length, size)
    text, end = start[8 : 8 + length], 8 + length
    if len(start) < end:
        text += retry_busy(lambda: _read(url, len(start), end))
    return parse_header(name, text, size)[0]


def read_small_file(repository: str, commit: str, path: str) -> Path:
    """A small file of a repository in the Hugging Face cache; downloaded if it is not there.

    Raises:
        OSError, HTTPError: the Hub cannot be reached, or refuses; `plain_words` makes a `HubError`.
    """
    from huggingface_hub import hf_hub_download

    return Path(retry_busy(lambda: hf_hub_download(repository, path, revision=commit)))


def _read(url: str, first: int, end: int) -> bytes:
    """The bytes from `first` to `end` of a file, even if the server sends more."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    # A compressed answer would have no ranges.
    headers = {
        **build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={first}-{end - 1}",
    }  # fmt: skip
    content = b""
    with get_session().stream(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        if response.is_error:
            response.read()  # its text says why
        hf_raise_for_status(response)
        skip = 0 if response.status_code == 206 else first
        for piece in response.iter_bytes():
            content += piece
            if len(content) >= skip + end - first:
                break
    return content[skip : skip + end - first]
