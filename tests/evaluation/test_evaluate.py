"""The evaluation's parts, with a stand-in for the network: reading ahead, counting, progress, names of files."""

import csv
import json
import time

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, Sample, open_source
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.evaluation.evaluate import ImageResult, evaluate_images, evaluate_source, sum_counts
from fasseg_jax.evaluation.metrics import Counts
from fasseg_jax.evaluation.progress import EvaluationProgress, OtherEvaluationError, describe_evaluation
from fasseg_jax.evaluation.results import write_images
from fasseg_jax.evaluation.submission import result_name, write_labels
from fasseg_jax.inference.segmenter import Segmentation
from tests.helpers.data_cases import write_folder, write_image

NUM_CLASSES = 6


class Images:
    """Seven noisy images; the photo's first channel is what the stand-in predicts."""

    classes = load_classes("shapes")
    problems = ()

    def __init__(self, damaged=()):
        self.damaged = damaged
        self.versions = {}
        self.reading = self.most_reading = 0

    def __len__(self):
        return 7

    def __getitem__(self, index):
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        if index in self.damaged:
            raise DataError(f"image {index} is damaged")
        rng = np.random.default_rng(index)
        truth, prediction = rng.integers(0, NUM_CLASSES, (2, 9 + index, 12), np.uint8)
        truth[0] = 255
        return Sample(np.stack([prediction] * 3, axis=-1), truth, f"folder/images/validation/{index}.png")

    def version(self, index):
        return self.versions.get(index, "1")


class StandIn:
    """Predicts the photo's first channel, two photos late and in another order, as batches do.

    The uncertainty is a hundredth of the first pixel.
    """

    def __init__(self, source=None):
        self.source = source

    def results(self, photos, batch_size=1, uncertainty=False):
        waiting = []
        for key, photo in photos:
            waiting.append((key, Segmentation(photo[..., 0], None, photo[0, 0, 0] / 100 if uncertainty else None)))
            if len(waiting) == 3:
                yield waiting.pop(1)
                if self.source:
                    self.source.reading -= 1
        yield from waiting[::-1]


def expected(indices):
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    for index in indices:
        sample = Images()[index]
        for truth, prediction in zip(sample.labels.flat, sample.image[..., 0].flat, strict=True):
            if truth != 255:
                confusion[truth, prediction] += 1
    return confusion


@pytest.mark.parametrize("num_threads", [1, 3])
def test_images_are_counted(num_threads):
    saved = {}
    results = list(evaluate_images(StandIn(), Images(), range(7), 255, num_threads=num_threads, save=saved.__setitem__))
    assert sorted(result.index for result in results) == list(range(7))
    for result in results:
        np.testing.assert_array_equal(result.counts(NUM_CLASSES).confusion, expected([result.index]))
        assert result.name == f"folder/images/validation/{result.index}.png"
        np.testing.assert_array_equal(saved[result.name], Images()[result.index].image[..., 0])
        assert result.uncertainty == Images()[result.index].image[0, 0, 0] / 100
    total = sum_counts(results, NUM_CLASSES)
    np.testing.assert_array_equal(total.confusion, expected(range(7)))
    union = sum(result.counts(NUM_CLASSES).boundary_union for result in results)
    np.testing.assert_array_equal(total.boundary_union, union)
    assert union.sum() > 0


def test_every_second_image_without_boundaries():
    counts = evaluate_source(StandIn(), Images(), 255, stride=2)
    np.testing.assert_array_equal(counts.confusion, expected(range(0, 7, 2)))
    assert not counts.boundary_union.any()


def test_reading_ahead_is_bounded():
    source = Images()
    list(evaluate_images(StandIn(source), source, range(7), 255, num_threads=2))
    assert source.most_reading <= 3 + 2 + 1  # in the stand-in, in advance, and the one whose result is taken


def test_damaged_images_stop_or_are_skipped():
    with pytest.raises(DataError, match="image 3 is damaged"):
        list(evaluate_images(StandIn(), Images(damaged=[3]), range(7), 255))
    skipped = []
    results = list(evaluate_images(StandIn(), Images(damaged=[3, 6]), range(7), 255, skip=skipped.append))
    assert [str(error) for error in skipped] == ["image 3 is damaged", "image 6 is damaged"]
    np.testing.assert_array_equal(sum_counts(results, NUM_CLASSES).confusion, expected([0, 1, 2, 4, 5]))


def test_an_evaluation_that_is_left_ends_its_threads():
    before = time.monotonic()
    images = evaluate_images(StandIn(), Images(), range(7), 255, num_threads=4)
    next(images)
    images.close()
    assert time.monotonic() - before < 10


def test_results_come_back_from_json_exactly():
    vector = np.zeros(NUM_CLASSES * (NUM_CLASSES + 2), np.int64)
    vector[[3, 20, 47]] = [1, 2**40 + 1, 7]
    result = ImageResult.from_counts(5, "ä b.png", "1 2", Counts.from_vector(vector), 0.1 + 0.2)
    back = ImageResult.from_json(json.loads(json.dumps(result.to_json())))
    assert (back.index, back.name, back.version) == (5, "ä b.png", "1 2")
    np.testing.assert_array_equal(back.counts(NUM_CLASSES).to_vector(), vector)
    assert back.uncertainty == 0.1 + 0.2


def test_progress_of_versions_without_uncertainty_goes_on(tmp_path):
    with EvaluationProgress.open(tmp_path, {}, Images()).writer() as writer:
        for result in evaluate_images(StandIn(), Images(), range(3), 255):
            writer.add(result)
    lines = [json.loads(line) for line in (tmp_path / "host_0.jsonl").read_text().splitlines()]
    for line in lines:
        del line["uncertainty"]
    (tmp_path / "host_0.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = EvaluationProgress.open(tmp_path, {}, Images()).done
    assert sorted(done) == [0, 1, 2] and {result.uncertainty for result in done.values()} == {None}
    new = ImageResult.from_counts(3, "d", "1", Counts.zeros(NUM_CLASSES), 0.25)
    write_images(tmp_path / "images.csv", [*done.values(), new], dict(enumerate("abcd")), NUM_CLASSES)
    with (tmp_path / "images.csv").open(newline="") as rows:
        assert [row["uncertainty"] for row in csv.DictReader(rows)] == ["", "", "", "0.250000"]


def test_progress_that_ends_anywhere_goes_on(tmp_path):
    """Whatever bytes a killed run has left of its last lines."""
    results = {result.index: result for result in evaluate_images(StandIn(), Images(), range(3), 255)}
    progress = EvaluationProgress.open(tmp_path, {"a": 1}, Images())
    with progress.writer() as writer:
        for index in range(3):
            writer.add(results[index])
    file = tmp_path / "host_0.jsonl"
    content = file.read_bytes()
    ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content) + 1, 7):
        file.write_bytes(content[:length])
        progress = EvaluationProgress.open(tmp_path, {"a": 1}, Images())
        assert sorted(progress.done) == list(range(sum(end <= length for end in ends)))
        with progress.writer() as writer:
            for index in range(len(progress.done), 3):
                writer.add(results[index])
        assert file.read_bytes() == content


def test_changed_images_are_done_again(tmp_path):
    source = Images()
    with EvaluationProgress.open(tmp_path, {}, source).writer() as writer:
        for result in evaluate_images(StandIn(), source, range(7), 255):
            writer.add(result)
    source.versions = {2: "2", 4: "2"}
    progress = EvaluationProgress.open(tmp_path, {}, source)
    assert sorted(progress.done) == [0, 1, 3, 5, 6] and progress.changed == 2
    with progress.writer() as writer:
        for result in evaluate_images(StandIn(), source, [2, 4], 255):
            writer.add(result)
    progress = EvaluationProgress.open(tmp_path, {}, source)
    assert sorted(progress.done) == list(range(7)) and progress.changed == 0


def test_another_evaluation_and_damaged_files_are_refused(tmp_path):
    folder = tmp_path / "out/progress"
    config = load_config("configs/shapes.py")
    variables = {"params": {"a": np.arange(4.0), "b": np.zeros(3, np.float32)}}
    classes = load_classes("shapes")
    evaluation = describe_evaluation(config, variables, classes, "none")
    with EvaluationProgress.open(folder, evaluation, Images()).writer() as writer:
        for result in evaluate_images(StandIn(), Images(), range(2), 255):
            writer.add(result)

    config.data.update(num_threads=7, root="elsewhere")  # immaterial
    config.train.steps = 3
    again = describe_evaluation(config, {"params": dict(variables["params"])}, classes, "none")
    assert len(EvaluationProgress.open(folder, again, Images()).done) == 2

    config.inference.multi_scale.short_sides = (64, 96)
    variables["params"]["b"][1] = 1e-30
    other = describe_evaluation(config, variables, load_classes("cityscapes"), "none")
    with pytest.raises(OtherEvaluationError) as error:
        EvaluationProgress.open(folder, other, Images())
    assert f"{tmp_path / 'out'} holds another evaluation" in str(error.value)
    assert "config.inference.multi_scale.short_sides was [96, 128, 160], is [64, 96]" in str(error.value)
    assert "weights differ" in str(error.value) and "class names differ" in str(error.value)

    lines = (folder / "host_0.jsonl").read_bytes()
    (folder / "host_0.jsonl").write_bytes(lines.replace(b'"index"', b'"indx"', 1))
    with pytest.raises(OtherEvaluationError, match="host_0.jsonl, line 1 is damaged"):
        EvaluationProgress.open(folder, evaluation, Images())
    assert not EvaluationProgress.open(folder, other, Images(), restart=True).done
    assert not (folder / "host_0.jsonl").exists()


def test_versions_tell_files_apart(tmp_path):
    config = load_config(f"configs/folder.py:{write_folder(tmp_path / 'data')}")
    before = [open_source(config, "training").version(index) for index in range(5)]
    assert len(set(before)) == 5
    write_image(tmp_path / "data/annotations/training/2.png", np.ones((50, 50), np.uint8))
    after = [open_source(config, "training").version(index) for index in range(5)]
    assert [one != other for one, other in zip(before, after, strict=True)] == [False, False, True, False, False]
    small, large = (
        ShapesSource("validation", 3, (size, size), load_classes("shapes"), 255).version(1) for size in (32, 64)
    )
    assert small != large


def test_label_files(tmp_path):
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    write_labels(tmp_path / "below/a.png", labels)
    write_labels(tmp_path / "b.png", labels, np.array([7, 300, 9]))
    with Image.open(tmp_path / "below/a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert (a.mode, b.mode) == ("L", "I;16")
        np.testing.assert_array_equal(np.asarray(a), labels)
        np.testing.assert_array_equal(np.asarray(b), [[7, 300], [9, 300]])


@pytest.mark.parametrize(
    ("sample", "root", "name"),
    [
        ("/data/ade/images/validation/ADE_val_00000001.jpg", "/data/ade", "ADE_val_00000001"),
        ("data/leftImg8bit/val/ulm/ulm_01_leftImg8bit.png", "data/", "ulm/ulm_01_leftImg8bit"),
        ("images/validation/street.north/3.b.jpg", "/prepared/ade20k/1.0.0", "street.north/3.b"),
        ("shapes/validation/00012", "", "00012"),
        ("/data/own/images/a/1.jpg", "/data/own", "a/1"),
        ("/data/own/valid/images/1.jpg", "/data/own", "1"),
        ("/data/own/1.jpg", "/data/own", "1"),
    ],
)
def test_names_of_results(sample, root, name):
    assert result_name(sample, root) == name
