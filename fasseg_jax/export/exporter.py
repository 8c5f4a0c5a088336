"""Write a model as one file that needs no code of this package."""

import hashlib
import json
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fasseg_jax.data.labels import label_dtype
from fasseg_jax.data.preprocessing import SIZE_DIVISOR, normalize
from fasseg_jax.export.load_exported import FORMAT
from fasseg_jax.models.fasseg import FASeg, build_model
from fasseg_jax.ops.resize import resize_bilinear, taps
from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.weights.checkpoint import Checkpoint

__all__ = ["export_model", "labels_function"]

PLATFORMS = ("cpu", "cuda", "tpu")
BLOCK_ROWS = 32  # of the photo, whose scores are in memory at a time


def labels_function(model: FASeg, size: tuple[int, int]) -> Callable[[dict[str, jax.Array], jax.Array], jax.Array]:
    """The pure function from weights and a photo to labels.

    Args:
      model: the network.
      size: (H, W) of the photo, which is its test size; any.

    Returns:
      (weights {path: array}, photo uint8 (H, W, 3)) -> labels (H, W), uint8, or uint16 for more than 255 classes. They
      are those of `Segmenter` for a photo that it need not resize.
    """
    bottom, right = (-side % SIZE_DIVISOR for side in size)

    def labels(weights: dict[str, jax.Array], photo: jax.Array) -> jax.Array:
        image = jnp.pad(normalize(photo), ((0, bottom), (0, right), (0, 0)))
        predictions = model.apply(unflatten_dict(weights, sep="/"), image[None])
        class_probabilities = jax.nn.softmax(predictions.class_logits[0])[:, :-1]
        return _labels(class_probabilities, predictions.mask_logits[0].transpose(1, 2, 0), size)

    return labels


def _labels(class_probabilities: jax.Array, mask_logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Labels (H, W) from (Q, K) and the masks at stride 4 (H'/4, W'/4, Q) of the padded photo (SPEC section 6)."""
    (height, width), num_classes = size, class_probabilities.shape[1]
    low, high, weight = taps(mask_logits.shape[0], mask_logits.shape[0] * 4)
    blocks = -(-height // BLOCK_ROWS)
    rows = np.minimum(np.arange(blocks * BLOCK_ROWS), height - 1).reshape(blocks, BLOCK_ROWS)
    class_ids = jnp.arange(num_classes, dtype=jnp.int32)

    def label_rows(rows):
        low, high, weight = rows  # (R,) each
        weight = weight[:, None, None]
        masks = mask_logits[low] * (1 - weight) + mask_logits[high] * weight  # (R, W'/4, Q)
        masks = resize_bilinear(masks[None], (BLOCK_ROWS, mask_logits.shape[1] * 4))[0, :, :width]  # (R, W, Q)
        scores = jnp.einsum("rwq,qk->rwk", jax.nn.sigmoid(masks), class_probabilities, precision="highest")
        best = scores.max(axis=-1, keepdims=True)
        return jnp.where(scores == best, class_ids, num_classes).min(axis=-1)  # the first of equals, (R, W)

    labels = jax.lax.map(label_rows, (low[rows], high[rows], weight[rows].astype(np.float32)))  # (blocks, R, W)
    labels = labels.reshape(-1, width)[:height]
    return labels.astype(label_dtype(num_classes))


def export_model(
    checkpoint: Checkpoint,
    sizes: Sequence[tuple[int, int]],
    output: str | Path,
    separate_weights: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> list[Path]:
    """Write a model for `load_exported.load`.

    Args:
      checkpoint: of a whole model.
      sizes: (H, W) of the photos, a function for each.
      output: a file ending in .npz.
      separate_weights: write the weights beside it, as NAME.weights.npz, which other exports of the model can share.
      platforms: of jax.export: "cpu", "cuda", "rocm", "tpu".
      overwrite: replace files that are there.

    Returns:
      The files.

    Raises:
      FileExistsError: a file is there and not to be replaced.
      ValueError: no whole model, no such size, or another ending.
    """
    output = Path(output)
    weights_file = output.with_suffix(".weights.npz")
    if output.suffix != ".npz":
        raise ValueError(f"{output}: the file is a NumPy archive; let its name end in .npz")
    checkpoint.require_whole_model()
    if not sizes or any(side < 1 for size in sizes for side in size):
        raise ValueError(f"sizes must be (height, width) of at least a pixel, not {list(sizes)}")
    for file in (output, weights_file) if separate_weights else (output,):
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file}: exists; name another file or pass --overwrite")

    config = checkpoint.config.model.copy_and_resolve_references()
    if config.deformable_attention in ("auto", "fused"):
        config.deformable_attention = "gather"  # JAX does not promise that its next version runs a GPU's kernel
    model = build_model(config)
    weights = {path: np.asarray(value) for path, value in flatten_dict(checkpoint.variables, sep="/").items()}
    shapes = jax.eval_shape(lambda: weights)
    functions = {}
    for size in sizes:
        photo = jax.ShapeDtypeStruct((*size, 3), jnp.uint8)
        exported = jax.export.export(jax.jit(labels_function(model, size)), platforms=platforms)(shapes, photo)
        functions[f"function_{size[0]}x{size[1]}"] = np.frombuffer(exported.serialize(), np.uint8)
    metadata = {
        "format": FORMAT,
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": list(platforms),
        "sizes": [list(size) for size in sizes],
        "classes": {"names": checkpoint.classes.names, "palette": checkpoint.classes.palette.tolist()},
        "weights": list(weights),
        "weights_file": None,
    }
    if separate_weights:
        _write_archive(weights_file, weights)
        digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
        metadata["weights_file"] = {"name": weights_file.name, "sha256": digest}
    contents = {} if separate_weights else weights
    metadata = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    _write_archive(output, {"metadata": metadata, **functions, **contents})
    return [output, weights_file] if separate_weights else [output]


def _write_archive(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays; the file appears under its name only when it is complete."""
    with write_atomically(file) as partial:
        np.savez(partial, **arrays)
