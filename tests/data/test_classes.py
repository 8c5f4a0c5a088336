"""Class tables: what is written is read again, and whatever a file holds, only a `DataError` comes out."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fasseg_jax.data.class_files import folder_classes
from fasseg_jax.data.classes import ClassTable, DataError, load_classes, write_classes

NAMES = st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=20)
COLORS = st.tuples(*[st.integers(0, 255)] * 3)
# Each example overwrites the files of the one before, in one folder.
FILES = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FILES
@given(st.lists(st.tuples(NAMES, COLORS, st.integers(0, 65535)), min_size=1, max_size=20), st.booleans())
def test_what_is_written_is_read(tmp_path, rows, with_label_ids):
    names, palette, label_ids = zip(*rows, strict=True)
    table = ClassTable(names, np.array(palette, np.uint8), label_ids if with_label_ids else None)
    write_classes(tmp_path / "classes.csv", table)
    again = load_classes(str(tmp_path / "classes.csv"))
    assert again.names == table.names and again.label_ids == table.label_ids
    np.testing.assert_array_equal(again.palette, table.palette)


@pytest.mark.parametrize("name", ["classes.csv", "classes.txt"])
@FILES
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_file_is_read_or_refused(tmp_path, name, content):
    header = b"id,name,r,g,b\n" if name == "classes.csv" else b"0 sky 1 2 3\n"
    for beginning in (b"", header):
        (tmp_path / name).write_bytes(beginning + content)
        try:
            assert len(folder_classes(tmp_path)) > 0
        except DataError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", [7, None, "a\x1b[31m", "two\nlines", "\udcff"])
def test_names_that_are_no_names(name):
    with pytest.raises(DataError, match="class 1: the name"):
        ClassTable(("sky", name), np.zeros((2, 3), np.uint8))
