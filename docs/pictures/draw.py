"""Draw the pictures of the documentation. They show only generated scenes.

python train.py --config configs/shapes.py --workdir runs/shapes
python docs/pictures/draw.py runs/shapes/checkpoints/1000

The curves are of a run with configs/camvid.py:
fasseg curves runs/camvid --output docs/pictures/camvid.webp

serving.webp is a screenshot of `fasseg serve --checkpoint runs/shapes` with a validation picture of the same data.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fasseg_jax import Segmenter
from fasseg_jax.data.sources.shapes import draw_scene
from fasseg_jax.inference.explain import explain
from fasseg_jax.inference.explanation_page import draw_explanation
from fasseg_jax.visualization.overlay import draw_comparison

FOLDER = Path(__file__).parent
IGNORE = 255
SIZE = (384, 512)  # pixels of a scene, more than the model's input has, as in photos
COMPARED, EXPLAINED = (3, 8), 3  # seeds of the scenes
QUERIES = 3


def main(checkpoint: str) -> None:
    """Draw all pictures with a model that was trained on such scenes."""
    segmenter = Segmenter.from_checkpoint(checkpoint)

    def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
        """An image and its ground truth."""
        return draw_scene(np.random.default_rng(seed), SIZE, segmenter.classes.names, IGNORE)

    rows = [(image, truth, segmenter(image).labels) for image, truth in map(scene, COMPARED)]
    save(Image.fromarray(draw_comparison(rows, segmenter.classes)), "comparison")
    image, _ = scene(EXPLAINED)
    labels = segmenter(image).labels
    explanation = explain(segmenter, image, labels, QUERIES)
    save(draw_explanation(explanation, image, labels, segmenter.classes, "What the model looked at"), "explanation")


def save(picture: Image.Image, name: str) -> None:
    """Write a picture as WebP, the smallest format that browsers show."""
    path = FOLDER / f"{name}.webp"
    picture.save(path, quality=82, method=6)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1])
