import collections
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fasseg_jax.weights.torch_files import read_state_dict, write_state_dict

WEIGHTS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).t(),  # not contiguous
    "a.bias": torch.tensor([0.5, -2], dtype=torch.float16),
    "b.weight": torch.tensor([1.5, 2.0**127], dtype=torch.bfloat16),
    "b.count": torch.tensor(7),
}


def assert_weights(read):
    assert list(read) == list(WEIGHTS)
    np.testing.assert_array_equal(read["a.weight"], np.arange(12).reshape(3, 4).T)
    np.testing.assert_array_equal(read["a.bias"], np.array([0.5, -2], np.float16), strict=True)
    np.testing.assert_array_equal(read["b.weight"], np.array([1.5, 2.0**127], np.float32), strict=True)
    np.testing.assert_array_equal(read["b.count"], 7)


def trainer_checkpoint():
    """The weights in a trainer's checkpoint, among other entries such as NumPy scalars."""
    weights = collections.OrderedDict(WEIGHTS)
    weights._metadata = {"": {"version": 2}}
    return {
        "model": weights,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": np.float64(1e-4), "params": [0]}],
        },
        "scheduler": {"base_lrs": [np.float32(1e-4)], "last_epoch": np.int64(5), "milestones": np.arange(3)},
        "iteration": 5,
    }


@pytest.mark.parametrize("content", [WEIGHTS, {"model": WEIGHTS}, {"state_dict": WEIGHTS}, trainer_checkpoint()])
@pytest.mark.parametrize("zip_format", [True, False])
def test_torch_files(tmp_path, content, zip_format):
    file = tmp_path / "weights.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zip_format)
    assert_weights(read_state_dict(file))


def test_the_mapped_file_may_be_deleted(tmp_path):
    torch.save(WEIGHTS, tmp_path / "weights.pt")
    read = read_state_dict(tmp_path / "weights.pt")
    (tmp_path / "weights.pt").unlink()
    assert_weights(read)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(tmp_path, protocol):
    model = collections.OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.float64(0.25))
    model |= {"c": np.array(["-1", "258"], ">i2"), "d": np.array(True), "e": model["a"].T}
    content = {"model": model, "__author__": "someone", "matching_heuristics": True, "iteration": np.int64(3)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol))
    read = read_state_dict(tmp_path / "weights.pkl")
    assert list(read) == list(model)
    for name, value in model.items():
        np.testing.assert_array_equal(read[name], np.asarray(value), strict=True)


def test_pickles_of_python_2(tmp_path):
    # pickle.dumps({"model": {"a": np.array([1.0, 2.0], np.float32)}}, 2) by Python 2: byte strings everywhere
    content = (
        b"\x80\x02}U\x05model}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbss."
    )
    (tmp_path / "weights.pkl").write_bytes(content)
    np.testing.assert_array_equal(
        read_state_dict(tmp_path / "weights.pkl")["a"], np.array([1, 2], np.float32), strict=True
    )


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_tensors(tmp_path, protocol):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": WEIGHTS}, protocol))
    assert_weights(read_state_dict(tmp_path / "weights.pkl"))


def test_safetensors(tmp_path):
    weights = {name: tensor.contiguous() for name, tensor in WEIGHTS.items()}
    save_file(weights, tmp_path / "weights.safetensors")
    read = read_state_dict(tmp_path / "weights.safetensors")
    assert_weights({name: read[name] for name in WEIGHTS})


class Trap:
    """Creates the file when it is unpickled without restrictions."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def traps(target):
    """Name of a weight file -> content that would create `target` if the file's code were executed."""
    trap = Trap(os.mkdir, str(target))
    plain = pickle.dumps({"model": trap}, 2)  # the protocol that PyTorch uses
    return {
        "zip.pth": lambda file: torch.save({"model": trap}, file),
        "legacy.pth": lambda file: torch.save({"model": trap}, file, _use_new_zipfile_serialization=False),
        "plain.pth": lambda file: file.write_bytes(plain),
        "plain.pkl": lambda file: file.write_bytes(plain),
        # The bytes of a tensor's storage are another pickle.
        "inner.pkl": lambda file: file.write_bytes(pickle.dumps(Trap(torch.storage._load_from_bytes, plain))),
        # The elements of an array of objects would be addresses that the file chooses.
        "buffer.pkl": lambda file: file.write_bytes(pickle.dumps({"a": Trap(np.ndarray, (1,), "O", b"\1" * 8)})),
        "buffer.pth": lambda file: torch.save({"a": Trap(np.ndarray, (1,), "O", b"\1" * 8)}, file),
        "objects.pkl": lambda file: file.write_bytes(pickle.dumps({"a": np.array([trap])})),
        "objects.pth": lambda file: torch.save({"a": np.array([trap])}, file),
        "dtype.pkl": lambda file: file.write_bytes(pickle.dumps({"a": np.zeros(3, [("a", "f4")])})),
        "codec.pkl": lambda file: file.write_bytes(
            pickle.dumps({"model": {"a": Trap(__import__("_codecs").encode, "x", "rot13")}})
        ),
    }


@pytest.mark.parametrize("name", traps("nowhere"))
def test_code_is_not_executed(tmp_path, name):
    target = tmp_path / "executed"
    traps(target)[name](tmp_path / name)
    with pytest.raises(ValueError, match=name):
        read_state_dict(tmp_path / name)
    assert not target.exists()


def test_the_trap_works(tmp_path):
    traps(tmp_path / "executed")["plain.pkl"](tmp_path / "trap.pkl")
    pickle.loads((tmp_path / "trap.pkl").read_bytes())
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_the_error_names_what_is_refused(tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    content = {"model": WEIGHTS, "args": Trap(os.getcwd)}
    if suffix == ".pth":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"refused, because it holds more than weights: it asks for 'posix.getcwd'"):
        read_state_dict(file)


def saved(suffix):
    if suffix == ".safetensors":
        return lambda file: save_file({"a": torch.ones(100)}, file)
    if suffix == ".pkl":
        return lambda file: file.write_bytes(pickle.dumps({"a": np.ones(100)}))
    return lambda file: torch.save({"a": torch.ones(100)}, file, _use_new_zipfile_serialization=suffix == ".pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".safetensors"])
def test_damaged_files(tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    saved(suffix)(file)
    whole = file.read_bytes()
    assert list(read_state_dict(file)) == ["a"]
    for content in (whole[: len(whole) // 2], whole[:-1], whole[:20], b"hello world" * 9, bytes(100)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"weights{suffix}: .*download it again") as error:
            read_state_dict(file)
        assert "weights_only" not in str(error.value)  # no advice to trust the file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_failed_downloads(tmp_path, suffix, content, message):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"weights{suffix}: .*{message}"):
        read_state_dict(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1_w": np.ones(3), "res2_0_branch2a_w": np.ones(3)}, "Caffe-style"),
        ({"blobs": {"conv1_w": np.ones(3)}}, "Caffe-style"),
        ({"model": {"a": [1, 2]}}, "the entry 'a' of the state dict is a list, not an array"),
        ({"model": {3: np.ones(3)}}, "the entry 3"),
        ({}, "holds no weights"),
        ([np.ones(3)], "holds no weights"),
    ],
)
def test_other_contents(tmp_path, content, message):
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"weights.pkl: .*{message}"):
        read_state_dict(tmp_path / "weights.pkl")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="the entry 'a' of the state dict is a Tensor, not an array"):
        read_state_dict(tmp_path / "weights.pth")


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        read_state_dict(tmp_path / "absent.pth")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="weights.onnx: weights are read from .pth, .pt, .bin, .pkl, .saf"):
        read_state_dict(tmp_path / "weights.onnx")


def test_without_pytorch(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(WEIGHTS))
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # as if it were not installed
    for name in ("weights.pth", "old.pth", "weights.pkl"):
        assert_weights(read_state_dict(tmp_path / name))
    with pytest.raises(ImportError, match=r"written.pth: PyTorch is needed to write a .pth file; .*\n.*pip install"):
        write_state_dict(tmp_path / "written.pth", OF_VERSION_2)


class Versioned(torch.nn.Module):
    """Renames the weights of files of version 1, as the official modules do; `child` is a versioned module, too."""

    _version = 2

    def __init__(self, child=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        if child is not None:
            self.predictor = child

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *arguments):
        if local_metadata.get("version") is None or local_metadata["version"] < 2:
            state_dict[prefix + "renamed"] = state_dict.pop(prefix + "weight")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)


def versioned_model():
    model = torch.nn.Module()
    model.sem_seg_head = Versioned(Versioned())
    return model


OF_VERSION_2 = {f"sem_seg_head.{name}weight": np.float32([1, 2]) for name in ("", "predictor.")}


def test_versioned_modules_load_the_written_pth_completely(tmp_path):
    write_state_dict(tmp_path / "weights.pth", OF_VERSION_2)
    state_dict = torch.load(tmp_path / "weights.pth", weights_only=True)["model"]
    model = versioned_model()
    model.load_state_dict(state_dict)  # strict: raises for a missing or an unexpected name
    for value in model.state_dict().values():
        np.testing.assert_array_equal(value.numpy(), [1, 2])
    with pytest.raises(RuntimeError, match="renamed"):
        versioned_model().load_state_dict(dict(state_dict))


def test_versioned_modules_load_the_written_safetensors_as_the_documentation_says(tmp_path):
    write_state_dict(tmp_path / "weights.safetensors", OF_VERSION_2)
    model = versioned_model()
    state_dict = model.state_dict()
    state_dict.update(load_file(tmp_path / "weights.safetensors"))
    model.load_state_dict(state_dict)
    for value in model.state_dict().values():
        np.testing.assert_array_equal(value.numpy(), [1, 2])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_of_the_umask(tmp_path, suffix, umask):
    before = os.umask(umask)
    try:
        write_state_dict(tmp_path / f"weights{suffix}", OF_VERSION_2)
    finally:
        os.umask(before)
    assert (tmp_path / f"weights{suffix}").stat().st_mode & 0o777 == 0o666 & ~umask
