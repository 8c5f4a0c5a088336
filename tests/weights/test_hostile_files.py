"""Weight files that are damaged or made to do harm: each ends in one short line, with little memory and time."""

import io
import pickle
import random
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fasseg_jax.weights import safe_pickle
from fasseg_jax.weights.torch_files import read_state_dict

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def refusal(file):
    """The message about a file; reading it must need little memory, and the message must be one short line."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:
            read_state_dict(file)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith(str(file)) and len(message) < 600 + len(str(file)) and "\n" not in message
    return message


def zip_records(content):
    """Name -> bytes of the records that PyTorch writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(file, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records(tmp_path, compression):
    write_zip(tmp_path / "weights.pth", zip_records(TENSORS), compression)
    assert "is compressed or encrypted, unlike PyTorch's" in refusal(tmp_path / "weights.pth")


def test_one_compressed_record(tmp_path):
    records = zip_records({"a": torch.ones(4)})
    with zipfile.ZipFile(tmp_path / "weights.pth", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED)
    assert "data/0' is compressed" in refusal(tmp_path / "weights.pth")


def test_zip_bomb(tmp_path):
    records = zip_records(TENSORS)
    name = next(name for name in records if name.endswith("data.pkl"))
    write_zip(tmp_path / "weights.pth", records | {name: bytes(120 << 20)}, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(tmp_path / "weights.pth")


@pytest.mark.parametrize("length", [0, 4, 23, 25, 100])
def test_a_storage_of_another_size(tmp_path, length):
    records = zip_records(TENSORS)
    name = next(name for name in records if name.endswith("data/0"))
    write_zip(tmp_path / "weights.pth", records | {name: bytes(length)})
    assert f"its storage 0 has {length} bytes, not 24" in refusal(tmp_path / "weights.pth")


def test_a_missing_storage(tmp_path):
    records = {name: content for name, content in zip_records(TENSORS).items() if not name.endswith("data/0")}
    write_zip(tmp_path / "weights.pth", records)
    assert "data/0 is missing" in refusal(tmp_path / "weights.pth")


class Call:
    """Pickled as the call of a function with these arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".pkl"])
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (1000,), (1,)),
        (3, (2,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (1 << 40,), (0,)),
        (0, (1 << 20, 1 << 20), (0, 0)),
        (0, (1 << 62, 1 << 62), (0, 0)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 100, (1,) * 100),
        (0, (2.0,), (1,)),
        (1 << 70, (1,), (1,)),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, suffix, offset, shape, strides):
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, {})
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pkl":
        file.write_bytes(pickle.dumps({"a": tensor}))
    else:
        torch.save({"a": tensor}, file, _use_new_zipfile_serialization=suffix == ".pth")
    refusal(file)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_float8(tmp_path, suffix, dtype):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({"a": torch.ones(3).to(dtype)}, file)
    else:
        torch.save({"a": torch.ones(3).to(dtype)}, file, _use_new_zipfile_serialization=suffix == ".pth")
    assert "a" in refusal(file) and "save it as float32" in refusal(file)


def nested_tuples():
    value = (1,)
    for _ in range(60):
        value = (value, value)
    return value


def pickled(value):
    return pickle.dumps(value, 2)[:-1]  # without STOP


HOSTILE_PICKLES = {
    "memo": b"\x80\x02]r\x00\x00\x00\x20.",
    "memo of 2^31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo by text": b"]p99999999999\n.",
    "deep lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 50_000 + b".",
    "many lists": b"\x80\x02(" + b"]" * 150_000 + b"t.",
    "many sets": b"\x80\x04(" + b"\x8f" * 150_000 + b"t.",
    "many marks": b"\x80\x02" + b"(" * 150_000 + b".",
    "key that takes forever to hash": b"\x80\x02}" + pickled(nested_tuples())[2:] + b"K\x01s.",
    "keys of the same hash": pickle.dumps({(2**61 - 1) * i: 0 for i in range(1, 3000)}, 2),
    "tuples of the same hash": pickle.dumps({(i, i << 64): 0 for i in range(3000)}, 2),
    "long name": b"\x80\x02}X" + struct.pack("<I", 5_000_000) + b"n" * 5_000_000 + b"K\x01s.",
    "long name of a function": b"\x80\x02cposix\n" + b"n" * 5_000_000 + b"\n.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "bytearray that is not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
    "huge integer": b"\x80\x02\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "huge integer as text": b"L" + b"9" * 1_000_000 + b"L\n.",
    "the same set again and again": b"\x80\x02("
    + pickled(list(range(9000)))[2:]
    + b"q\x010"
    + b"c__builtin__\nset\nh\x01\x85R0" * 5000
    + b"t.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary in itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "instance": b"(i__main__\nThing\n.",
    "extension registry": b"\x80\x02\x82\x01.",
    "state of a function": b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",
    "empty stack": b"\x80\x02.",
}


@pytest.mark.parametrize("suffix", [".pth", ".zip.pth"])
@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles(tmp_path, monkeypatch, name, suffix):
    monkeypatch.setattr(safe_pickle, "MAX_INSTRUCTIONS", 100_000)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".zip.pth":
        write_zip(file, {"archive/data.pkl": HOSTILE_PICKLES[name]})
    else:
        file.write_bytes(HOSTILE_PICKLES[name])
    refusal(file)


@pytest.mark.slow
def test_the_limit_of_instructions_bounds_the_memory(tmp_path):
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x02(" + b"}" * 3_000_000 + b"t.")
    assert "more than 1,000,000 small objects" in refusal(tmp_path / "weights.pkl")


def test_text_is_encoded_once(tmp_path):
    """A file may ask any number of times for the bytes of the same long text."""
    encode = b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R"
    text = b"X" + struct.pack("<I", 10_000_000) + b"x" * 10_000_000 + b"q\x01"
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x02(" + text + encode * 1000 + b"t.")
    refusal(tmp_path / "weights.pkl")


def test_tensors_that_share_a_bfloat16_storage(tmp_path):
    shared = torch.ones(2_000_000, dtype=torch.bfloat16)
    torch.save({f"a{i}": shared for i in range(100)}, tmp_path / "weights.pth")
    assert "more than 3 times larger than the file" in refusal(tmp_path / "weights.pth")


def test_two_tied_tensors_are_read(tmp_path):
    shared = torch.ones(2_000_000)
    torch.save({"a": shared, "b": shared}, tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth").keys() == {"a", "b"}


def saved_files(folder):
    """A file of each format."""
    torch.save({"model": TENSORS, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, folder / "zip.pth")
    torch.save({"model": TENSORS}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "tensors.pkl").write_bytes(pickle.dumps({"model": TENSORS}, 2))
    arrays = {name: tensor.float().numpy() for name, tensor in TENSORS.items()}
    (folder / "arrays.pkl").write_bytes(pickle.dumps({"model": arrays}, 2))
    (folder / "new.pkl").write_bytes(pickle.dumps({"model": arrays}, 5))
    save_file(TENSORS, folder / "weights.safetensors")
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_mutated_files_end_in_the_readers_own_errors(tmp_path):
    """Random bytes, cuts and repetitions: only `ValueError` and `ImportError`, and no array beyond the file's size."""
    generator = random.Random(0)
    for file in saved_files(tmp_path):
        whole = file.read_bytes()
        assert read_state_dict(file)
        for _ in range(400):
            content = bytearray(whole)
            for _ in range(generator.choice((1, 1, 2, 8))):
                place = generator.randrange(len(content))
                action = generator.randrange(4)
                if action == 0:
                    content[place] = generator.randrange(256)
                elif action == 1:
                    content[place] ^= 1 << generator.randrange(8)
                elif action == 2:
                    del content[place : place + generator.randrange(1, 40)]
                else:
                    content[place:place] = content[place : place + generator.randrange(1, 40)]
                content = content or bytearray(b"x")
            file.write_bytes(content)
            try:
                arrays = read_state_dict(file)
            except ValueError as error:
                assert str(file) in str(error) and len(str(error)) < 800
            else:
                assert sum(array.nbytes for array in arrays.values()) < 4 << 20
        file.write_bytes(whole)


def test_damaged_end_of_a_zip_file(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(TENSORS, file)
    whole = file.read_bytes()
    for place in range(len(whole) - 120, len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x40
        file.write_bytes(content)
        try:
            arrays = read_state_dict(file)
        except ValueError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)
        else:  # the byte does not matter
            np.testing.assert_array_equal(arrays["a"], TENSORS["a"].numpy())


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model", "net", "params", "ema"])
@pytest.mark.parametrize("outer", [None, "ema", "model", "state_dict"])
@pytest.mark.parametrize("ending", [".pth"])
def test_containers(tmp_path, container, outer, ending):
    content = {container: TENSORS, "epoch": 3}
    file = tmp_path / f"weights{ending}"
    torch.save({outer: content, "epoch": 3} if outer else content, file)
    np.testing.assert_array_equal(read_state_dict(file)["a"], TENSORS["a"].numpy())


@pytest.mark.parametrize("ending", [".PTH", ".ckpt", ".pth.tar", ".bin", ".pt", ".Pkl"])
def test_endings(tmp_path, ending):
    torch.save(TENSORS, tmp_path / f"weights{ending}")
    np.testing.assert_array_equal(read_state_dict(tmp_path / f"weights{ending}")["a"], TENSORS["a"].numpy())


def test_sharded_safetensors(tmp_path):
    for i, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, tmp_path / f"part-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "part-0.safetensors", "b": "part-1.safetensors"}}')
    read = read_state_dict(index)
    np.testing.assert_array_equal(read["a"], TENSORS["a"].numpy())
    for content in ("[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../a.pth"}}', "[" * 100_000):
        index.write_text(content)
        refusal(index)
    index.write_text('{"weight_map": {"a": "model.safetensors.index.json"}}')
    refusal(index)


@pytest.mark.parametrize("endianness", ["little", "big"])
def test_byte_order_of_a_zip_file(tmp_path, endianness):
    records = zip_records({"a": torch.arange(4, dtype=torch.float32)})
    folder = next(iter(records)).split("/")[0]
    records[f"{folder}/byteorder"] = endianness.encode()
    if endianness == "big":
        records[f"{folder}/data/0"] = np.arange(4, dtype=">f4").tobytes()
    write_zip(tmp_path / "weights.pth", records)
    np.testing.assert_array_equal(read_state_dict(tmp_path / "weights.pth")["a"], np.arange(4))


def test_parameters_and_attributes(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.attribute = "kept by PyTorch"
    content = {"a": parameter, "b": torch.nn.Parameter(torch.ones(2)), "c": torch.zeros(0, 4), "d": torch.ones(2, 2).T}
    content["e"] = torch.tensor([1, 2], dtype=torch.uint16)
    torch.save(
        {"state_dict": content, "kinds": [torch.float16, torch.Size([2]), torch.device("cpu"), {1, 2}, b"x"]},
        tmp_path / "weights.ckpt",
    )
    read = read_state_dict(tmp_path / "weights.ckpt")
    for name, value in content.items():
        np.testing.assert_array_equal(read[name], value.detach().numpy(), strict=True)


def test_bfloat16_is_exact(tmp_path):
    bits = torch.arange(0x7F81, dtype=torch.int16).view(torch.bfloat16)
    torch.save({"a": bits}, tmp_path / "weights.pth")
    read = read_state_dict(tmp_path / "weights.pth")["a"]
    np.testing.assert_array_equal(read.astype(ml_dtypes.bfloat16).view(np.int16), np.arange(0x7F81))
