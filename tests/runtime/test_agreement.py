"""Errors and differences of hosts end all of them. tests/training/test_train.py does it with processes."""

import pytest

from fasseg_jax.runtime import agreement
from fasseg_jax.runtime.agreement import fail_together, package_versions, require_equal
from fasseg_jax.runtime.files import WriteError


def other_hosts(monkeypatch, *values):
    """The hosts after this one, which is host 0, report `values`."""
    monkeypatch.setattr(agreement, "all_gather_objects", lambda value: [value, *values])


def test_alone_an_error_is_its_own():
    with fail_together():
        pass
    with pytest.raises(FileNotFoundError, match="absent"), fail_together():
        raise FileNotFoundError("absent")


def test_errors_of_others_are_raised_here(monkeypatch):
    other_hosts(monkeypatch, None, [False, "photo.jpg: is damaged"])
    with pytest.raises(ValueError, match="^host 2: photo.jpg: is damaged$"), fail_together():
        pass
    with pytest.raises(OSError, match="^mine$"), fail_together():
        raise OSError("mine")
    other_hosts(monkeypatch, [True, "cannot write run: No space left on device"])
    with pytest.raises(WriteError, match="^host 1: cannot write run: No space"), fail_together():
        pass
    other_hosts(monkeypatch, None, None)
    with fail_together():
        pass


def test_differences_are_named(monkeypatch):
    facts = {"config.train.seed": "0", "class 1": "'car'"}
    other_hosts(monkeypatch, facts, dict(facts))
    require_equal(facts)
    other_hosts(monkeypatch, facts, {**facts, "config.train.seed": "1"})
    with pytest.raises(
        ValueError, match="host 2 was started otherwise than host 0: config.train.seed is 1, on host 0 0"
    ):
        require_equal(facts)
    other_hosts(monkeypatch, {"class 1": "'car'", "class 2": "'bus'"})
    with pytest.raises(
        ValueError, match="class 2 is 'bus', on host 0 absent; config.train.seed is absent, on host 0 0"
    ):
        require_equal(facts)
    other_hosts(monkeypatch, {str(n): "x" for n in range(9)})
    with pytest.raises(ValueError, match="and 8 more differences"):
        require_equal(facts)


def test_versions_are_those_of_the_modules():
    import jax
    import numpy as np

    assert package_versions()["jax"] == jax.__version__ and package_versions()["numpy"] == np.__version__
