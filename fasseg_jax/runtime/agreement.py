"""Hosts that train together: an error on one ends all of them, and so does a difference between them."""

import contextlib
import importlib.metadata
import time
from collections.abc import Iterator, Mapping

import jax

from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path, WriteError

__all__ = ["fail_together", "package_versions", "require_equal", "require_shared", "version_facts"]

PACKAGES = ("fasseg_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")  # that decide what is computed


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """End the block with an error on every host if it ends so on one. Hosts must not wait for each other in the block.

    Raises:
      ValueError: the block raised an `OSError` or a `ValueError` on another host; the message names the host. A host
        on which the block raised raises its own error.
      WriteError: likewise, if it was a `WriteError`.
    """
    own = None
    try:
        yield
    except (OSError, ValueError) as error:
        own = error
    errors = all_gather_objects(None if own is None else [isinstance(own, WriteError), str(own)])
    if own is not None:
        raise own
    for host, found in enumerate(errors):
        if found is not None:
            raise (WriteError if found[0] else ValueError)(f"host {host}: {found[1]}")


def require_shared(folder: Path, lock: str) -> None:
    """Raise a `ValueError` on every host unless all hosts see the same folder. All hosts must call it.

    Args:
      folder: as this host names it.
      lock: name of the file of `lock_folder` that each host holds; {} stands for the host.
    """
    if jax.process_count() == 1:
        return
    contents = all_gather_objects((folder / lock.format(jax.process_index())).read_text())
    with fail_together():
        for host, content in enumerate(contents):
            if not _appears(folder / lock.format(host), content):
                raise ValueError(
                    f"{folder} is not the folder of host {host}: name one on a file system that all hosts share, or in "
                    "a bucket"
                )


def _appears(file: Path, content: str) -> bool:
    """Whether a file has this content; file systems of several hosts may need a moment."""
    for wait in (0, 1, 2, 5, 10, 20):
        time.sleep(wait)
        with contextlib.suppress(FileNotFoundError):
            if file.read_text() == content:
                return True
    return False


def require_equal(facts: Mapping[str, str]) -> None:
    """Raise a `ValueError` on every host unless all hosts have the same facts. All hosts must call it.

    Args:
      facts: name -> value, for example of a field of the configuration.
    """
    for host, others in enumerate(all_gather_objects(dict(facts))):
        if host == 0:
            first = others
            continue
        different = [
            f"{name} is {others.get(name, 'absent')}, on host 0 {first.get(name, 'absent')}"
            for name in sorted(first.keys() | others.keys())
            if first.get(name) != others.get(name)
        ]
        if different:
            more = f" (and {len(different) - 3} more differences)" if len(different) > 3 else ""
            raise ValueError(
                f"host {host} was started otherwise than host 0: {'; '.join(different[:3])}{more}. "
                "Start the same program with the same configuration and data on all hosts"
            )


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide what is computed."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def version_facts() -> dict[str, str]:
    """`package_versions` for `require_equal`: the names in words."""
    return {f"the version of {name}": version for name, version in package_versions().items()}
