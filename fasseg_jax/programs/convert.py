r"""Convert weights: those of PyTorch programs to a checkpoint, and a checkpoint to weights of those programs.

    fasseg convert --config ade20k:r50 --weights ade_faseg_r50.pth --output CHECKPOINT
    fasseg convert --weights HUGGING_FACE_FOLDER --output CHECKPOINT
    fasseg convert --weights hf://facebook/mask2former-swin-tiny-ade-semantic --output CHECKPOINT
    fasseg convert --weights CHECKPOINT --output FILE.safetensors
    fasseg convert --weights CHECKPOINT --output HUGGING_FACE_FOLDER --hugging_face

A file (.pth, .pkl, .safetensors) holds FASeg or Mask2Former, which becomes a checkpoint for prediction, or only a
backbone, from which a training can start. A folder of Hugging Face's transformers (config.json, model.safetensors)
holds a backbone, or a Mask2Former. The latter's config.json has the architecture; it also has the classes and the test
size, unless --config gives them.

Weights can be fetched: hf://OWNER/NAME from the Hugging Face Hub, also with @REVISION and /FILE after it (pip install
"fasseg_jax[hub]"), or https://HOST/FILE, whose checksum is compared if #sha256=CHECKSUM follows. A download that was
cut goes on where it stopped.

A checkpoint becomes a .safetensors or .pth file of the official programs or, with --hugging_face, a folder of
transformers, which has only Mask2Former. No code in a weight file is ever executed. Exit status: 0; 1 if the weights
cannot be converted; 2 for wrong usage.
"""

import sys

from absl import flags, logging

from fasseg_jax.config import config_flags
from fasseg_jax.runtime.command_line import print_error, program_name
from fasseg_jax.weights.convert import convert

__all__ = ["define_flags", "main"]


def main(_: list[str]) -> int:
    """Convert, and print a summary."""
    logging.set_verbosity(logging.WARNING)  # Orbax logs a lot
    flag = flags.FLAGS
    try:
        config = config_flags.given_config()
    except ValueError as error:
        return print_error(error, status=2)
    try:
        summary = convert(
            config,
            flag.weights,
            flag.output,
            overwrite=flag.overwrite,
            new_class_head=flag.new_class_head,
            hugging_face=flag.hugging_face,
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"{program_name()}: {error}", file=sys.stderr)  # several lines, if it lists names
        return 1
    print(summary)
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg convert`."""
    config_flags.DEFINE_config_file(
        "config",
        help_string="Configuration of the same model, e.g. configs/ade20k.py:r50; --config.NAME=VALUE overrides.",
    )
    flags.DEFINE_string(
        "weights",
        None,
        "File of PyTorch weights, folder of transformers, or checkpoint; hf://... or https://...",
        required=True,
    )
    flags.DEFINE_string(
        "output", None, "Directory for the checkpoint; from a checkpoint, file for the weights.", required=True
    )
    flags.DEFINE_bool("hugging_face", False, "From a checkpoint, write a folder of transformers.")
    flags.DEFINE_bool("overwrite", False, "Replace an existing --output of the same kind.")
    flags.DEFINE_bool("new_class_head", False, "Initialize a new class head, for other classes.")
