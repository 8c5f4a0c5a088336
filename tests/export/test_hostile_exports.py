"""Exported files that are damaged or edited: each ends in one short line that names the file."""

import io
import json
import zipfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.export.load_exported import load
from tests.helpers.mutation import mutations, outcomes

PHOTO = np.arange(72, dtype=np.uint8).reshape(4, 6, 3) // 2
WRONG = ["100", -1, 0, 1.5, True, None, [], {}, 10**12, float("nan"), [1, 2, 3, "4"], "x" * 10_000, [[1]], [[1, 2, 3]]]
COUNTS = pytest.mark.parametrize("count", [100, pytest.param(1500, marks=pytest.mark.slow)])


def model(weights, photo):
    return (photo.sum(-1) * weights["a/b"][0]).astype(jnp.uint8)


@pytest.fixture(scope="module")
def members():
    """What an exported file holds; a sum stands for the network."""
    shapes = {"a/b": jax.ShapeDtypeStruct((3,), np.float32)}, jax.ShapeDtypeStruct(PHOTO.shape, np.uint8)
    exported = jax.export.export(jax.jit(model), platforms=["cpu"])(*shapes)
    metadata = {
        "format": 1,
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": ["cpu"],
        "sizes": [[4, 6]],
        "classes": {"names": ["wall", "sky"], "palette": [[1, 2, 3], [4, 5, 255]]},
        "weights": ["a/b"],
        "weights_file": None,
    }
    function = np.frombuffer(bytes(exported.serialize()), np.uint8)
    return {"metadata": as_array(metadata), "function_4x6": function, "a/b": np.full(3, 2, np.float32)}


def as_array(metadata):
    return np.frombuffer(json.dumps(metadata).encode(), np.uint8)


def refusal(path):
    with pytest.raises(ValueError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 400 + len(str(path))
    return message


def test_the_right_file_is_loaded(tmp_path, members):
    np.savez(tmp_path / "model.npz", **members)
    labels = load(tmp_path / "model.npz")(PHOTO)
    np.testing.assert_array_equal(labels, 2 * PHOTO.sum(-1))


@COUNTS
def test_mutated_files(tmp_path, members, count):
    path = tmp_path / "model.npz"
    np.savez(path, **members)
    ends = outcomes(path, path.read_bytes(), count, lambda: load(path), ValueError)
    assert ends["ValueError"] > count / 2


@COUNTS
@pytest.mark.parametrize("name", ["metadata", "function_4x6"])
def test_mutated_members(tmp_path, members, name, count):
    """The checksum of the archive is right, so that the damage reaches what reads the member."""
    path = tmp_path / "model.npz"
    refused = 0
    for content in mutations(members[name].tobytes(), count):
        np.savez(path, **{**members, name: np.frombuffer(content, np.uint8)})
        try:
            load(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 400 + len(str(path))
            refused += 1
    assert refused > count / 2


def test_metadata_with_wrong_kinds(tmp_path, members):
    path = tmp_path / "model.npz"
    right = json.loads(members["metadata"].tobytes())
    accepted = []
    for field in right:
        for value in WRONG:
            np.savez(path, **{**members, "metadata": as_array({**right, field: value})})
            if (field, value) in [("jax", "100"), ("jax", "x" * 10_000), ("weights_file", None)]:
                load(path)
                accepted.append(field)
            else:
                refusal(path)
        np.savez(path, **{**members, "metadata": as_array({name: right[name] for name in right if name != field})})
        refusal(path)
    assert accepted == ["jax", "jax", "weights_file"]


@pytest.mark.parametrize("name", ["../model.npz", "/dev/zero", "", ".", "a/b.npz"])
def test_weights_lie_beside_the_file(tmp_path, members, name):
    right = json.loads(members["metadata"].tobytes())
    metadata = as_array({**right, "weights_file": {"name": name, "sha256": "0"}})
    np.savez(tmp_path / "model.npz", **{**members, "metadata": metadata})
    assert "wrong metadata: weights_file" in refusal(tmp_path / "model.npz")


def test_archives_that_grow(tmp_path, members):
    path = tmp_path / "model.npz"
    np.savez_compressed(path, **members, zeros=np.zeros(50_000_000, np.uint8))
    assert "decompresses to more than 3 times its size" in refusal(path)


def test_arrays_of_impossible_shapes(tmp_path, members):
    path = tmp_path / "model.npz"
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    np.savez(path, **members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("huge.npy", array.getvalue() + bytes(100))
    refusal(path)
