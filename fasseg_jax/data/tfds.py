"""Data sets prepared by `tensorflow-datasets` as array_record files: few and large, and read without TensorFlow.

    python -m fasseg_jax.data.tfds --config configs/ade20k.py:r50 --config.data.root=ADEChallengeData2016 --output DIR

copies the photos as they are and the label maps as training ids, and prints the folder to train from:

    python train.py --config configs/ade20k.py:r50 --config.data.source=tfds --config.data.root=PRINTED_FOLDER

ADE20K, Cityscapes and folders with their own classes.txt are all prepared in this way. The files must lie in a file
system: if several machines train, mount the bucket that holds them, or copy them to each machine.
"""

import sys
from collections.abc import Iterator, Mapping

from absl import app, flags, logging
from ml_collections import ConfigDict

from fasseg_jax.config import config_flags
from fasseg_jax.data.classes import DataError, write_classes
from fasseg_jax.data.labels import decode_sample, encode_labels, label_dtype
from fasseg_jax.data.samples import SPLITS
from fasseg_jax.data.sources.folder import FolderSource
from fasseg_jax.data.sources.registry import open_source
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.files import Path, named_write_errors

try:
    import tensorflow_datasets as tfds
except ImportError:
    MISSING = 'preparing data needs tensorflow-datasets: pip install "fasseg_jax[tfds]"'
    if __name__ == "__main__":
        sys.exit(print_error(MISSING, status=1))
    raise ImportError(MISSING) from None

__all__ = ["SegmentationBuilder", "prepare"]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """Builds a data set for semantic segmentation from folders of files."""

    name = "segmentation"  # of the folder
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, sources: Mapping[str, FolderSource], root: Path, name: str, ignore_label: int, data_dir: Path):
        """Set up the builder.

        Args:
          sources: by split.
          root: the folder that holds their files.
          name: tells the data set from others in `data_dir`.
          ignore_label: label of ignored pixels.
          data_dir: the folder in which one for the data set is made.
        """
        self._sources = sources
        self._root = root
        self._ignore_label = ignore_label
        super().__init__(
            data_dir=str(data_dir),
            config=tfds.core.BuilderConfig(name=name, version=self.VERSION),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        dtype = label_dtype(self._ignore_label)
        classes = self._sources["training"].classes
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photos and label maps; a label is a training id, or the ignore label.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "labels": tfds.features.Image(shape=(None, None, 1), dtype=dtype, encoding_format="png"),
                    "name": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(
                ignore_label=self._ignore_label,
                classes=list(classes.names),
                label_orientation=self._sources["training"].label_orientation,
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(source) for split, source in self._sources.items()}

    def _generate_examples(self, source: FolderSource) -> Iterator:
        for index in range(len(source)):
            photo, labels, name, labels_name = source.read(index)
            decode_sample(
                photo, labels, name, labels_name, source.label_orientation
            )  # fails now, rather than in training
            yield (
                index,
                {"image": photo, "labels": encode_labels(labels), "name": str(Path(name).relative_to(self._root))},
            )


def prepare(config: ConfigDict, output: str | Path) -> Path:
    """Write a folder data set as array_record files.

    Args:
      config: the configuration of a training from the folders, with the source "folder" or "cityscapes".
      output: the folder in which one for the data set is made.

    Returns:
      The data set's folder, the `config.data.root` of a training from it.

    Raises:
      DataError: something is wrong with the data, or `output` holds them already.
      WriteError: the data set cannot be written.
    """
    sources = {split: _open_files(config, split) for split in SPLITS}
    root = Path(config.data.root).expanduser()
    name = Path(config.data.dataset or root.resolve()).stem
    builder = SegmentationBuilder(sources, root, name, config.data.ignore_label, Path(output).expanduser())
    folder = Path(builder.data_dir)
    if folder.exists():
        raise DataError(f"{folder} is there already; delete it to prepare the data again")
    with named_write_errors(folder, (OSError, RuntimeError)):  # the latter of the library that writes array_record
        builder.download_and_prepare()
    write_classes(folder / "classes.csv", sources["training"].classes)
    return folder


def _open_files(config: ConfigDict, split: str) -> FolderSource:
    source = open_source(config, split)
    if not isinstance(source, FolderSource):
        raise DataError(f'config.data.source = {config.data.source!r}; only "folder" and "cityscapes" can be prepared')
    return source


def main() -> None:
    """Run the program."""
    config = config_flags.DEFINE_config_file("config", help_string="The data, e.g. configs/folder.py:DIR.")
    output = flags.DEFINE_string("output", None, "Folder, in which one for the data set is made.", required=True)
    flags.mark_flag_as_required("config")

    def run(_: list[str]) -> int:
        logging.set_verbosity(logging.ERROR)  # tensorflow-datasets logs a lot
        try:
            folder = prepare(config.value, output.value)
        except (OSError, ValueError) as error:
            return print_error(error, status=1)
        print(f"Prepared. Train with --config.data.source=tfds --config.data.root={folder}")
        return 0

    app.run(run, flags_parser=parse_flags)


if __name__ == "__main__":
    main()
