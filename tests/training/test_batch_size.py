"""The batch that fits the memory: what is tried, what XLA says, and what a resumed run takes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fasseg_jax.runtime.distributed import make_mesh
from fasseg_jax.training import batch_size
from fasseg_jax.training.batch_size import batch_size_of_run, batch_sizes, fit_batch_size, usable_memory
from tests.helpers.tiny import tiny_config
from tests.helpers.training_runs import train


@pytest.mark.parametrize(
    ("largest", "parts", "sizes"),
    [(16, 1, [16, 8, 4, 2, 1]), (16, 8, [16, 8]), (16, 3, [15, 6, 3]), (12, 2, [12, 6, 2]), (1, 1, [1]), (4, 8, [8])],
)
def test_sizes(largest, parts, sizes):
    assert list(batch_sizes(largest, parts)) == sizes


def test_usable_memory_is_a_part_of_the_computers():
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(line for line in lines if line.startswith("MemAvailable:"))
    expected = 0.8 * 1024 * int(free.split()[1]) / len(make_mesh().local_devices)
    assert abs(usable_memory(make_mesh()) / expected - 1) < 0.2  # other programs take and give


class SmallStep:
    """In place of a training step: XLA's figures are of a program whose arrays grow with the batch, as a step's do.

    A step takes half a minute to compile. That a true one is tried is shown by the run below.
    """

    def __init__(self, most_images: int = 99):
        self.most_images = most_images

    def lower(self, state, images, targets):
        def step(state, images, targets):
            pixels = images.reshape(len(images), -1).astype(jnp.float32)
            return state, jnp.sum(jnp.sort(pixels, axis=1) * jnp.sort(pixels + 1, axis=1))

        self.lowered = jax.jit(step, donate_argnums=0).lower(state, images, targets)
        return self

    def compile(self):
        self.compiled = self.lowered.compile()
        return self

    def memory_analysis(self):
        return self.compiled.memory_analysis()

    def __call__(self, state, images, targets):
        if len(images) > self.most_images:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return self.compiled(state, images, targets)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(batch_size, "make_train_step", lambda *arguments: SmallStep())
    config = tiny_config("vit")
    config.model.decoder.num_layers = 2
    config.train.batch_size = 8
    return config


@pytest.mark.slow
def test_the_largest_that_fits_is_found(config, monkeypatch):
    needed: dict[int, int] = {}
    lines: list[str] = []
    assert fit_batch_size(config, make_mesh(), 5, lines.append) == 8  # of 64x96 pixels
    assert lines[0].startswith("Trying a batch of 8") and lines[1].startswith("Batch size 8: a step needs 0.")
    for size in (8, 4, 2):
        needed[size], fits = batch_size._try(config, make_mesh(), size, 5, 0)
        assert not fits
    # Linear in the batch but for what any batch needs, such as the parameters.
    assert needed[8] - needed[4] == pytest.approx(2 * (needed[4] - needed[2]), rel=0.3)
    monkeypatch.setattr(batch_size, "usable_memory", lambda mesh: (needed[4] + needed[8]) // 2)
    lines.clear()
    assert fit_batch_size(config, make_mesh(), 5, lines.append) == 4
    assert [line.split(":")[0] for line in lines] == ["Trying a batch of 8", "Trying a batch of 4", "Batch size 4"]
    monkeypatch.setattr(batch_size, "usable_memory", lambda mesh: 1000)
    with pytest.raises(ValueError, match="batch_size=auto: not even a batch of 1 fits: it needs 0.* GB on each device"):
        fit_batch_size(config, make_mesh(), 5, lines.append)


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_does_not_fit(config, monkeypatch):
    """It fits by XLA's numbers, and fails when it runs on more than two images."""
    monkeypatch.setattr(batch_size, "make_train_step", lambda *arguments: SmallStep(most_images=2))
    config.train.batch_size = 4
    assert fit_batch_size(config, make_mesh(), 5, lambda line: None) == 2


@pytest.mark.slow
def test_a_resumed_run_keeps_its_batch_size(tmp_path):
    """The number that was found is in the checkpoints; the same command goes on with it, and tries nothing."""
    first = train(tmp_path, train__batch_size="auto", train__steps=2)
    assert "Batch size 8: a step needs" in first.stderr
    assert batch_size_of_run(tmp_path) == 8
    fields = {"train__batch_size": 4, "train__fit_batch_size": True, "train__steps": 4}
    second = train(tmp_path, **fields)
    assert "Trying a batch" not in second.stderr and "batch_size" not in second.stdout
    assert batch_size_of_run(tmp_path) == 8
    assert batch_size_of_run(tmp_path / "other") is None
