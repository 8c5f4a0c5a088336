"""From files to batches: sources of samples, augmentation, training batches."""

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.pipeline import Batch, TrainingBatches, read_ahead
from fasseg_jax.data.samples import Sample, Source
from fasseg_jax.data.sources.registry import data_classes, describe_data, find_source, open_source

__all__ = [
    "Batch",
    "DataError",
    "Sample",
    "Source",
    "TrainingBatches",
    "data_classes",
    "describe_data",
    "find_source",
    "open_source",
    "read_ahead",
]
