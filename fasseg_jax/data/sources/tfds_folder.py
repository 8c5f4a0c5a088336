"""Folders of tensorflow-datasets: where a data set lies, which of its fields are photo and label map, and its records.

A data set that was prepared by its name, for example `tfds.builder("oxford_iiit_pet", file_format="array_record")
.download_and_prepare()`, lies in DATA_DIR/NAME/VERSION or DATA_DIR/NAME/CONFIG/VERSION. Nothing here runs its code.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fasseg_jax.data.classes import DataError
from fasseg_jax.runtime.files import Path

__all__ = ["INFO", "Records", "find_data_set", "open_data_set", "picture_fields"]

INFO, FEATURES = "dataset_info.json", "features.json"  # without the former, a folder is no data set
NAME = re.compile(r"(?P<folder>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
CHANNELS = {"image": 3, "labels": 1}  # of a photo and of a label map, by the field of `config.data.tfds`


class Records:
    """Fields of the records of one split, as they are stored, by index. Several threads may read at once."""

    def __init__(self, builder: Any, split: str, fields: tuple[str, ...]):
        """Open the files.

        Args:
          builder: from `open_data_set`.
          split: as tensorflow-datasets names it, for example "train" or "train[:90%]".
          fields: names of pictures and texts.

        Raises:
          DataError: there is no such split, or the files are no array_record files or cannot be opened.
        """
        import tensorflow_datasets as tfds

        self._title = f"{builder.data_dir}, split {split!r}"
        folder, splits = builder.data_dir, sorted(builder.info.splits)
        if split.partition("[")[0] not in splits:
            raise DataError(f"{folder} has no split {split!r}; its splits are {', '.join(splits) or 'not prepared'}")
        try:
            self._records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        except NotImplementedError as error:
            raise DataError(
                f"{folder}: the files are of a format that only TensorFlow reads ({builder.info.file_format.value}); "
                'prepare the data set again with file_format="array_record"'
            ) from error
        except Exception as error:  # the library that reads array_record raises errors of many types
            raise DataError(f"{folder}: split {split!r} cannot be opened ({_reason(error)})") from error
        # Only these fields are parsed. `tfds.decode.PartialDecoding` would need TensorFlow.
        self._features = tfds.features.FeaturesDict({name: builder.info.features[name] for name in fields})
        self._decoders = {
            name: tfds.decode.SkipDecoding() for name in fields if isinstance(self._features[name], tfds.features.Image)
        }

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        try:
            return self._features.deserialize_example_np(self._records[index], decoders=self._decoders)
        except Exception as error:  # again of many types
            raise DataError(f"{self._title}: record {index} cannot be read ({_reason(error)})") from error


def find_data_set(root: Path, name: str) -> Path:
    """Find the folder of a data set.

    Args:
      root: `config.data.root`.
      name: NAME, NAME:VERSION, NAME/CONFIG or NAME/CONFIG:VERSION, whose folder is below `root`; without a version the
        newest one is taken. If empty, `root` itself is the folder.

    Raises:
      DataError: the name is none, or there is no such data set.
    """
    if not name:
        if not (root / INFO).is_file():
            raise DataError(
                f"{root} holds no prepared data set; name the folder that `python -m fasseg_jax.data.tfds` printed, or "
                "a data set of tensorflow-datasets below it, --config.data.tfds.name=NAME"
            )
        return root
    match = NAME.fullmatch(name)
    if match is None:
        raise DataError(f"config.data.tfds.name = {name!r}: write NAME, NAME:VERSION or NAME/CONFIG:VERSION")
    folder = root / match["folder"]
    below = sorted(path.name for path in folder.glob("*/") if not path.name.startswith("."))
    versions = sorted((each for each in below if VERSION.fullmatch(each)), key=_numbers)
    wanted = match["version"] or (versions[-1] if versions else "")
    if wanted and (folder / wanted / INFO).is_file():
        return folder / wanted
    found = ", ".join(below[:10]) if below else "no data set of this name"
    raise DataError(
        f"config.data.tfds.name = {name!r}: {folder / wanted if wanted else folder} is no prepared data set; there is "
        f"{found}"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def open_data_set(folder: Path) -> Any:
    """Open what tensorflow-datasets prepared, without the code that made it.

    Args:
      folder: from `find_data_set`.

    Returns:
      A builder of tensorflow-datasets that only reads.

    Raises:
      DataError: the folder's descriptions are damaged, or name code that is not of tensorflow-datasets; or this library
        is not installed.
    """
    try:
        import tensorflow_datasets as tfds  # takes seconds to import
    except ImportError as error:
        raise DataError(f'{folder}: prepared data need tensorflow-datasets: pip install "fasseg_jax[tfds]"') from error

    try:
        for name in _class_names(json.loads((folder / FEATURES).read_text())):
            if not name.startswith("tensorflow_datasets."):  # which the library would import
                raise DataError(f"{folder / FEATURES}: names the code {name[:80]!r}, which is not loaded")
        return tfds.builder_from_directory(folder)
    except DataError:
        raise
    except Exception as error:  # of the library, nearly any
        raise DataError(f"{folder}: its description cannot be read ({_reason(error)}); prepare it again") from error


def _class_names(content: Any) -> list[str]:
    """The names of Python classes in a description of features, at any depth."""
    if isinstance(content, Mapping):
        own = [str(value) for name, value in content.items() if name in ("pythonClassName", "python_class_name")]
        return own + [name for value in content.values() for name in _class_names(value)]
    return [name for value in content for name in _class_names(value)] if isinstance(content, list) else []


def picture_fields(builder: Any, chosen: ConfigDict) -> tuple[str, str]:
    """Find the fields of photo and label map.

    Args:
      builder: from `open_data_set`.
      chosen: `config.data.tfds`; an empty `image` stands for the only picture of three channels, and empty `labels` for
        the only one of one channel.

    Raises:
      DataError: the data set has no such field, or several.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    fields = features.items() if isinstance(features, tfds.features.FeaturesDict) else ()
    channels = {name: feature.shape[-1] for name, feature in fields if isinstance(feature, tfds.features.Image)}
    image, labels = (_choose(str(builder.data_dir), channels, role, chosen[role]) for role in ("image", "labels"))
    if image == labels:
        raise DataError(f"config.data.tfds.image and config.data.tfds.labels are both {image!r}; name two fields")
    return image, labels


def _choose(folder: str, channels: dict[str, int], role: str, chosen: str) -> str:
    listing = ", ".join(f"{name} ({_channels(count)})" for name, count in sorted(channels.items()))
    has = f"its pictures are {listing}" if channels else "it has no pictures"
    if chosen:
        if chosen not in channels:
            raise DataError(f"config.data.tfds.{role} = {chosen!r} is no picture of {folder}; {has}")
        return chosen
    fitting = [name for name, count in channels.items() if count == CHANNELS[role]]
    if len(fitting) != 1:
        what = "photo" if role == "image" else "label map"
        doubt = "several fields may be its" if fitting else "no field is a"
        advice = f"; name the {what}, --config.data.tfds.{role}=FIELD" if channels else ", so it has nothing to learn"
        raise DataError(f"{folder}: {doubt} {what} ({_channels(CHANNELS[role])}); {has}{advice}")
    return fitting[0]


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count > 1)}"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
