"""Annotations of other tools -> the folder that this package trains from."""

from fasseg_jax.importing.annotations import ImportOptions
from fasseg_jax.importing.formats.registry import FORMATS, find_format
from fasseg_jax.importing.run import ImportResult, import_annotations

__all__ = ["FORMATS", "ImportOptions", "ImportResult", "find_format", "import_annotations"]
