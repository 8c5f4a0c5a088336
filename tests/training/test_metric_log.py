"""The files of a training's numbers: what they hold, also if the disk is full, and what TensorBoard reads."""

import io
import json
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from fasseg_jax.runtime.files import WriteError
from fasseg_jax.training.metric_log import MetricLog
from tests.helpers.full_disk import limited_files

VALUES = {"loss": 1.5, "mean_iou": 0.25}
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def read_events(folder) -> list[Event]:
    """The events of the only file in a folder."""
    (file,) = folder.iterdir()
    content, events = io.BytesIO(file.read_bytes()), []
    while header := content.read(12):
        record = content.read(struct.unpack("<Q", header[:8])[0])
        assert len(content.read(4)) == 4
        events.append(Event.FromString(record))
    return events


def write_all(log: MetricLog) -> None:
    log.numbers(7, VALUES)
    log.picture(8, "photo", PICTURE)
    log.close()


def test_events_are_those_of_the_usual_writer(tmp_path):
    write_all(MetricLog(tmp_path, steps=10, first_step=3))
    usual = SummaryWriter(str(tmp_path / "usual"), purge_step=3)
    for name, value in VALUES.items():
        usual.add_scalar(name, value, 7)
    usual.add_image("photo", PICTURE, 8, dataformats="HWC")
    usual.close()
    ours, theirs = read_events(tmp_path / "tensorboard"), read_events(tmp_path / "usual")
    assert ours[0].file_version == theirs[0].file_version and min(event.wall_time for event in ours) > 1e9
    assert (ours[1].step, ours[1].session_log) == (theirs[2].step, theirs[2].session_log)  # hides later steps
    found = {value.tag: (event.step, value) for event in ours for value in event.summary.value}
    expected = {value.tag: (event.step, value) for event in theirs for value in event.summary.value}
    assert found == expected and found.keys() == {"loss", "mean_iou", "photo"}
    step, value = found["photo"]
    assert step == 8
    np.testing.assert_array_equal(Image.open(io.BytesIO(value.image.encoded_image_string)), PICTURE)


def test_records_are_those_of_the_usual_writer(tmp_path):
    write_all(MetricLog(tmp_path, steps=10, first_step=0))
    writer = RecordWriter(str(tmp_path / "usual"))
    for event in read_events(tmp_path / "tensorboard"):
        writer.write(event.SerializeToString())
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.read_bytes() == (tmp_path / "usual").read_bytes()


def test_a_full_disk_is_an_error_at_once_and_nothing_is_left_half_written(tmp_path):
    """No thread may have to be told, and closing may have nothing to write."""
    threads = threading.active_count()
    log = MetricLog(tmp_path, steps=10, first_step=0)
    for space, file in ((30, "metrics.jsonl"), (100, "tensorboard/events.out")):
        with limited_files(space), pytest.raises(WriteError, match=f"cannot write {tmp_path}/{file}.*: File too large"):
            log.numbers(1, VALUES)
    with limited_files(1000), pytest.raises(WriteError, match="tensorboard/events.out"):
        log.picture(2, "photo", PICTURE)
    assert threading.active_count() == threads
    with limited_files(0):
        log.close()
    assert [event.step for event in read_events(tmp_path / "tensorboard")] == [0, 0]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (values,) = (json.loads(line) for line in lines)
    assert abs(values.pop("time") - time.time()) < 3600
    assert values == {"step": 1, **VALUES}


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_files_that_cannot_be_made_are_named(tmp_path, name):
    if name == "tensorboard":
        (tmp_path / name).write_text("a file")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(WriteError, match=f"cannot write {tmp_path}/{name}: "):
        MetricLog(tmp_path, steps=10, first_step=0)


def test_other_hosts_write_nothing(tmp_path):
    write_all(MetricLog(tmp_path, steps=10, first_step=0, writes=False))
    assert not list(tmp_path.iterdir())
