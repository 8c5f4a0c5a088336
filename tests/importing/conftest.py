"""The folders of every test of imports."""

import pytest


@pytest.fixture
def source(tmp_path):
    return tmp_path / "annotated"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "data"
