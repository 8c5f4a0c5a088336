"""Weights by name: a repository of the Hugging Face Hub, or the address of a file.

    hf://OWNER/NAME              the model of a repository, its newest version
    hf://OWNER/NAME@REVISION     a branch, a tag or a commit of it
    hf://OWNER/NAME/FILE         a file of it
    https://HOST/FILE#sha256=... a file anywhere

The library huggingface_hub (the extra `hub`) keeps a cache, asks for tokens, shows progress and works offline:
HF_HOME, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT set how.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

from fasseg_jax.runtime.files import Path
from fasseg_jax.weights.download import RemoteError, download

__all__ = ["RemoteError", "fetch", "is_remote", "upload"]

HUB = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@]+?))?(?P<file>/[^@]+)?")
WEIGHTS = (["*.safetensors"], ["*.bin", "*.pth", "*.pkl", "*.pt"])  # in order of preference


def is_remote(reference: str | os.PathLike) -> bool:
    """Whether the reference names something to fetch, rather than a path."""
    return os.fspath(reference).startswith(("hf://", "https://", "http://"))


def fetch(reference: str | os.PathLike) -> str:
    """Fetch weights, unless the cache holds them.

    Args:
      reference: a name or address as above; a path is returned as it is.

    Returns:
      The path of the file, or of the folder with the files of the repository's top level.

    Raises:
      RemoteError: there is no such thing, it cannot be reached, or huggingface_hub is not installed.
      WriteError: the cache cannot be written.
    """
    reference = os.fspath(reference)
    if not is_remote(reference):
        return reference
    if not reference.startswith("hf://"):
        return str(download(reference))
    match = HUB.fullmatch(reference)
    if match is None:
        raise RemoteError(f"{reference}: give hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FILE")
    hub = _hub_library()
    options: dict[str, Any] = {"revision": match["revision"], "library_name": "fasseg_jax"}
    if match["file"]:
        return _refusing(reference, functools.partial(hub.hf_hub_download, match["name"], match["file"][1:], **options))
    for patterns in WEIGHTS:  # the files of subfolders are other models, or states of a training
        wanted = {"allow_patterns": ["*.json", *patterns], "ignore_patterns": ["*/*"]}
        folder = _refusing(reference, functools.partial(hub.snapshot_download, match["name"], **wanted, **options))
        if any(path for pattern in patterns for path in Path(folder).glob(pattern)):
            return folder
    raise RemoteError(f"{reference}: the repository holds no weights at its top level; name a file: {reference}/FILE")


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Upload a folder to the Hub.

    Args:
      folder: its files replace those of the same names.
      name: OWNER/NAME of the repository; made if absent.
      private: whether a repository that is made is private.

    Returns:
      The address of the repository.

    Raises:
      RemoteError: the Hub refuses it or cannot be reached, or huggingface_hub is not installed.
    """
    hub = _hub_library()

    def call() -> str:
        api = hub.HfApi(library_name="fasseg_jax")
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model of fasseg_jax")
        return str(address)

    return _refusing(f"hf://{name}", call)


def _hub_library() -> Any:
    """The library huggingface_hub; a `RemoteError` that says how to install it if it is absent."""
    try:
        import huggingface_hub
    except ImportError:
        raise RemoteError('names that begin with hf:// need huggingface_hub: pip install "fasseg_jax[hub]"') from None
    return huggingface_hub


def _refusing(reference: str, call: Callable[[], str]) -> str:
    """The result of a call of huggingface_hub, whose errors become `RemoteError`."""
    try:
        return call()
    except Exception as error:  # of the library, of the HTTP library below it, of the file system
        _refuse(reference, error)


def _refuse(reference: str, error: Exception) -> NoReturn:
    """Raise a `RemoteError`, one line that says what an error of huggingface_hub means."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        meaning = f"its authors must grant access: ask for it at {constants.ENDPOINT}, then {login}"
    elif isinstance(error, errors.RevisionNotFoundError):
        meaning = "there is no such revision"
    elif isinstance(error, errors.RepositoryNotFoundError):
        meaning = f"there is no such repository at {constants.ENDPOINT}, or it is private: {login}"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        meaning = "the repository has no such file"
    elif status in (401, 403):
        meaning = f"access is refused (HTTP {status}): {login}"
    elif isinstance(error, errors.HFValidationError):
        meaning = "is no name of a repository"
    elif constants.HF_HUB_OFFLINE:
        meaning = "is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        meaning = f"is not in the cache, and {constants.ENDPOINT} cannot be reached"
    else:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        meaning = f"failed ({reason}); run the same command again"
    raise RemoteError(f"{reference}: {meaning}") from error
