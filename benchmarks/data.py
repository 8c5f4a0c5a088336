"""Measures how fast training data are read and augmented: images a second, and the time of each stage.

    PYTHONPATH=. python benchmarks/data.py

writes JPEG photos of 683x512 pixels with PNG label maps, the size of most of ADE20K, to a temporary folder, and draws
512x512 crops of them by the recipe for ADE20K. CPU time says what one core does, whatever else the machine is doing.
Then it reads the same photos from a folder and from prepared array_record files, on this machine's disk and in a bucket
that the tests' emulator serves from memory. The emulator shares the cores, and answers without the delay of a network.
It needs the extra `test`.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.config import load_config
from fasseg_jax.data import Source, TrainingBatches, open_source, read_ahead
from fasseg_jax.data.augmentation import augment, resize_and_crop
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.color_jitter import jitter_colors
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.data.tfds import prepare
from fasseg_jax.runtime.files import copy_file, list_files, make_path
from tests.helpers.bucket import emulated_buckets

NUM_PHOTOS = 48
BATCHES = 24
REPEATS = 3
THREADS = (2, 8)  # one a core, and more, of which some wait for the storage


def write_photos(root: Path) -> None:
    """Write generated photos, as a folder data set whose ids fit ADE20K's."""
    source = ShapesSource("training", NUM_PHOTOS, (512, 683), load_classes("shapes"), ignore_label=255)
    for split, count in (("training", NUM_PHOTOS), ("validation", 1)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            sample = source[index]
            Image.fromarray(sample.image).save(root / f"images/{split}/{index}.jpg", quality=90)
            Image.fromarray(sample.labels).save(root / f"annotations/{split}/{index}.png")


def throughput(source: Source, config: ConfigDict, num_threads: int) -> tuple[float, float]:
    """Images a second, by the clock and by CPU time of this process."""
    config.data.num_threads = num_threads
    batches = read_ahead(TrainingBatches(source, config, seed=0), config.data)
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
        next(batches)
    images = BATCHES * config.train.batch_size
    return images / (time.perf_counter() - wall), images / (time.process_time() - cpu)


def rates(source: Source, config: ConfigDict, num_threads: int) -> str:
    """The best of some measurements, as a part of a line."""
    wall, cpu = np.max([throughput(source, config, num_threads) for _ in range(REPEATS)], axis=0)
    return f"{wall:20.0f} {cpu:21.0f}"


def measure_storage(config: ConfigDict, temporary: Path) -> None:
    """Print how fast the photos are read from each kind of storage; `config.data.root` is their folder."""
    logging.set_verbosity(logging.ERROR)  # tensorflow-datasets logs a lot
    tfds.disable_progress_bar()
    with emulated_buckets() as emulator:
        folder = Path(config.data.root)
        bucket = make_path(emulator.new_folder())
        for file in list_files(folder):
            copy_file(file, bucket / "photos" / file.relative_to(folder).as_posix())
        places = {
            "folder": ("folder", folder),
            "array_record": ("tfds", prepare(config, temporary / "prepared")),
            "folder in a bucket": ("folder", bucket / "photos"),
            "array_record in a bucket": ("tfds", prepare(config, bucket / "prepared")),
        }
        print(f"\n{'read from':24} threads  images/s by the clock  images/s of CPU time")
        for name, (kind, root) in places.items():
            config.data.update(source=kind, root=str(root))
            source = open_source(config, "training")
            for num_threads in THREADS:
                print(f"{name:24} {num_threads:7} {rates(source, config, num_threads)}")


def milliseconds(function: Callable[[int], object]) -> float:
    """CPU time of `function(index)`, the mean over the photos."""
    begin = time.process_time()
    for index in range(NUM_PHOTOS):
        function(index)
    return 1e3 * (time.process_time() - begin) / NUM_PHOTOS


def main() -> None:
    """Print the tables."""
    config = load_config("configs/ade20k.py:r50")
    config.train.batch_size = 4
    with tempfile.TemporaryDirectory() as temporary:
        config.data.root = f"{temporary}/photos"
        write_photos(Path(config.data.root))
        source = open_source(config, "training")
        samples = [source[index] for index in range(NUM_PHOTOS)]
        crops = [sample.image[:512, :512] for sample in samples]
        rng = np.random.default_rng(0)
        window = (100, 100, 512, 512)
        stages = {
            "read and decode": lambda i: source[i],
            "augment": lambda i: augment(samples[i].image, samples[i].labels, config.augmentation, 255, rng),
            "  resize to shorter side 768, crop": lambda i: resize_and_crop(
                samples[i].image, samples[i].labels, (768, 1025), window
            ),
            "  color jitter": lambda i: jitter_colors(crops[i], rng),
        }
        for name, stage in stages.items():
            print(f"{name:36} {min(milliseconds(stage) for _ in range(REPEATS)):5.1f} ms of CPU an image")
        print("\nthreads  images/s by the clock  images/s of CPU time")
        for num_threads in (1, 2):
            print(f"{num_threads:7} {rates(source, config, num_threads)}")
        measure_storage(config, Path(temporary))


if __name__ == "__main__":
    main()
