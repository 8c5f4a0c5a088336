"""Training batches: a step has the same batch on any number of hosts and threads; an epoch has every sample once."""

import dataclasses

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fasseg_jax.config import ConfigError
from fasseg_jax.data import Batch, DataError, TrainingBatches, open_source, read_ahead
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from tests.helpers.data_cases import folder_config, shapes_config, write_folder, write_image


@pytest.fixture
def config():
    return shapes_config()


def make_batches(config, **kwargs) -> TrainingBatches:
    return TrainingBatches(open_source(config, "training"), config, **{"seed": 7, **kwargs})


def assert_equal(got: Batch, expected: Batch):
    for field in dataclasses.fields(Batch):
        got_value, expected_value = getattr(got, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(got_value, expected_value)
        assert np.asarray(got_value).dtype == np.asarray(expected_value).dtype


def test_fields(config):
    batch = make_batches(config)[0]
    assert batch.images.shape == (4, 32, 64, 3) and batch.images.dtype == np.uint8
    assert batch.labels.shape == (4, 32, 64) and batch.labels.dtype == np.uint8
    assert batch.classes.shape == (4, 6) and batch.classes.dtype == np.int32
    source = open_source(config, "training")
    assert batch.names == tuple(source[index].name for index in batch.index)


def test_classes_are_those_present(config):
    for batch in make_batches(config):
        for labels, classes in zip(batch.labels, batch.classes, strict=True):
            present = [label for label in np.unique(labels) if label != 255]
            np.testing.assert_array_equal(classes, present + [-1] * (6 - len(present)))


def test_crop_without_labels_has_no_classes(tmp_path):
    root = write_folder(tmp_path / "data")
    for index in range(5):
        labels = np.asarray(open_source(folder_config(root), "training")[index].labels)
        write_image(root / f"annotations/training/{index}.png", np.full_like(labels, 255))
    assert (make_batches(folder_config(root))[0].classes == -1).all()


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_make_contiguous_blocks(config, num_hosts):
    one_host = make_batches(config)
    hosts = [make_batches(config, host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    for step in (0, 3, 19):
        parts = [dataclasses.asdict(host[step]) for host in hosts]
        assert all(len(part["names"]) == 4 // num_hosts for part in parts)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(Batch(**joined | {"names": tuple(joined["names"].tolist())}), one_host[step])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_nothing(config, num_threads):
    config.data.num_threads = num_threads
    batches = make_batches(config)
    read = list(read_ahead(batches, config.data))
    assert len(read) == len(batches) == 20
    for step, batch in enumerate(read):
        assert_equal(batch, batches[step])


def test_epochs(config):
    """Ten samples in batches of four: two epochs take five steps, and one batch holds parts of both."""
    batches = make_batches(config)
    visited = np.concatenate([batches[step].index for step in range(20)])
    epochs = visited.reshape(8, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (8, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_each_epoch_draws_another_augmentation(config):
    batches = make_batches(config)
    crops = [
        (index, image.tobytes()) for batch in batches for index, image in zip(batch.index, batch.images, strict=True)
    ]
    assert len(set(crops)) == len(crops) == 80


def test_no_steps_beyond_the_last(config):
    batches = make_batches(config)
    for step in (-1, 20):
        with pytest.raises(IndexError):
            batches[step]


def test_seed(config):
    assert_equal(make_batches(config)[2], make_batches(config)[2])
    first, other = make_batches(config), make_batches(config, seed=8)
    orders = [np.concatenate([batches[step].index for step in range(5)]) for batches in (first, other)]
    assert (orders[0] != orders[1]).any()
    config.data.shapes.training = 1  # the same sample: only the augmentation can differ
    assert (make_batches(config)[0].images != make_batches(config, seed=8)[0].images).any()


def test_starting_at_a_step(config):
    batches = make_batches(config)
    iterator = read_ahead(batches, config.data, first_step=17)
    for step in (17, 18, 19):
        assert_equal(next(iterator), batches[step])
    with pytest.raises(StopIteration):
        next(iterator)


def test_iterator_is_restored_from_a_checkpoint(config, tmp_path):
    batches = make_batches(config)
    iterator = read_ahead(batches, config.data)
    for _ in range(6):
        next(iterator)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(6, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        fresh = read_ahead(make_batches(config), config.data)
        manager.restore(6, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    for step in (6, 7):
        assert_equal(next(fresh), batches[step])


def test_too_many_classes(config):
    config.data.max_targets = 1
    config.augmentation.update(short_sides=(48,), crop=(64, 64))
    with pytest.raises(DataError, match=r"shapes/training/\d+: a crop holds \d classes, more than .*max_targets = 1"):
        make_batches(config)[0]


def test_reading_ahead_raises_the_error_of_a_file(tmp_path):
    config = folder_config(write_folder(tmp_path / "data"))
    (tmp_path / "data/images/training/3.jpg").write_bytes(b"?")
    with pytest.raises(DataError, match=r"3\.jpg: cannot be read as a picture"):
        list(read_ahead(make_batches(config), config.data))


def test_configuration_mistakes(config):
    with pytest.raises(DataError, match="batch_size = 4 cannot be shared by 3 hosts"):
        make_batches(config, num_hosts=3)
    config.augmentation.crop = (32, 40)
    with pytest.raises(ConfigError, match="crop is .*multiple of 32"):
        make_batches(config)
    empty = ShapesSource("training", 0, (48, 64), load_classes("shapes"), 255)
    with pytest.raises(DataError, match="holds no samples"):
        TrainingBatches(empty, config, seed=7)
