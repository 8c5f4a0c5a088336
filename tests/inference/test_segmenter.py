import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from fasseg_jax import convert_state_dict, load_config
from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.inference import segmenter as inference
from fasseg_jax.inference.scores import ViewPrediction
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import PhotoViews, inference_settings
from fasseg_jax.models.fasseg import build_model
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.golden.synthetic_weights import synthetic_state_dict
from tests.helpers import ROOT, xla_flags
from tests.helpers.tiny import photo, tiny_model
from tests.inference.test_scores import assert_labels, reference_scores, whole


def changed(**settings):
    """The tiny model with other settings of inference."""
    config, variables = tiny_model()
    config = config.copy_and_resolve_references()
    config.inference = inference_settings(config, settings)
    return config, variables


def network(config, variables, picture, padded):
    """The view of a picture, uint8 (h, w, 3), step by step in numpy but for the network itself."""
    normalized = (picture - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    normalized = np.pad(normalized, [(0, padded[0] - picture.shape[0]), (0, padded[1] - picture.shape[1]), (0, 0)])
    predict = jax.jit(build_model(config.model).apply, static_argnames="train")
    predictions = predict(variables, normalized[None].astype(np.float32), train=False)
    logits = np.asarray(predictions.class_logits[0], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return ViewPrediction(probabilities[:, :-1], np.moveaxis(np.asarray(predictions.mask_logits[0]), 0, -1))


def pillow_resize(image, size):
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))


@pytest.mark.slow
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
    view = network(config, variables, pillow_resize(image, resized), padded)
    expected = reference_scores([whole(resized)], [view], size)
    assert result.scores.shape == (*size, 19)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    assert_labels(result.labels, expected, margin=2e-4)


# All tests use few padded shapes, since each takes seconds to compile.
MULTI_SCALE = {"mode": "multi_scale"}
SLIDING = {"mode": "sliding", "sliding": {"overlap": 0.25}}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(90, 121), (64, 300)])
def test_several_sizes_and_flips(size):
    """Against the mean of whole predictions, one after the other; the smaller sides follow from the test size."""
    config, variables = changed(**MULTI_SCALE)
    image = photo(*size)
    result = Segmenter(config, variables)(image, scores=True)
    test_size, sizes = {
        (90, 121): ((64, 86), [(32, 43), (64, 86)]),
        (64, 300): ((27, 128), [(27, 128), (27, 128)]),
    }[size]
    expected = 0
    for resized in sizes:
        picture = pillow_resize(pillow_resize(image, test_size), resized)
        padded = tuple(side + -side % 32 for side in resized)
        for flipped in (False, True):
            view = network(config, variables, picture[:, ::-1] if flipped else picture, padded)
            expected = expected + reference_scores([whole(resized, flipped)], [view], size) / 4
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    assert_labels(result.labels, expected, margin=2e-4)


@pytest.mark.slow
def test_sliding_windows():
    """Against predictions of the cut-out windows, added up where they lie, over the number that show a pixel."""
    config, variables = changed(**SLIDING)
    image = photo(150, 160)
    result = Segmenter(config, variables)(image, scores=True)
    total, count = np.zeros((150, 160, 19)), np.zeros((150, 160, 1))
    for y in (0, 43, 86):
        for x in (0, 64):
            window = slice(y, y + 64), slice(x, x + 96)
            view = network(config, variables, image[window], (64, 96))
            total[window] += reference_scores([whole((64, 96))], [view], (64, 96))
            count[window] += 1
    np.testing.assert_allclose(result.scores, total / count, atol=1e-4)
    assert_labels(result.labels, total / count, margin=2e-4)


def test_size_of_windows():
    """That of a training crop, unless said otherwise."""
    for window, size in [((), (64, 96)), ((40, 50), (40, 50))]:
        config, _ = changed(mode="sliding", sliding={"window": window})
        assert {placement.size for placement in PhotoViews(photo(200, 300), config).placements} == {size}


@pytest.mark.parametrize("size", [(64, 86), (86, 64), (64, 64)])
def test_padding_coarser_than_needed_is_the_photo_mirrored(size):
    config, _ = changed(round_to=256)
    view = PhotoViews(photo(*size), config).input(0)
    rows, columns = ([i % (2 * n) if i % (2 * n) < n else 2 * n - 1 - i % (2 * n) for i in range(256)] for n in size)
    normalized = (photo(*size) - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(view, normalized[rows][:, columns], atol=1e-5)


@pytest.mark.slow
def test_padding_is_coarser_where_asked():
    segmenter = Segmenter(*changed(round_to=64))
    image = photo(64, 86)
    result = segmenter(image, scores=True)
    assert segmenter.input_shapes == {(64, 128)}
    mirrored = np.concatenate([image, image[:, ::-1][:, :42]], axis=1)
    view = network(segmenter.config, tiny_model()[1], mirrored, (64, 128))
    np.testing.assert_allclose(result.scores, reference_scores([whole((64, 86))], [view], (64, 86)), atol=1e-4)


SIZES = {"a": (64, 90), "b": (64, 120), "c": (64, 95), "d": (128, 190), "e": (64, 90), "f": (32, 64)}
PHOTOS = {name: photo(*size, seed) for seed, (name, size) in enumerate(SIZES.items())}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, MULTI_SCALE, SLIDING], ids=["single", "multi_scale", "sliding"])
def test_many_photos_give_what_each_gives(settings):
    segmenter = Segmenter(*changed(**settings))
    expected = {name: segmenter(image).labels for name, image in PHOTOS.items()}
    assert sum(len(np.unique(labels)) > 1 for labels in expected.values()) > 2
    for batch_size in (1, 3):
        found = dict(segmenter.segment_all(PHOTOS.items(), batch_size))
        assert found.keys() == PHOTOS.keys()
        for name, labels in found.items():
            np.testing.assert_array_equal(labels, expected[name])


def check_decided_labels(labels, expected, margin, share):
    """Labels are those expected where the best score leads by more than `margin`, which is so for a share of pixels."""
    scores = np.sort(expected.scores, axis=-1)
    decided = scores[..., -1] - scores[..., -2] > margin
    np.testing.assert_array_equal(labels[decided], expected.labels[decided])
    assert decided.mean() > share


def test_batches_on_one_device(monkeypatch):
    """As devices other than CPUs compute them: the same but for rounding."""
    monkeypatch.setattr(inference, "PHOTO_BY_PHOTO", ())
    segmenter = Segmenter(*changed(**SLIDING))
    photos = {name: PHOTOS[name] for name in "acde"}
    found = dict(segmenter.segment_all(photos.items(), batch_size=2))
    for name, image in photos.items():
        check_decided_labels(found[name], segmenter(image, scores=True), margin=1e-3, share=0.9)


EIGHT_DEVICES = """
import sys
import jax, numpy as np
from fasseg_jax import Segmenter
from tests.inference.test_segmenter import PHOTOS, SLIDING, changed
devices = jax.local_devices()
assert len(devices) == 8
single = Segmenter(*changed(), devices=devices).segment_all(PHOTOS.items(), batch_size=2)
sliding = Segmenter(*changed(**SLIDING), devices=devices)(PHOTOS["d"]).labels
np.savez(sys.argv[1], sliding=sliding, **dict(single))
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(tmp_path):
    """But for ties: a program for several devices rounds otherwise than one for a single one, on some processors."""
    environment = dict(
        os.environ,
        XLA_FLAGS=xla_flags(8),
        JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    )
    subprocess.run([sys.executable, "-c", EIGHT_DEVICES, tmp_path / "labels.npz"], env=environment, check=True)
    found = dict(np.load(tmp_path / "labels.npz"))
    np.testing.assert_array_equal(found.pop("sliding"), Segmenter(*changed(**SLIDING))(PHOTOS["d"]).labels)
    assert found.keys() == PHOTOS.keys()
    segmenter = Segmenter(*tiny_model())
    for name, image in PHOTOS.items():
        check_decided_labels(found[name], segmenter(image, scores=True), margin=1e-5, share=0.99)


@pytest.mark.parametrize(("mode", "prefix"), [("single", ""), ("multi_scale", "tta_")])
def test_photo_of_the_official_program(mode, prefix, request):
    """Scores and labels of an ADE20K photo, which may not be distributed, with synthetic weights."""
    reference = request.config.getoption("--reference")
    if reference is None:
        pytest.skip("needs the complete golden arrays, by --reference")
    golden = np.load(reference / "predict_r50_ade20k.npz")
    names = json.loads((ROOT / "tests/golden/state_dict_names.json").read_text())["faseg_r50_ade20k"]["state_dict"]
    config = load_config("configs/ade20k.py:r50")
    config.inference.mode = mode
    if prefix:
        assert config.inference.multi_scale.short_sides == tuple(golden["tta_min_sizes"])
        assert config.inference.multi_scale.max_long_side == golden["tta_max_size"]
    segmenter = Segmenter(config, convert_state_dict(synthetic_state_dict(names), config.model))
    result = segmenter(golden["resized"], scores=True)  # the photo has the test size
    difference = np.abs(result.scores[::16, ::16].transpose(2, 0, 1) - golden[f"{prefix}sem_seg_sub16"])
    decided = golden[f"{prefix}margin"] > 1e-3
    differing = (result.labels != golden[f"{prefix}prediction"]) & decided
    print(f"{mode}: scores differ by {difference.max():.1e}, labels at {differing.sum()} of {decided.sum()} pixels")
    assert difference.max() < 1e-4
    assert not differing.any()
    assert decided.mean() > 0.99


def test_photos_are_taken_as_they_are_needed():
    taken = 0

    def photos():
        nonlocal taken
        for number in range(40):
            taken += 1
            yield number, PHOTOS["a"]

    for count, _ in enumerate(Segmenter(*tiny_model()).segment_all(photos())):
        assert taken <= count + 1 + 2 + 8  # computed before, computing, made ready by at most 8 threads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fast"}, "config.inference.mode is 'fast'; choose one of single, multi_scale, sliding"),
        ({"round_to": 48}, "config.inference.round_to is 48; it must be a multiple of 32"),
        ({"sliding": {"overlap": 1.0}}, "config.inference.sliding.overlap is 1.0"),
        ({"sliding": {"window": (512,)}}, "config.inference.sliding.window is .512,.; it must be a height and a width"),
        ({"sliding": {"short_side": -1}}, "config.inference.sliding.short_side is -1; it must be an integer from 0"),
        (
            {"multi_scale": {"short_sides": ()}},
            "config.inference.multi_scale.short_sides is ..; it must be one or more lengths",
        ),
        ({"short_side": 0}, "config.inference.short_side is 0; it must be an integer from 1"),
        ({"window": (512, 512)}, 'config.inference: Key "window" does not exist'),
        ({"short_side": "512"}, "config.inference: Could not override field 'short_side'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        changed(**settings)


def test_older_checkpoints_are_predicted_at_their_test_size():
    config, variables = changed()
    with config.unlocked():
        for name in ("mode", "sliding", "round_to"):
            del config.inference[name]
    segmenter = Segmenter(config, variables)
    np.testing.assert_array_equal(segmenter(PHOTOS["a"]).labels, Segmenter(*tiny_model())(PHOTOS["a"]).labels)


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
    segmenter = Segmenter.from_checkpoint(tmp_path / "model", inference=MULTI_SCALE)
    expected = Segmenter(*changed(**MULTI_SCALE))(photo(50, 60)).labels
    np.testing.assert_array_equal(segmenter(photo(50, 60)).labels, expected)


def test_dtype_of_a_checkpoint_can_be_changed(tmp_path):
    """Both ways; the scores are those of the other dtype, which rounds."""
    config, variables = tiny_model()
    save_checkpoint(tmp_path / "exact", config, variables, load_classes("cityscapes"))
    in_bfloat16 = config.copy_and_resolve_references()
    in_bfloat16.model.dtype = "bfloat16"
    save_checkpoint(tmp_path / "rounded", in_bfloat16, variables, load_classes("cityscapes"))

    def scores(name, **settings):
        return Segmenter.from_pretrained(tmp_path / name, **settings)(PHOTOS["a"], scores=True).scores

    exact, rounded = scores("exact"), scores("rounded")
    np.testing.assert_array_equal(scores("exact", dtype="bfloat16"), rounded)
    np.testing.assert_array_equal(scores("rounded", dtype="float32"), exact)
    assert 0 < np.abs(rounded - exact).mean() < 0.1 * exact.std()
    with pytest.raises(ValueError, match="config.model.dtype is 'float16'; choose one of float32, bfloat16"):
        scores("exact", dtype="float16")


def test_backbone_alone_is_refused(tmp_path):
    config, variables = tiny_model()
    backbone = {"params": {"backbone": variables["params"]["backbone"]}}
    save_checkpoint(tmp_path / "backbone", config, backbone, load_classes("cityscapes"), contents="backbone")
    with pytest.raises(ValueError, match="only a backbone"):
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
    with pytest.raises(ValueError, match="config.model.num_classes is 19, but the data have 2 classes"):
        Segmenter(*tiny_model(), ClassTable(("a", "b"), np.zeros((2, 3), np.uint8)))


def test_damaged_weights_are_noticed():
    config, variables = tiny_model()
    damaged = jax.tree.map(np.array, variables)
    damaged["params"]["decoder"]["class_embed"]["bias"][3] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        Segmenter(config, damaged)(PHOTOS["a"])
    with pytest.raises(FloatingPointError, match="^holiday.jpg: the network's output is not finite"):
        list(Segmenter(config, damaged).segment_all([("holiday.jpg", PHOTOS["a"])]))


def test_a_wrong_image_among_many_is_named():
    photos = [("a.png", PHOTOS["a"]), ("b.png", np.zeros((8, 8), np.uint8))]
    with pytest.raises(ValueError, match="^b.png: image must be RGB"):
        list(Segmenter(*tiny_model()).segment_all(photos))
