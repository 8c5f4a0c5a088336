import jax
import numpy as np
import pytest
from PIL import Image

from fasseg_jax.checkpoint import save_checkpoint
from fasseg_jax.classes import ClassTable, load_classes
from fasseg_jax.inference import Segmenter
from fasseg_jax.model import build_model
from fasseg_jax.scores import View
from tests.test_scores import assert_labels, reference_scores
from tests.tiny_model import photo, tiny_model


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((64, 96), (64, 96), (64, 96)),
        ((90, 121), (64, 86), (64, 96)),
        ((20, 27), (64, 86), (64, 96)),
        ((3, 95), (4, 128), (32, 128)),
    ],
)
def test_segmenter_takes_the_steps_of_evaluation(size, resized, padded):
    config, variables = tiny_model()
    image = photo(*size)
    result = Segmenter(config, variables)(image, scores=True)
    # Step by step, in numpy.
    network_input = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.BILINEAR), np.float64)
    network_input = (network_input - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    network_input = np.pad(network_input, [(0, padded[0] - resized[0]), (0, padded[1] - resized[1]), (0, 0)])
    predict = jax.jit(build_model(config.model).apply, static_argnames="train")
    predictions = predict(variables, network_input[None].astype(np.float32), train=False)
    logits = np.asarray(predictions.class_logits[0], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    view = View(resized, probabilities[:, :-1], np.moveaxis(np.asarray(predictions.mask_logits[0]), 0, -1))
    expected = reference_scores(view, size)
    assert result.scores.shape == (*size, 19)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    assert_labels(result.labels, expected, margin=2e-4)


def test_labels_do_not_depend_on_asking_for_scores():
    segmenter = Segmenter(*tiny_model())
    result = segmenter(photo(70, 100))
    assert result.scores is None
    np.testing.assert_array_equal(result.labels, segmenter(photo(70, 100), scores=True).labels)


def test_checkpoint_gives_the_same(tmp_path):
    config, variables = tiny_model()
    classes = load_classes("cityscapes")
    save_checkpoint(tmp_path / "model", config, variables, classes)
    segmenter = Segmenter.from_checkpoint(tmp_path / "model")
    assert segmenter.classes.names == classes.names
    np.testing.assert_array_equal(segmenter(photo(50, 60)).labels, Segmenter(config, variables)(photo(50, 60)).labels)


def test_backbone_alone_is_refused(tmp_path):
    config, variables = tiny_model()
    backbone = {"params": {"backbone": variables["params"]["backbone"]}}
    save_checkpoint(tmp_path / "backbone", config, backbone, load_classes("cityscapes"), contents="backbone")
    with pytest.raises(ValueError, match="backbone alone"):
        Segmenter.from_checkpoint(tmp_path / "backbone")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_wrong_images_are_refused(image):
    with pytest.raises(ValueError, match=r"image must be RGB, uint8 \(H, W, 3\)"):
        Segmenter(*tiny_model())(image)


def test_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="2 classes for a model of config.model.num_classes 19"):
        Segmenter(*tiny_model(), ClassTable(("a", "b"), np.zeros((2, 3), np.uint8)))


def test_damaged_weights_are_noticed():
    config, variables = tiny_model()
    damaged = jax.tree.map(np.array, variables)
    damaged["params"]["decoder"]["class_embed"]["bias"][3] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        Segmenter(config, damaged)(photo(64, 64))
