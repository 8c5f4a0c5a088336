"""Configurations: the base that every recipe in `configs/` starts from, and how one is loaded and compared."""

from fasseg_jax.config.base import base_config, convnext, resnet, swin, use_mask2former, vit
from fasseg_jax.config.loading import changed_fields, flat_fields, load_config, rename_old
from fasseg_jax.config.schema import SIZE_DIVISOR, ConfigError, check_config, check_section

__all__ = [
    "SIZE_DIVISOR",
    "ConfigError",
    "base_config",
    "changed_fields",
    "check_config",
    "check_section",
    "convnext",
    "flat_fields",
    "load_config",
    "rename_old",
    "resnet",
    "swin",
    "use_mask2former",
    "vit",
]
