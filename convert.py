"""Convert weights: those of PyTorch programs into a checkpoint, and a checkpoint back into theirs.

    python convert.py --config configs/ade20k.py:r50 --weights ade_faseg_r50.pth --output CHECKPOINT
    python convert.py --weights HUGGING_FACE_FOLDER --output CHECKPOINT
    python convert.py --weights CHECKPOINT --output FILE.safetensors
    python convert.py --weights CHECKPOINT --output HUGGING_FACE_FOLDER --hugging_face

Files (.pth, .pkl, .safetensors) hold FASeg or Mask2Former, of which the checkpoint can be used for prediction, or an
ImageNet ResNet or Swin backbone, with which a training can start. A folder of Hugging Face's transformers (config.json,
model.safetensors) holds a Mask2Former; its config.json says the architecture, and the classes and the test size unless
--config does. Back, a checkpoint becomes a .safetensors or .pth file of the official programs, or, if it is a
Mask2Former, a folder of transformers. Code in a weight file is never executed.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from fasseg_jax.weights.convert import convert

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Configuration of the same model, e.g. configs/ade20k.py:r50; --config.NAME=VALUE overrides."
)
WEIGHTS = flags.DEFINE_string("weights", None, "File of PyTorch weights, folder of transformers, or checkpoint.")
OUTPUT = flags.DEFINE_string("output", None, "Directory for the checkpoint; from a checkpoint, file for the weights.")
HUGGING_FACE = flags.DEFINE_bool("hugging_face", False, "From a checkpoint, write a folder for transformers.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is in --output, if it is of the same kind.")
NEW_CLASS_HEAD = flags.DEFINE_bool("new_class_head", False, "Initialise the class head anew, for other classes.")
flags.mark_flags_as_required(["weights", "output"])


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells a lot
    try:
        options = (OUTPUT.value, OVERWRITE.value, NEW_CLASS_HEAD.value, HUGGING_FACE.value)
        print(convert(CONFIG.value, WEIGHTS.value, *options))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"convert.py: {error}")


if __name__ == "__main__":
    app.run(_main)
