"""Parquet files as the library `datasets` writes them: exact labels, and what is said about odd ones."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from fasseg_jax.data.classes import DataError
from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import

FILES = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])  # of the feature Image


@pytest.fixture
def source(tmp_path):
    return tmp_path / "downloaded"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "data"


def encoded(values, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def photo(seed, height=36):
    return np.random.default_rng(seed).integers(0, 256, (height, 48, 3), np.uint8)


def write_table(path, photos, labels, label_column="annotation"):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": pyarrow.array(photos, FILES), label_column: pyarrow.array(labels, FILES)}
    parquet.write_table(pyarrow.table(columns | {"id": list(range(len(photos)))}), path, row_group_size=2)


def labels_of(seed):
    labels = ragged_labels(seed)
    labels[0] = 255
    return labels


@pytest.mark.parametrize("column", ["annotation", "label", "semantic_segmentation"])
def test_rows_of_all_groups_come_back_exactly(source, output, column):
    seeds = range(5)
    photos = [encoded(photo(seed), "jpeg" if seed % 2 else "png") for seed in seeds]
    write_table(source / "data/train-00000-of-00001.parquet", photos, [encoded(labels_of(s)) for s in seeds], column)
    write_table(source / "data/validation-00000-of-00001.parquet", photos[:1], [encoded(labels_of(9))], column)
    (source / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "2": "car", "3": "tree", "4": "sea"}))
    result = run_import(source, output)
    assert not result.problems and class_names(output) == ["sky", "road", "car", "tree", "sea"]
    for seed in seeds:
        name = f"train-00000-of-00001-{seed:06d}"
        np.testing.assert_array_equal(read_labels(output, name), labels_of(seed))
        suffix = "jpg" if seed % 2 else "png"
        assert (output / f"images/training/{name}.{suffix}").read_bytes() == photos[seed]["bytes"]
    np.testing.assert_array_equal(read_labels(output, "validation-00000-of-00001-000000"), labels_of(9))
    assert run_import(source, output).kept == 6


def test_classes_without_names_are_counted(source, output):
    write_table(source / "train.parquet", [encoded(photo(0))], [encoded(labels_of(0))])
    result = run_import(source, output)
    assert class_names(output) == [f"class {index}" for index in range(4)]
    assert result.notes == ("the data do not name their classes; list the names by --classes=FILE, one a line",)


def test_odd_rows_and_files(source, output):
    good = encoded(labels_of(0))
    labels = [good, {"bytes": b"x", "path": None}, None, encoded(ragged_labels(0, 7)), encoded(labels_of(0)[:30])]
    write_table(source / "train.parquet", [encoded(photo(0))] * 5, labels)
    write_table(source / "other.parquet", [encoded(photo(0))], [good], "depth")
    (source / "text.parquet").write_text("text")
    result = run_import(source, output, classes=("a", "b", "c", "d"))
    said = "\n".join(result.problems)
    assert result.written == 1 and len(result.problems) == 6
    assert "other.parquet: has the picture columns depth, image; one must be called" in said
    assert "text.parquet: is no parquet file" in said
    assert "train.parquet, row 1: cannot be read as a label map" in said
    assert "the column 'annotation' holds no picture" in said
    assert "train.parquet, row 3: holds the ids [4, 5, 6], but there are 4 classes" in said
    assert "train.parquet, row 4: its labels are 48x30 pixels" in said
    (source / "id2label.json").write_text('{"1": "a"}')
    with pytest.raises(DataError, match="the ids from 0 without gaps"):
        run_import(source, output.with_name("b"))


def test_cells_may_name_files(source, output):
    (source / "photos").mkdir(parents=True)
    for name, cell in (("a.png", encoded(photo(0))), ("b.png", encoded(labels_of(0)))):
        (source / "photos" / name).write_bytes(cell["bytes"])
    files = [{"bytes": None, "path": path} for path in ("photos/a.png", str(source / "photos/b.png"), "gone.png")]
    write_table(source / "train.parquet", [files[0], files[2]], [files[1], files[1]])
    result = run_import(source, output)
    np.testing.assert_array_equal(read_labels(output, "train-000000"), labels_of(0))
    assert len(result.problems) == 1 and "names" in result.problems[0] and "gone.png" in result.problems[0]
