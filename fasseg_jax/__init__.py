"""FASeg in JAX: semantic segmentation with dynamic focus-aware positional queries."""

from fasseg_jax.config import load_config
from fasseg_jax.inference.segmenter import Segmentation, Segmenter
from fasseg_jax.models.fasseg import FASeg, Predictions, build_model
from fasseg_jax.weights.state_dict import convert_state_dict

__all__ = ["FASeg", "Predictions", "Segmentation", "Segmenter", "build_model", "convert_state_dict", "load_config"]

# A build reads the version from here. As long as it is a plain string, the build need not import JAX for it.
__version__ = "0.2.0.dev0"
