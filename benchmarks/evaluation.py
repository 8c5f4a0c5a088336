"""How much of the device's bare speed an evaluation and a prediction keep, while threads read, resize, count and write.

    python benchmarks/evaluation.py --config configs/ade20k.py:r50
    python benchmarks/evaluation.py --config configs/shapes.py --photos 1000

writes JPEG photos of 683x512 pixels, the size of most of ADE20K, with PNG label maps to a temporary folder, evaluates
random weights on them, and predicts them as `predict.py` does, to labels and overlays in files. The bare work is only
the network and the labels, from inputs that are ready in memory. The three take turns, so that a change of the
machine's speed affects all.
"""

import operator
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image

from fasseg_jax.data import open_source
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.evaluation.evaluate import evaluate_images
from fasseg_jax.inference import segmenter as inference
from fasseg_jax.inference.photo_files import ResultFiles, segment_files
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.models.fasseg import build_model, initial_variables

CONFIG = config_flags.DEFINE_config_file("config", "configs/ade20k.py:r50", "Model and inference.")
PHOTOS = flags.DEFINE_integer("photos", 8, "Photos per round.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each kind.")


def write_photos(root: Path) -> None:
    """Write generated photos, as a folder data set whose ids fit ADE20K's."""
    source = ShapesSource("validation", PHOTOS.value, (512, 683), load_classes("shapes"), ignore_label=255)
    for folder in ("images/validation", "annotations/validation"):
        (root / folder).mkdir(parents=True)
    for index in range(PHOTOS.value):
        sample = source[index]
        Image.fromarray(sample.image).save(root / f"images/validation/{index}.jpg", quality=90)
        Image.fromarray(sample.labels).save(root / f"annotations/validation/{index}.png")


def compute_labels(segmenter: Segmenter, images: list[np.ndarray]) -> float:
    """Images per second of only the device's work; it computes an image while the host collects the one before."""
    inputs = [inference.PhotoViews(image, segmenter.config).input(0)[None] for image in images]
    start = time.perf_counter()
    before = None
    for image, network_input in zip(images, inputs, strict=True):
        outputs = inference._predict(segmenter.model, segmenter._mesh, segmenter.variables, network_input)
        if before:
            before.result()
        before = inference._Photo(None, image, segmenter.config, scores=False, uncertainty=False)
        before.add(*jax.tree.map(operator.itemgetter(0), outputs))
    before.result()
    return len(images) / (time.perf_counter() - start)


def main(_):
    """Measure and report."""
    config = CONFIG.value
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder))
        config.data.root = folder
        source = open_source(config, "validation")
        variables = jax.jit(lambda: initial_variables(build_model(config.model), seed=0))()
        segmenter = Segmenter(config, variables, source.classes)
        images = [source[index].image for index in range(len(source))]

        def evaluate() -> float:
            start = time.perf_counter()
            results = evaluate_images(
                segmenter, source, range(len(source)), config.data.ignore_label, num_threads=config.data.num_threads
            )
            return sum(1 for _ in results) / (time.perf_counter() - start)

        def predict() -> float:
            photos = {path: Path(path.stem) for path in (Path(folder) / "images/validation").iterdir()}
            files = ResultFiles(Path(folder) / "results")
            start = time.perf_counter()
            done = sum(1 for _ in segment_files(segmenter, photos, files, skip=print))
            return done / (time.perf_counter() - start)

        kinds = {"bare": lambda: compute_labels(segmenter, images), "evaluation": evaluate, "prediction": predict}
        segmenter(images[0])  # compiles
        rates = {name: [] for name in kinds}
        for _ in range(ROUNDS.value):
            for name, measure in kinds.items():
                rates[name].append(measure())
    for name, values in rates.items():
        print(f"{name:10} images/s {np.median(values):6.3f}  ({', '.join(f'{value:.3f}' for value in values)})")
    for name in ("evaluation", "prediction"):
        shares = np.divide(rates[name], rates["bare"])
        print(f"{name} / bare {np.median(shares):.1%}  ({', '.join(f'{share:.1%}' for share in shares)})")


if __name__ == "__main__":
    app.run(main)
