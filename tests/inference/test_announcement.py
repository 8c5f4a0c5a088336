"""Programs say so before they fall silent to compile."""

import sys

import jax.numpy as jnp
import pytest
from tqdm import tqdm

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference import explain, segmenter
from fasseg_jax.inference.scores import ViewPrediction
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.compilation import announce
from tests.helpers.tiny import photo, tiny_config

LINE = "Compiling {} for {}x{} pixels (height x width): up to some minutes the first time, later seconds."


@pytest.fixture
def events(monkeypatch):
    """What happens, in order: calls of a stand-in for the network, and announcements."""
    happened = []

    def predict(model, mesh, variables, images):
        batch, height, width, _ = images.shape
        happened.append((height, width))
        masks = jnp.zeros((batch, height // 4, width // 4, 9))
        return ViewPrediction(jnp.zeros((batch, 9, 19)), masks), jnp.ones(batch, bool)

    monkeypatch.setattr(segmenter, "_predict", predict)
    return happened


def test_each_size_is_announced_once_and_before_it_is_compiled(events):
    segment = Segmenter(tiny_config(), {}, load_classes("cityscapes"))
    segment.announce = events.append
    for size in ((64, 96), (70, 100), (64, 128), (64, 96), (64, 128)):
        segment(photo(*size))
    small, large = (64, 96), (64, 128)
    line = LINE.format("the network", 64, 96), LINE.format("the network", 64, 128)
    assert events == [line[0], small, small, line[1], large, small, large]


def test_nothing_is_announced_unless_asked(events, capsys):
    Segmenter(tiny_config(), {})(photo(64, 96))
    assert events == [(64, 96)] and capsys.readouterr() == ("", "")


def test_explanations_are_announced(monkeypatch):
    """They compile another program for the same size."""
    lines = []

    def trace(model, variables, images):
        assert lines == [LINE.format("the explanation", 64, 96)]
        raise InterruptedError

    monkeypatch.setattr(explain, "_trace", trace)
    segment = Segmenter(tiny_config(), {})
    segment.announce = lines.append
    image = photo(64, 96)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            explain.explain(segment, image, image[..., 0])


def test_announcements_leave_standard_output_and_progress_bars_alone(capsys):
    with tqdm(total=2, file=sys.stderr) as bar:
        announce("Compiling.")
        bar.update()
    output, errors = capsys.readouterr()
    assert output == "" and "Compiling.\n" in errors.replace("\r", "\n")
