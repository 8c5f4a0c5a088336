"""Train FASeg or Mask2Former.

    python train.py --config configs/shapes.py --workdir runs/shapes

trains a tiny model on generated pictures; configs/ade20k.py, configs/cityscapes.py and configs/folder.py hold the
recipes for real data. If WORKDIR holds checkpoints, the training goes on from the latest. `--check` examines the data
instead.

WORKDIR gets checkpoints/STEP (each usable by predict.py), metrics.jsonl, tensorboard/ and pictures/.

Exit status: 0 done; 1 stopped by an error; 2 wrong usage or data; 75 interrupted and saved: the same command goes on.
"""

import contextlib
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from fasseg_jax.config import changed_fields
from fasseg_jax.data import TrainingBatches, data_classes, open_source, read_ahead
from fasseg_jax.data.check import check_data, print_reports
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import enable_compilation_cache, release_compiler_memory
from fasseg_jax.runtime.devices import join_hosts
from fasseg_jax.runtime.distributed import make_mesh, shape_dtype_structs, shard_batch, state_shardings
from fasseg_jax.runtime.preemption import INTERRUPTED, Interruption
from fasseg_jax.training.checkpoints import CheckpointError, RunCheckpoints
from fasseg_jax.training.evaluator import Evaluator
from fasseg_jax.training.initialization import start_variables
from fasseg_jax.training.metric_log import MetricLog, StepClock
from fasseg_jax.training.optimizer import learning_rate_schedule, make_optimizer
from fasseg_jax.training.train_step import NotFiniteError, TrainState, check_finite, make_train_step

CONFIG = config_flags.DEFINE_config_file("config", "configs/shapes.py", "The recipe; --config.NAME=VALUE overrides.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
CHECK = flags.DEFINE_bool("check", False, "Examine the data and report, instead of training.")
PROFILE = flags.DEFINE_bool("profile", False, "Record five steps with jax.profiler, in WORKDIR/profile.")


def train(config: ConfigDict, workdir: Path) -> int:
    """Run or resume a training; returns the exit status."""
    # Devices
    mesh = make_mesh()
    host, num_hosts = jax.process_index(), jax.process_count()
    check_batch_size(config, mesh.size)

    # Data
    training, validation = (open_source(config, split) for split in ("training", "validation"))
    batches = TrainingBatches(training, config, config.train.seed, host, num_hosts)

    # Model, optimiser, and the shapes and places of the state's arrays
    model = build_model(config.model)
    initialise = lambda: initial_variables(model, config.train.seed)
    variable_shapes = jax.eval_shape(initialise)
    optimizer = make_optimizer(config, variable_shapes["params"])
    create_state = lambda variables: TrainState.create(variables, optimizer, ema=config.train.ema_decay > 0)
    state_shapes = jax.eval_shape(create_state, variable_shapes)
    shardings = state_shardings(state_shapes, mesh, config.train.shard_parameters)

    # Start or resume
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = RunCheckpoints(workdir / "checkpoints", config, training.classes)
    first_step = checkpoints.latest_step or 0
    log = MetricLog(workdir, config.train.steps, first_step, writes=host == 0)
    if first_step:
        for line in changed_fields(checkpoints.saved_config(first_step), config):
            log.say(f"Changed since step {first_step}: {line}")
        state = checkpoints.restore(first_step, shape_dtype_structs(state_shapes, shardings))
        log.say(f"Going on after step {first_step} of {config.train.steps}.")
    else:
        variables, origin = start_variables(jax.device_get(jax.jit(initialise)()), config, training.classes)
        state = jax.jit(create_state, out_shardings=shardings)(variables)
        log.say(f"Starting from {origin}.")

    # Training
    train_step = make_train_step(config, model, optimizer, mesh, state_shapes)
    learning_rate = learning_rate_schedule(config)
    evaluator = Evaluator(config, validation, mesh, workdir, log)
    interruption = Interruption()
    clock = StepClock(config.train.batch_size)
    previous = None
    stop = False
    with contextlib.closing(log), contextlib.closing(checkpoints):  # what is being written is finished, come what may
        for step, batch in enumerate(clock.waiting(read_ahead(batches, config.data, first_step)), first_step + 1):
            profile(step - first_step, workdir)
            images, targets = shard_batch((batch.images, Targets(batch.labels, batch.classes)), mesh)
            if step == first_step + 1:  # compiled by name, so that nothing of its making need be kept
                train_step = train_step.lower(state, images, targets).compile()
                release_compiler_memory(traces=True)
            state, metrics = train_step(state, images, targets)
            if previous:
                check_finite(*previous)  # of the step before: the devices compute this one meanwhile
            previous = step, metrics, batch.names

            last = step == config.train.steps
            stop = interruption.requested(step) and not last
            logs, evaluates, saves = (
                last or step % config.train[f"{what}_every"] == 0 for what in ("log", "evaluate", "checkpoint")
            )
            if logs or evaluates or saves or stop:
                values = check_finite(*previous)
            if logs:
                log.numbers(step, {**values, **clock.rates(), "learning_rate": float(learning_rate(step - 1))})
                log.progress(step, f"loss {values['loss']:.3f}")
            if evaluates or saves or stop:
                checkpoints.save(step, state, evaluator(state, step) if evaluates else None)
                clock.restart()
            if stop:
                break

    # End
    if host == 0 and stop:
        print(f"Interrupted, and saved after step {step}. The same command goes on from there.")
    elif host == 0:
        best = checkpoints.path_of(checkpoints.best_step)
        print(f"Done. The best checkpoint is {best}; to use it:")
        print(f"  python predict.py --checkpoint {best} --input PHOTOS --output RESULTS")
        print(f"  python eval.py --checkpoint {best}")
        print(f"Pictures are in {workdir}/pictures, curves in {workdir}/tensorboard.")
    return INTERRUPTED if stop else 0


def check_batch_size(config: ConfigDict, num_devices: int) -> None:
    """Raise a `ValueError` if the batch cannot be divided."""
    parts = num_devices * config.train.accumulation
    if config.train.batch_size % parts:
        raise ValueError(
            f"config.train.batch_size = {config.train.batch_size} must be a multiple of {num_devices} devices times "
            f"config.train.accumulation = {config.train.accumulation}"
        )


def profile(steps_run: int, workdir: Path) -> None:
    """With --profile record five steps, when all is compiled."""
    if PROFILE.value and steps_run == 10:
        jax.profiler.start_trace(str(workdir / "profile"))
    if PROFILE.value and steps_run == 15:
        jax.profiler.stop_trace()


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        if CHECK.value:
            reports = check_data(CONFIG.value)
            print_reports(reports, data_classes(CONFIG.value.data))
            return 1 if any(report.problems for report in reports) else 0
        if not WORKDIR.value:
            raise ValueError("--workdir is needed: the folder of the run")
        join_hosts()
        enable_compilation_cache()
        return train(CONFIG.value, Path(WORKDIR.value))
    except (NotFiniteError, CheckpointError) as error:
        return print_error(error, status=1)
    except (ValueError, OSError) as error:
        return print_error(error, status=2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
