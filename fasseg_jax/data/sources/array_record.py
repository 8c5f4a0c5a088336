"""Samples from array_record files."""

import tensorflow_datasets as tfds

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.labels import decode_labels, decode_sample
from fasseg_jax.data.samples import Sample
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.runtime.files import Path

__all__ = ["PreparedSource"]


class PreparedSource:
    """Samples from a folder that `prepare` wrote; see `Source`."""

    def __init__(self, root: Path, split: str, classes: ClassTable, ignore_label: int):
        """`classes` and `ignore_label` must be those of the preparation."""
        if not (root / "dataset_info.json").is_file():
            raise DataError(
                f"{root} holds no prepared data set; name the folder that `python -m fasseg_jax.data.tfds` printed"
            )
        builder = tfds.builder_from_directory(root)
        prepared = builder.info.metadata
        if (tuple(prepared["classes"]), prepared["ignore_label"]) != (classes.names, ignore_label):
            raise DataError(
                f"{root} was prepared with other classes than those of config.data.dataset, or another ignore label "
                f"({prepared['ignore_label']}); set them alike or prepare the data anew"
            )
        as_stored = dict.fromkeys(("image", "labels"), tfds.decode.SkipDecoding())
        self.classes = classes
        self.problems = ()
        self._examples = builder.as_data_source(split, decoders=as_stored)
        self._version = f"{root} {split} {file_version(root / 'dataset_info.json')}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        example = self._examples[index]
        name = example["name"].decode()
        labels = decode_labels(example["labels"], f"the label map of {name}")
        return decode_sample(example["image"], labels, name, "in the same record")

    def version(self, index: int) -> str:
        """The place in the data set, which is written as a whole."""
        return f"{self._version} {index}"
