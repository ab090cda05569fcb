"""Compressed models to and from a hub, through the huggingface_hub package.

    folder = neuzip_rs.hub.download("hf://org/model-nz")     # or "org/model-nz"
    neuzip_rs.hub.upload("model-nz", "org/model-nz")

The command takes such addresses as well: `neuzip compress hf://org/model` downloads a model and
compresses it. Compressed repositories need no help to be loaded: with `import neuzip_rs.hf`,
transformers' `from_pretrained("org/model-nz")` finds all it needs. Tokens, caches and the address
of the hub are those of huggingface_hub (`hf auth login`, `HF_HOME`, `HF_ENDPOINT`).
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from neuzip_rs._errors import NeuzipError
from neuzip_rs.directory.manifest import MANIFEST_NAME

__all__ = ["HubPath", "download", "is_hub_path", "upload"]

_SCHEME: Final = "hf://"


class HubPath(NamedTuple):
    """What an address on a hub is made of."""

    repo_id: str
    revision: str | None
    file: str | None

    @property
    def name(self) -> str:
        """The last part of it, to name results after."""
        return (self.file or self.repo_id).rpartition("/")[2]

    @classmethod
    def parse(cls, address: str) -> "HubPath":
        """Reads `hf://org/model`, `hf://org/model@revision` or `hf://org/model/a/file`.

        `hf://` may be left out, and `models/` may stand before the organisation.

        Raises:
            ValueError: If it is no address of a model.
        """
        parts = address.removeprefix(_SCHEME).removeprefix("models/").split("/")
        name, _, revision = (parts[1] if len(parts) > 1 else "").partition("@")
        if parts[0] in ("datasets", "spaces", "buckets") or not (parts[0] and name):
            message = f"{address!r} is no address of a model like hf://org/model"
            raise ValueError(message)
        file = "/".join(parts[2:])
        # A slash in a revision, as in refs/pr/1, is written as %2F.
        return cls(f"{parts[0]}/{name}", revision.replace("%2F", "/") or None, file or None)


def is_hub_path(path: str) -> bool:
    """Whether a path is an address on a hub."""
    return path.startswith(_SCHEME)


def download(
    address: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Downloads a model, or one file of it, into the cache of huggingface_hub.

    Args:
        address: `hf://org/model`, with a revision after `@` or a file after `/` if wanted.
        revision: A branch, tag or commit, if the address names none.
        token: As in huggingface_hub.
        endpoint: The address of the hub, if it is not the usual one.
        cache_dir: Another cache.

    Returns:
        The directory, or the file.

    Raises:
        ValueError: If it is no address of a model.
        NeuzipError: If huggingface_hub is not installed.
        OSError: If the hub cannot be reached, or has no such model.
    """
    place = HubPath.parse(address)
    options: dict[str, Any] = {
        "revision": revision or place.revision,
        "token": token,
        "endpoint": endpoint,
        "cache_dir": cache_dir,
    }
    hub = _package()
    if place.file is not None:
        return Path(hub.hf_hub_download(place.repo_id, place.file, **options))
    return Path(hub.snapshot_download(place.repo_id, **options))


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads a model directory, compressed or not, and creates the repository if need be.

    Args:
        folder: The directory.
        repo_id: `org/model`, with or without `hf://`.
        revision: The branch, by default "main".
        private: Whether a new repository is private.
        create_pr: Open a pull request instead.
        commit_message: What to say about it.
        token: As in huggingface_hub.
        endpoint: The address of the hub, if it is not the usual one.

    Returns:
        The address of the commit.

    Raises:
        NotADirectoryError: If there is no such directory.
        NeuzipError: If huggingface_hub is not installed.
        OSError: If the hub cannot be reached, or refuses.
    """
    source = Path(folder)
    if not source.is_dir():
        message = f"{source} is no directory"
        raise NotADirectoryError(message)
    if repo_id.startswith(_SCHEME):
        repo_id = HubPath.parse(repo_id).repo_id
    api = _package().HfApi(endpoint=endpoint, token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    compressed = (source / MANIFEST_NAME).is_file()
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=source,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or f"Upload {'compressed ' if compressed else ''}model",
    )
    return str(commit.commit_url)


def _package() -> Any:  # noqa: ANN401 - a package that brings no types
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        message = "hf:// needs the package huggingface_hub: pip install huggingface_hub"
        raise NeuzipError(message) from error
