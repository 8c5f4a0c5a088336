"""Configurations: the base that every recipe in `configs/` starts from, and how one is loaded and compared."""

from fasseg_jax.config.base import base_config, resnet, swin, use_mask2former
from fasseg_jax.config.loading import changed_fields, flat_fields, load_config, rename_old

__all__ = [
    "base_config",
    "changed_fields",
    "flat_fields",
    "load_config",
    "rename_old",
    "resnet",
    "swin",
    "use_mask2former",
]
