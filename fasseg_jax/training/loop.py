"""A whole training: start or resume, the loop, the end."""

import contextlib

import jax
from ml_collections import ConfigDict

from fasseg_jax.config import changed_fields
from fasseg_jax.data import TrainingBatches, open_source, read_ahead
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.compilation import release_compiler_memory
from fasseg_jax.runtime.distributed import make_mesh, shape_dtype_structs, shard_batch, state_shardings
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.preemption import INTERRUPTED, Interruption
from fasseg_jax.training.checkpoints import RunCheckpoints
from fasseg_jax.training.evaluator import Evaluator
from fasseg_jax.training.initialization import start_variables
from fasseg_jax.training.metric_log import MetricLog, StepClock
from fasseg_jax.training.optimizer import learning_rate_schedule, make_optimizer
from fasseg_jax.training.train_step import TrainState, check_finite, make_train_step

__all__ = ["train"]


def train(config: ConfigDict, workdir: Path, profiled: bool = False) -> int:
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
            if profiled:
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
    """Record five steps, when all is compiled."""
    if steps_run == 10:
        jax.profiler.start_trace(str(workdir / "profile"))
    if steps_run == 15:
        jax.profiler.stop_trace()
