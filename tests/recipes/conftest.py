"""What the tests of recipes share."""

import pytest

from tests.helpers.cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
    """Stand-ins for the cloud's programs."""
    return Cloud(tmp_path)
