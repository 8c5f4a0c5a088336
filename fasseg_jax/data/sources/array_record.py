"""Samples from array_record files: of `python -m fasseg_jax.data.tfds`, or of any data set of tensorflow-datasets."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.labels import check_ignore_label, decode_labels, decode_sample, file_ids, label_table, map_labels
from fasseg_jax.data.samples import Sample
from fasseg_jax.data.sources.cityscapes import label_id_table
from fasseg_jax.data.sources.folder import data_root, file_version
from fasseg_jax.data.sources.tfds_folder import INFO, Records, find_data_set, open_data_set, picture_fields

__all__ = ["Content", "PreparedSource", "open_prepared"]


@dataclasses.dataclass(frozen=True)
class Content:
    """What the records of a split hold.

    Attributes:
      split: the split's name among the data set's own.
      image: field of the photo.
      labels: field of the label map.
      name: field of the photo's name; empty if there is none.
      table: the training id of each id in the label maps; None if they hold training ids.
      label_orientation: as `config.data.label_orientation`.
    """

    split: str
    image: str
    labels: str
    name: str
    table: np.ndarray | None
    label_orientation: str


class PreparedSource:
    """Samples from a folder of array_record files; see `Source`."""

    def __init__(
        self, records: Records, content: Content, title: str, version: str, data: ConfigDict, classes: ClassTable
    ):
        """Make a source of records.

        Args:
          records: of the split.
          content: what they hold.
          title: of the data set, for the names of samples without one.
          version: changes with the data set.
          data: `config.data`.
          classes: of the data.
        """
        self.classes = classes
        self.file_ids = file_ids(data, classes)
        self.problems: tuple[str, ...] = ()
        self.fingerprint = ""  # what was prepared stays as it is
        self._records = records
        self._content = content
        self._title = title
        self._version = version

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        content, example = self._content, self._records[index]
        name = example[content.name].decode() if content.name else f"{self._title}/{content.split}/{index}"
        labels_name = f"the label map of {name}"
        labels = decode_labels(example[content.labels], labels_name, stored=content.label_orientation == "stored")
        if content.table is not None:
            labels = map_labels(labels, content.table, labels_name)
        return decode_sample(example[content.image], labels, name, "in the same record", content.label_orientation)

    def version(self, index: int) -> str:
        """The version of the whole data set, which is written at once, and the index."""
        return f"{self._version} {index}"


def open_prepared(data: ConfigDict, split: str, classes: ClassTable) -> PreparedSource:
    """Open a split of a data set that tensorflow-datasets prepared.

    It is either what `fasseg_jax.data.tfds.prepare` wrote, or any data set with pictures that are photos and label
    maps; `config.data.tfds` says which one, and names its fields and splits.

    Args:
      data: `config.data`.
      split: "training" or "validation".
      classes: of the data.

    Raises:
      DataError: there is no such data set; it was prepared with other classes or another ignore label; it has no such
        field or split; or `data.ignore_label` is the id of a class.
    """
    folder = find_data_set(data_root(data), data.tfds.name)
    builder = open_data_set(folder)
    own = builder.info.metadata or {}
    if "ignore_label" in own:
        check_ignore_label(len(classes), data.ignore_label)
        if (tuple(own["classes"]), own["ignore_label"]) != (classes.names, data.ignore_label):
            raise DataError(
                f"{folder} was prepared with other classes than those of config.data.dataset, or with another ignore "
                f"label ({own['ignore_label']}); set the same ones, or prepare the data again"
            )
        orientation = own.get("label_orientation", data.label_orientation)
        content = Content(split, "image", "labels", "name", None, orientation)
    else:
        content = Content(
            data.tfds[split], *picture_fields(builder, data.tfds), "", _id_table(data, classes), data.label_orientation
        )
    fields = tuple(filter(None, (content.image, content.labels, content.name)))
    records = Records(builder, content.split, fields)
    version = f"{folder} {content.split} {file_version(folder / INFO)}"
    return PreparedSource(records, content, builder.info.full_name, version, data, classes)


def _id_table(data: ConfigDict, classes: ClassTable) -> np.ndarray:
    """The training id of each id in label maps as their authors published them."""
    if data.dataset == "cityscapes":
        return label_id_table(data.ignore_label)
    return label_table(len(classes), data.ignore_label, data.reduce_zero_label)
