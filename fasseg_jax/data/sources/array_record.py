"""Samples from array_record files, which `python -m fasseg_jax.data.tfds` writes."""

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.labels import check_ignore_label, decode_labels, decode_sample, file_ids
from fasseg_jax.data.samples import Sample
from fasseg_jax.data.sources.folder import data_root, file_version
from fasseg_jax.runtime.files import Path

__all__ = ["PreparedSource", "open_prepared"]


class PreparedSource:
    """Samples from a folder of array_record files; see `Source`."""

    def __init__(
        self,
        root: Path,
        split: str,
        classes: ClassTable,
        ignore_label: int,
        file_ids: np.ndarray,
        label_orientation: str = "auto",
    ):
        """Open a prepared folder.

        Args:
          root: the folder.
          split: "training" or "validation".
          classes: must be those of the preparation, and so must `ignore_label`.
          ignore_label: label of ignored pixels.
          file_ids: see `Source`.
          label_orientation: `config.data.label_orientation`, for data whose preparation did not note its own.

        Raises:
          DataError: the folder was not prepared, or with other classes or another ignore label.
        """
        if not (root / "dataset_info.json").is_file():
            raise DataError(
                f"{root} holds no prepared data set; name the folder that `python -m fasseg_jax.data.tfds` printed"
            )
        import tensorflow_datasets as tfds  # takes seconds to import

        builder = tfds.builder_from_directory(root)
        prepared = builder.info.metadata
        if (tuple(prepared["classes"]), prepared["ignore_label"]) != (classes.names, ignore_label):
            raise DataError(
                f"{root} was prepared with other classes than those of config.data.dataset, or with another ignore "
                f"label ({prepared['ignore_label']}); set the same ones, or prepare the data again"
            )
        as_stored = dict.fromkeys(("image", "labels"), tfds.decode.SkipDecoding())
        self.classes = classes
        self.file_ids = file_ids
        self.problems: tuple[str, ...] = ()
        self.fingerprint = ""  # what was prepared stays as it is
        self._label_orientation = prepared.get("label_orientation", label_orientation)
        self._examples = builder.as_data_source(split, decoders=as_stored)
        self._version = f"{root} {split} {file_version(root / 'dataset_info.json')}"

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        example = self._examples[index]
        name = example["name"].decode()
        labels = decode_labels(example["labels"], f"the label map of {name}")
        return decode_sample(example["image"], labels, name, "in the same record", self._label_orientation)

    def version(self, index: int) -> str:
        """The version of the whole data set, which is written at once, and the index."""
        return f"{self._version} {index}"


def open_prepared(data: ConfigDict, split: str, classes: ClassTable) -> PreparedSource:
    """Open a split of the folder `data.root`, which `fasseg_jax.data.tfds.prepare` wrote."""
    check_ignore_label(len(classes), data.ignore_label)
    return PreparedSource(
        data_root(data), split, classes, data.ignore_label, file_ids(data, classes), data.label_orientation
    )
