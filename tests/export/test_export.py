import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fasseg_jax.data.classes import load_classes
from fasseg_jax.export import load_exported
from fasseg_jax.export.exporter import export_model, labels_function
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.models.fasseg import Predictions, build_model
from fasseg_jax.weights.checkpoint import Checkpoint, save_checkpoint
from tests.helpers import ROOT
from tests.helpers.tiny import photo, tiny_model

# A multiple of 32, and one that needs padding; both are test sizes of the tiny configuration.
SIZES = [(64, 96), (64, 75)]

# Runs a copy of the loader in a process that can import nothing else of the project.
WITHOUT_THE_PACKAGE = """
import sys
sys.modules |= dict.fromkeys(("fasseg_jax", "flax", "ml_collections", "orbax", "safetensors", "absl"))
import numpy as np
from load_exported import load
model = load(sys.argv[1])
for height, width in model.sizes:
    np.save(f"labels_{height}x{width}.npy", model(np.load(f"photo_{height}x{width}.npy")))
print(model.names[1], model.palette[1].tolist(), model.platforms)
"""


# Compiles something before the model, as servers do, and counts what JAX looked up in its cache and found there.
COUNTING = """
import collections, json, sys
sys.modules |= dict.fromkeys(("fasseg_jax", "flax", "ml_collections", "orbax", "safetensors", "absl"))
import jax, numpy as np
jax.jit(lambda x: x + 1)(1)
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rpartition("/")[2]]))
from load_exported import load
labels = load(sys.argv[1])(np.load("photo.npy"))
print(json.dumps([events["compile_requests_use_cache"], events["cache_hits"], labels.tolist()]))
"""


@pytest.fixture(scope="module")
def checkpoint():
    config, variables = tiny_model()
    return Checkpoint(config, variables, load_classes("cityscapes"))


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert export_model(checkpoint, SIZES, folder / "model.npz") == [folder / "model.npz"]
    return folder / "model.npz"


def expected_labels(checkpoint, size):
    labels = Segmenter(checkpoint.config, checkpoint.variables)(photo(*size)).labels
    assert len(np.unique(labels)) > 1
    return labels


@pytest.mark.slow
def test_a_process_with_only_jax_gives_the_same_labels(checkpoint, exported, tmp_path):
    shutil.copy(ROOT / "fasseg_jax" / "export" / "load_exported.py", tmp_path)
    for height, width in SIZES:
        np.save(tmp_path / f"photo_{height}x{width}.npy", photo(height, width))
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(exported)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "sidewalk [244, 35, 232] ('cpu', 'cuda', 'tpu')"
    for height, width in SIZES:
        labels = np.load(tmp_path / f"labels_{height}x{width}.npy")
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected_labels(checkpoint, (height, width)))


@pytest.mark.slow
def test_the_second_start_compiles_nothing(checkpoint, exported, tmp_path):
    """Programs are kept in the user's cache, or where JAX was told to; a folder that cannot be written is named."""
    shutil.copy(ROOT / "fasseg_jax" / "export" / "load_exported.py", tmp_path)
    np.save(tmp_path / "photo.npy", photo(*SIZES[1]))
    expected = expected_labels(checkpoint, SIZES[1]).tolist()

    def start(**variables):
        environment = {name: os.environ[name] for name in ("PATH", "JAX_PLATFORMS") if name in os.environ} | variables
        command = [sys.executable, "-c", COUNTING, str(exported)]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        *counts, labels = json.loads(run.stdout)
        assert labels == expected
        return counts, run.stderr

    cache = tmp_path / "home" / ".cache" / "fasseg_jax"
    (asked, found), errors = start(HOME=str(tmp_path / "home"))
    assert asked >= 1 and found == 0 and "not kept" not in errors
    kept = {file.name: file.read_bytes() for file in cache.glob("*-cache")}
    assert len(kept) == asked
    assert start(HOME=str(tmp_path / "home"))[0] == [asked, asked]
    assert {file.name: file.read_bytes() for file in cache.glob("*-cache")} == kept

    own = tmp_path / "own"
    start(HOME=str(tmp_path / "other"), JAX_COMPILATION_CACHE_DIR=str(own))
    assert any(own.glob("*-cache")) and not (tmp_path / "other").exists()

    (tmp_path / "file").touch()
    counts, errors = start(HOME=str(tmp_path / "file"))
    assert counts[1] == 0 and "compiled programs are not kept" in errors


def test_separate_weights(checkpoint, exported, tmp_path):
    files = export_model(checkpoint, SIZES[:1], tmp_path / "model.npz", separate_weights=True, platforms=["cpu"])
    assert files == [tmp_path / "model.npz", tmp_path / "model.weights.npz"]
    assert files[0].stat().st_size < exported.stat().st_size / 4
    labels = load_exported.load(files[0])(photo(*SIZES[0]))
    np.testing.assert_array_equal(labels, expected_labels(checkpoint, SIZES[0]))
    with np.load(files[1]) as weights:
        changed = {name: value + 1 for name, value in weights.items()}
    np.savez(files[1], **changed)
    with pytest.raises(ValueError, match="weights.npz: not the weights that model.npz was exported with"):
        load_exported.load(files[0])
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match="model.weights.npz: no such file"):
        load_exported.load(files[0])


def test_kernels_of_gpus_are_not_exported(checkpoint, tmp_path):
    """JAX refuses them, because another version of JAX may not run them."""
    config = checkpoint.config.copy_and_resolve_references()
    config.model.deformable_attention = "gpu"
    fused = Checkpoint(config, checkpoint.variables, checkpoint.classes)
    export_model(fused, SIZES[:1], tmp_path / "model.npz", platforms=["cpu", "cuda"])
    labels = load_exported.load(tmp_path / "model.npz")(photo(*SIZES[0]))
    np.testing.assert_array_equal(labels, expected_labels(checkpoint, SIZES[0]))


class FixedModel:
    """Stands for the network: predicts the same masks (Q, h, w) and classes (Q, K) for every image."""

    size_divisor = 32

    def __init__(self, classes, masks):
        self.classes, self.masks = classes, masks

    def apply(self, weights, images):
        assert images.shape == (1, 4 * self.masks.shape[1], 4 * self.masks.shape[2], 3)
        logits = np.log(np.pad(self.classes, ((0, 0), (0, 1))) + 1e-9)
        return Predictions(jnp.asarray(logits)[None], jnp.asarray(self.masks)[None])


def test_labels_of_more_classes_than_a_byte_holds_and_rows_that_fill_no_block():
    """Compares with PyTorch's resizing of given masks, and with the argmax of all scores at once."""
    rng = np.random.default_rng(0)
    masks = rng.normal(0, 4, (6, 16, 24)).astype(np.float32)
    classes = np.roll(rng.dirichlet(np.ones(300) / 10, 6), 40, axis=1).astype(np.float32)
    labels = jax.jit(labels_function(FixedModel(classes, masks), (41, 90)))({}, photo(41, 90))

    resized = torch.nn.functional.interpolate(torch.from_numpy(masks)[None], scale_factor=4, mode="bilinear")[0]
    expected = np.einsum("qk,qhw->hwk", classes, torch.sigmoid(resized).numpy()).argmax(-1)[:41, :90]
    assert labels.dtype == np.uint16 and len(np.unique(expected)) > 3 and expected.max() > 255
    np.testing.assert_array_equal(labels, expected)


def test_photos_of_another_shape_or_type_are_refused(exported):
    model = load_exported.load(exported)
    for wrong in (photo(64, 64), photo(64, 96).astype(np.float32), photo(64, 96)[..., 0]):
        with pytest.raises(ValueError, match=r"uint8, of one of the shapes \(64, 96, 3\), \(64, 75, 3\); this is"):
            model(wrong)


def rewrite(source, target, **changes):
    with np.load(source) as archive:
        arrays = dict(archive)
    metadata = json.loads(arrays["metadata"].tobytes()) | changes
    np.savez(target, **arrays | {"metadata": np.frombuffer(json.dumps(metadata).encode(), np.uint8)})


def test_files_that_cannot_be_loaded(exported, tmp_path):
    file = tmp_path / "other.npz"
    rewrite(exported, file, format=2)
    with pytest.raises(ValueError, match="other.npz: has format 2; use load_exported.py of the version that wrote it"):
        load_exported.load(file)
    rewrite(exported, file, calling_convention=99, jax="9.9")
    with pytest.raises(ValueError, match=r"other.npz: JAX 9.9 exported it, which JAX .* cannot run; export it again"):
        load_exported.load(file)
    np.savez(file, photo=photo(4, 4))
    with pytest.raises(ValueError, match="other.npz: not an exported model"):
        load_exported.load(file)
    content = bytearray(exported.read_bytes())
    for damaged in (content[: len(content) // 2], content[:1000] + b"?" * 1000 + content[2000:], b"<html>"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="other.npz: damaged, or not an exported model"):
            load_exported.load(file)
    np.savez(file, metadata=np.array([object()]))  # a pickle, which is never loaded
    with pytest.raises(ValueError, match="other.npz: damaged"):
        load_exported.load(file)


def test_what_cannot_be_exported(checkpoint, exported):
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        export_model(checkpoint, SIZES, exported)
    with pytest.raises(ValueError, match="its name must end in .npz"):
        export_model(checkpoint, SIZES, exported.with_suffix(".bin"))
    with pytest.raises(ValueError, match="at least one pixel"):
        export_model(checkpoint, [(0, 4)], exported, overwrite=True)


@pytest.mark.slow
def test_command_line(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "checkpoint", checkpoint.config, checkpoint.variables, checkpoint.classes)

    def run(size, *more):
        command = [sys.executable, "-m", "fasseg_jax.export", "--checkpoint", str(tmp_path / "checkpoint")]
        command += ["--size", size, "--output", str(tmp_path / "model.npz"), *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    first = run("64x96")
    assert first.returncode == 0, first.stderr
    assert first.stderr == "Lowering the network for 64x96 pixels: up to some minutes.\n"
    assert "cpu, cuda, tpu" in first.stdout
    assert load_exported.load(tmp_path / "model.npz").sizes == [(64, 96)]
    assert build_model(checkpoint.config.model)  # exporting does not change the configuration
    for size, message in (("64", "--size 64: give HEIGHTxWIDTH"), ("64x96", "model.npz: exists; name another file")):
        again = run(size)
        assert again.returncode == 1 and message in again.stderr and "Traceback" not in again.stderr

    assert run("64x75", "--dtype=bfloat16", "--platform=cpu", "--overwrite").returncode == 0
    labels = load_exported.load(tmp_path / "model.npz")(photo(64, 75))
    rounded = Segmenter.from_checkpoint(tmp_path / "checkpoint", dtype="bfloat16")(photo(64, 75)).labels
    np.testing.assert_array_equal(labels, rounded)
    assert (labels != expected_labels(checkpoint, (64, 75))).any()
