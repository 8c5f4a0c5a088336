"""The batch that fits the memory: what is tried, what XLA says, and what a resumed run takes."""

from pathlib import Path

import jax
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


@pytest.fixture
def config():
    config = tiny_config()
    config.model.decoder.num_layers = 2
    config.loss.num_points = 32
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
    steps = batch_size.make_train_step

    class OutOfMemory:
        """A compiled step that fits by XLA's numbers, and fails when it runs on more than two images."""

        def __init__(self, step):
            self.step = step

        def lower(self, *arguments):
            self.lowered = self.step.lower(*arguments)
            return self

        def compile(self):
            self.compiled = self.lowered.compile()
            return self

        def memory_analysis(self):
            return self.compiled.memory_analysis()

        def __call__(self, state, images, targets):
            if len(images) > 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
            return self.compiled(state, images, targets)

    monkeypatch.setattr(batch_size, "make_train_step", lambda *arguments: OutOfMemory(steps(*arguments)))
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
