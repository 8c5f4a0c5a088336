"""Data sets of tensorflow-datasets, prepared here without TensorFlow and without a download."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.testing import mocking

from fasseg_jax.data.classes import ClassTable

CLASSES = ClassTable(("pet", "background", "border"), np.arange(9, dtype=np.uint8).reshape(3, 3))
SIZES = {"train": [(40, 52), (64, 48), (50, 50)], "test": [(33, 70), (48, 64)]}


def example(split: str, index: int) -> dict:
    """A photo, and label ids 1 to 3, as in oxford_iiit_pet; 0 is ignored."""
    height, width = SIZES[split][index]
    rng = np.random.default_rng([len(split), index])
    image, mask = rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 4, (height, width, 1), np.uint8)
    return {"image": image, "mask": mask, "depth": mask, "label": index, "file": "a.jpg"}


class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder as one for tensorflow-datasets is written."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="with_depth")]
    pictures = {"image": (None, None, 3), "mask": (None, None, 1)}

    def _info(self):
        pictures = {
            name: tfds.features.Image(shape=shape, encoding_format="png") for name, shape in self.pictures.items()
        }
        others = {"label": tfds.features.ClassLabel(num_classes=3), "file": tfds.features.Text()}
        if self.builder_config.name == "with_depth":
            pictures["depth"] = tfds.features.Image(shape=(None, None, 1))
        features = tfds.features.FeaturesDict({**pictures, **others})
        return tfds.core.DatasetInfo(builder=self, description="Pets.", features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for index in range(len(SIZES[split])):
            made = {name: example(split, index)[name] for name in self.info.features}
            yield index, with_files(made, self.info.features)


def with_files(values: dict, features) -> dict:
    """Pictures as PNG files, which the library stores without TensorFlow."""
    values = dict(values)
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            Image.fromarray(values[name].squeeze(-1) if feature.shape[-1] == 1 else values[name]).save(
                buffer := io.BytesIO(), "png"
            )
            values[name] = buffer.getvalue()
        if isinstance(feature, tfds.features.BBoxFeature):  # random corners are no box
            values[name] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    return values


def build(folder: Path, config: str = "small", **attributes) -> Path:
    """Prepare the data set; returns its folder."""
    with tfds.core.registered.skip_registration():
        cls = type("Pets", (Pets,), {"__module__": __name__, **attributes})
    builder = cls(data_dir=str(folder), config=config, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def build_standard(folder: Path, name: str, max_value: int) -> tuple[Path, list[dict]]:
    """Prepare a data set of tensorflow-datasets with its own features, from its generator of mock data."""
    title, _, config = name.partition("/")
    original = tfds.builder_cls(title)
    made = []

    def generate(self, split):
        for index, values in enumerate(
            mocking.RandomFakeGenerator(self.info.features, 2, max_value=max_value, constant_dynamic_shape=True)
        ):
            made.append(values)
            yield index, with_files(values, self.info.features)

    attributes = {
        "name": title,
        "_split_generators": lambda self, _: {"train": self._generate_examples("train")},
        "_generate_examples": generate,
        "__module__": original.__module__,
    }
    with tfds.core.registered.skip_registration():
        cls = type(original.__name__, (original,), attributes)
    builder = cls(data_dir=str(folder), config=config or None, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir), made
