"""Train FASeg or Mask2Former.

    python train.py --config configs/shapes.py --workdir runs/shapes

trains a tiny model on generated images; configs/ade20k.py, configs/cityscapes.py and configs/folder.py hold the recipes
for real data. If WORKDIR holds checkpoints, the training resumes from the latest. `--check` examines the data instead.

WORKDIR gets checkpoints/STEP (predict.py can use each), metrics.jsonl, tensorboard/ and pictures/.

Exit status: 0 done; 1 stopped by an error; 2 wrong usage or data; 75 interrupted and saved: the same command resumes.
"""

from absl import app, flags, logging

from fasseg_jax.config import check_config, config_flags
from fasseg_jax.data import data_classes
from fasseg_jax.data.check import check_data, print_reports
from fasseg_jax.runtime.command_line import end_within, parse_flags, print_error
from fasseg_jax.runtime.compilation import enable_compilation_cache
from fasseg_jax.runtime.devices import join_hosts
from fasseg_jax.runtime.files import WriteError, make_path
from fasseg_jax.training.checkpoints import CheckpointError
from fasseg_jax.training.loop import train
from fasseg_jax.training.train_step import NotFiniteError

CONFIG = config_flags.DEFINE_config_file("config", "configs/shapes.py", "The recipe; --config.NAME=VALUE overrides.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
CHECK = flags.DEFINE_bool("check", False, "Examine the data and report what is wrong, instead of training.")
CHANGED_DATA = flags.DEFINE_bool("changed_data", False, "Resume a run although its data changed since.")
PROFILE = flags.DEFINE_bool("profile", False, "Record five steps with jax.profiler, in WORKDIR/profile.")


PATIENCE = 30  # seconds after an error, which threads of libraries and lost hosts may hold up the program


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        config = CONFIG.value
        check_config(config, training=True)
        if CHECK.value:
            reports = check_data(config)
            print_reports(reports, data_classes(config.data))
            return 1 if any(report.problems for report in reports) else 0
        if not WORKDIR.value:
            raise ValueError("--workdir is needed: the folder of the run")
        join_hosts()
        enable_compilation_cache()
        return train(config, make_path(WORKDIR.value), PROFILE.value, CHANGED_DATA.value)
    except (NotFiniteError, CheckpointError, WriteError) as error:
        status = print_error(error, status=1)
    except (ValueError, OSError) as error:
        status = print_error(error, status=2)
    end_within(PATIENCE, status)
    return status


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
