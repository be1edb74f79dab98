"""What a repository of the Hub contains: its files at one commit, and their sizes."""

from __future__ import annotations

from lowmem_if.cascade.remote.hub_errors import retry_busy


def list_repository(repository: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit of a revision, and the size in bytes of each file by its path.

    Raises:
        OSError, HTTPError: the Hub cannot be reached, or refuses; `plain_words` makes a `HubError`.
    """
    from huggingface_hub import HfApi, constants

    # Without a timeout the client waits for ever: it sets none for this call.
    info = retry_busy(
        lambda: HfApi().model_info(
            repository,
            revision=revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    )
    return str(info.sha), {s.rfilename: int(s.size or 0) for s in info.siblings or ()}
