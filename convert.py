"""Convert PyTorch weights into a checkpoint.

    python convert.py --config configs/ade20k.py:r50 --weights ade_faseg_r50.pth --output DIR

The weights are those of FASeg or Mask2Former (.pth, .pkl, .safetensors), of which the checkpoint can be used for
prediction, or an ImageNet ResNet or Swin backbone, with which a training can start. Code in a weight file is never
executed.
"""

import sys
import time

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from fasseg_jax.checkpoint import save_checkpoint
from fasseg_jax.classes import ClassTable
from fasseg_jax.data import data_classes
from fasseg_jax.weight_files import read_state_dict
from fasseg_jax.weights import convert_backbone, convert_state_dict, holds_whole_model

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Configuration of the same model, e.g. configs/ade20k.py:r50; --config.NAME=VALUE overrides."
)
WEIGHTS = flags.DEFINE_string("weights", None, "File of PyTorch weights: .pth, .pt, .pkl or .safetensors.")
OUTPUT = flags.DEFINE_string("output", None, "Directory for the checkpoint.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a checkpoint that is in --output.")
NEW_CLASS_HEAD = flags.DEFINE_bool("new_class_head", False, "Initialise the class head anew, for other classes.")
flags.mark_flags_as_required(["config", "weights", "output"])


def convert(config: ConfigDict, weights: str, output: str, overwrite: bool, new_class_head: bool) -> str:
    """Convert a file into a checkpoint; returns the summary to print."""
    begin = time.perf_counter()
    classes = _classes_of(config)
    state_dict = read_state_dict(weights)
    try:
        if holds_whole_model(state_dict):
            contents, variables = "model", convert_state_dict(state_dict, config.model, new_class_head)
        elif new_class_head:
            raise ValueError("holds a backbone alone, which has no class head: leave --new_class_head out")
        else:
            contents, variables = "backbone", convert_backbone(state_dict, config.model)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    save_checkpoint(output, config, variables, classes, contents, overwrite)
    return _summary(config, weights, output, contents, variables, time.perf_counter() - begin)


def _classes_of(config: ConfigDict) -> ClassTable:
    classes = data_classes(config.data)
    if len(classes) != config.model.num_classes:
        raise ValueError(
            f"config.model.num_classes is {config.model.num_classes}, but the class table {config.data.dataset!r} has "
            f"{len(classes)} classes; set --config.data.dataset to the table of the model's classes (a .csv file)"
        )
    return classes


def _summary(config: ConfigDict, weights: str, output: str, contents: str, variables: dict, seconds: float) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    lines = [
        f"read        {weights}",
        f"{contents:<11} {parameters / 1e6:.1f}M parameters",
        f"classes     {config.model.num_classes} ({config.data.dataset})",
        f"written     {output} in {seconds:.1f} s",
    ]
    if contents == "model":
        lines.append(f"next        python predict.py --checkpoint {output} --input PHOTO_OR_FOLDER --output RESULTS")
    else:
        lines.append("next        a training can start from this backbone; it cannot predict by itself")
    return "\n".join(lines)


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
    try:
        print(convert(CONFIG.value, WEIGHTS.value, OUTPUT.value, OVERWRITE.value, NEW_CLASS_HEAD.value))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"convert.py: {error}")


if __name__ == "__main__":
    app.run(_main)
