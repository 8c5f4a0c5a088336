"""Write a model as a folder for the Hugging Face Hub, and upload it.

    fasseg push --checkpoint CHECKPOINT --output FOLDER
    fasseg push --checkpoint CHECKPOINT --output FOLDER --repository OWNER/NAME --license apache-2.0

FOLDER gets model.safetensors, fasseg.json (configuration and classes), config.json, preprocessor_config.json and
README.md, the model card, with the metrics of --evaluation. A Mask2Former's folder can be loaded by transformers too.
With --repository the folder is uploaded; a repository that does not exist is made. This needs `pip install
"fasseg_jax[hub]"`, and a login by `hf auth login` or HF_TOKEN. Then `--checkpoint hf://OWNER/NAME` works everywhere.

Exit status: 0 done; 1 the folder cannot be written or uploaded; 2 wrong usage.
"""

import re

from absl import flags, logging

from fasseg_jax.runtime.command_line import print_error
from fasseg_jax.runtime.files import Path, WriteError, write_atomically
from fasseg_jax.weights.model_card import model_card, read_metrics
from fasseg_jax.weights.pretrained import load_pretrained, write_model_folder
from fasseg_jax.weights.remote import RemoteError, upload

__all__ = ["define_flags", "main"]


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    try:
        if argv[1:] or not options.checkpoint or not options.output:
            raise ValueError("give --checkpoint and --output FOLDER, and no other arguments")
        if options.repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository):
            raise ValueError(f"--repository={options.repository}: give OWNER/NAME")
        if not re.fullmatch(r"[a-z0-9.-]*", options.license):
            raise ValueError(f"--license={options.license}: give a license as the Hub names it, e.g. apache-2.0")
        evaluation = read_metrics(options.evaluation) if options.evaluation else None
        checkpoint = load_pretrained(options.checkpoint)
        checkpoint.require_whole_model(options.checkpoint)
    except (ValueError, OSError) as error:
        return print_error(error, status=2)
    folder = Path(options.output).expanduser()
    try:
        write_model_folder(folder, checkpoint, options.overwrite)
        card = model_card(checkpoint, options.repository or folder.resolve().name, options.license, evaluation)
        with write_atomically(folder / "README.md") as partial:
            partial.write_text(card, encoding="utf-8")
        print(f"written     {folder}")
        if options.repository:
            print(f"uploaded    {upload(folder, options.repository, options.private)}")
            print(f"next        fasseg predict --checkpoint hf://{options.repository} --input PHOTOS --output RESULTS")
    except (ValueError, FileExistsError) as error:
        return print_error(error, status=2)
    except (RemoteError, WriteError) as error:
        return print_error(error, status=1)
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg push`."""
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint or of a run, or hf://OWNER/NAME.")
    flags.DEFINE_string("output", None, "Folder to write; made if absent.")
    flags.DEFINE_string("repository", None, "OWNER/NAME on the Hub, to upload the folder to.")
    flags.DEFINE_string("license", "", "License of the weights for the model card, e.g. apache-2.0.")
    flags.DEFINE_string("evaluation", None, "Folder of an evaluation, whose metrics the model card shows.")
    flags.DEFINE_bool("private", False, "Make a repository that does not exist a private one.")
    flags.DEFINE_bool("overwrite", False, "Replace a model in the folder.")
