"""A digest of a model's numbers, which tells it from other models."""

import hashlib
from typing import Any

import jax
import numpy as np

__all__ = ["variables_digest"]


def variables_digest(variables: dict[str, Any]) -> str:
    """32 hexadecimal digits that depend on the names, kinds, shapes and numbers of a model's variables."""
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
