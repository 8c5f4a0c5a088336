"""Many photos from files to files: each result is that of the photo by itself, whatever else is read or written."""

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference import photo_files
from fasseg_jax.inference.photo_files import ResultFiles, segment_files
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.files import WriteError
from fasseg_jax.visualization.overlay import draw_overlay
from tests.helpers.tiny import photo, tiny_model

NUM_PHOTOS = 12  # more than are read ahead and written at once


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(*tiny_model(), load_classes("cityscapes"))


@pytest.fixture
def photos(tmp_path):
    """{path: name of its results}, in two sizes and two folders."""
    found = {}
    for i in range(NUM_PHOTOS):
        path = tmp_path / f"photos/{i % 3}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(64, 96 if i % 2 else 70, i)).save(path)
        found[path] = path.relative_to(tmp_path / "photos").with_suffix("")
    return found


def refuse(path, error):
    raise AssertionError(f"{path} was skipped: {error}")


@pytest.mark.parametrize("batches_pay", [False, True])
def test_results_are_those_of_each_photo(segmenter, photos, tmp_path, batches_pay, monkeypatch):
    """One by one, and in batches as on a GPU."""
    monkeypatch.setattr(Segmenter, "batches_pay", batches_pay)
    files = ResultFiles(tmp_path / "results", scores=True)
    found = {file.path: result for file, result in segment_files(segmenter, photos, files, skip=refuse)}
    assert found.keys() == photos.keys()
    monkeypatch.undo()
    for path, name in photos.items():
        image = np.asarray(Image.open(path))
        expected = segmenter(image, scores=True)
        labels = np.asarray(Image.open(tmp_path / f"results/{name}_labels.png"))
        np.testing.assert_array_equal(labels, found[path].labels)
        assert (labels == expected.labels).mean() > 0.999  # another batch size rounds otherwise
        overlay = draw_overlay(image, labels, segmenter.classes)
        np.testing.assert_array_equal(Image.open(tmp_path / f"results/{name}_overlay.png"), overlay)
        np.testing.assert_allclose(np.load(tmp_path / f"results/{name}_scores.npy"), expected.scores, atol=1e-3)


def test_what_cannot_be_read_is_skipped(segmenter, photos, tmp_path):
    broken = list(photos)[3]
    broken.write_bytes(broken.read_bytes()[:50])
    skipped = []
    files = ResultFiles(tmp_path / "results")
    found = list(segment_files(segmenter, photos, files, skip=lambda path, error: skipped.append((path, str(error)))))
    assert len(found) == NUM_PHOTOS - 1
    ((path, message),) = skipped
    assert path == broken and str(broken) in message


def test_stopping_writes_what_is_computed(segmenter, photos, tmp_path, monkeypatch):
    computed = []
    results = segmenter.results

    def counted(*arguments, **settings):
        for found in results(*arguments, **settings):
            computed.append(found[0].path)
            yield found

    monkeypatch.setattr(segmenter, "results", counted)
    written = []
    files = ResultFiles(tmp_path / "results")
    for file, _ in segment_files(segmenter, photos, files, skip=refuse, stopped=lambda: len(computed) > 4):
        assert (tmp_path / f"results/{file.name}_overlay.png").exists()
        written.append(file.path)
    assert written == computed[:4] and len(computed) == 5  # the fifth came after the signal


def test_a_result_that_cannot_be_written_ends_it(segmenter, photos, tmp_path, monkeypatch):
    def full_disk(picture, file, compression=6):
        raise WriteError(f"cannot write {file}: No space left on device")

    monkeypatch.setattr(photo_files, "_save", full_disk)
    with pytest.raises(WriteError, match=r"labels\.png: No space left"):
        list(segment_files(segmenter, photos, ResultFiles(tmp_path / "results"), skip=refuse))
