"""FASeg in JAX: semantic segmentation with dynamic focus-aware positional queries."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasseg_jax.config import load_config
    from fasseg_jax.inference.segmenter import Segmentation, Segmenter
    from fasseg_jax.models.fasseg import FASeg, Predictions, build_model
    from fasseg_jax.weights.state_dict import convert_state_dict

__all__ = ["FASeg", "Predictions", "Segmentation", "Segmenter", "build_model", "convert_state_dict", "load_config"]

# A build reads the version from here. As long as it is a plain string, the build need not import JAX for it.
__version__ = "0.2.0.dev0"

# Public name -> its module, which is imported when the name is first used. `fasseg --help` imports no JAX.
_MODULES = {
    "FASeg": "fasseg_jax.models.fasseg",
    "Predictions": "fasseg_jax.models.fasseg",
    "Segmentation": "fasseg_jax.inference.segmenter",
    "Segmenter": "fasseg_jax.inference.segmenter",
    "build_model": "fasseg_jax.models.fasseg",
    "convert_state_dict": "fasseg_jax.weights.state_dict",
    "load_config": "fasseg_jax.config",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
