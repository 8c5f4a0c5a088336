"""Train FASeg or Mask2Former.

    fasseg train --config shapes --workdir runs/shapes

trains a tiny model on generated images; in a clone `python train.py` is the same. The recipes ade20k, cityscapes and
folder are for real data; a recipe of your own is given by its path. If WORKDIR holds checkpoints, the training resumes
from the latest. `--check` examines the data instead, and with `--pictures DIR` draws samples with their labels,
augmented as the network gets them.

WORKDIR gets checkpoints/STEP (`fasseg predict` can use each), metrics.jsonl, curves.png, tensorboard/ and pictures/.

Exit status: 0 done; 1 stopped by an error; 2 wrong usage or data; 75 interrupted and saved: the same command resumes.
"""

from absl import flags, logging

from fasseg_jax.config import check_config, config_flags
from fasseg_jax.programs.check import check, explain_data_error
from fasseg_jax.runtime.command_line import end_within, print_error
from fasseg_jax.runtime.compilation import enable_compilation_cache
from fasseg_jax.runtime.devices import join_hosts, lost_hosts_first
from fasseg_jax.runtime.files import WriteError, make_path
from fasseg_jax.training.checkpoints import CheckpointError
from fasseg_jax.training.loop import train
from fasseg_jax.training.train_step import NotFiniteError

__all__ = ["define_flags", "main"]

PATIENCE = 30  # seconds after an error, which threads of libraries and lost hosts may hold up the program


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    try:
        if argv[1:]:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        if options.pictures and not options.check:
            raise ValueError("--pictures goes with --check")
        config = config_flags.given_config()
        check_config(config, training=True)
        if options.check:
            return check(config, options.pictures, options.workdir)
        if not options.workdir:
            raise ValueError("--workdir is needed: the folder of the run")
        join_hosts(config.train.lost_host_seconds)
        enable_compilation_cache()
        with lost_hosts_first(config.train.lost_host_seconds):
            return train(config, make_path(options.workdir), options.profile, options.changed_data)
    except (NotFiniteError, CheckpointError, WriteError) as error:
        status = print_error(error, status=1)
    except (ValueError, OSError) as error:
        explain_data_error(error)
        status = print_error(error, status=2)
    end_within(PATIENCE, status)
    return status


def define_flags() -> None:
    """Define the command line of `fasseg train`."""
    config_flags.DEFINE_config_file("config", "configs/shapes.py", "The recipe; --config.NAME=VALUE overrides.")
    flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
    flags.DEFINE_bool("check", False, "Examine the data and report what is wrong, instead of training.")
    flags.DEFINE_string("pictures", None, "With --check: folder for pictures of samples with their labels.")
    flags.DEFINE_bool("changed_data", False, "Resume a run although its data changed since.")
    flags.DEFINE_bool("profile", False, "Record five steps with jax.profiler, in WORKDIR/profile.")
