"""A whole training, in chapters: mesh, data, model and optimizer, sharding, start or resume, loop, end."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from fasseg_jax.config import flat_fields
from fasseg_jax.data import TrainingBatches, describe_data, open_source, read_ahead
from fasseg_jax.data.balance import balance_classes
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.data.plausibility import look_at_labels
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.agreement import fail_together, require_equal, require_shared, version_facts
from fasseg_jax.runtime.command_line import end_within, other_program
from fasseg_jax.runtime.compilation import announce, release_compiler_memory
from fasseg_jax.runtime.distributed import make_mesh, shape_dtype_structs, shard_batch, state_shardings
from fasseg_jax.runtime.files import Path, WriteError, local_folder, make_path, named_write_errors
from fasseg_jax.runtime.folder_lock import lock_folder
from fasseg_jax.runtime.garbage import paused_garbage_collection
from fasseg_jax.runtime.preemption import Interruption
from fasseg_jax.runtime.read_ahead import in_background
from fasseg_jax.runtime.record_file import read_records
from fasseg_jax.runtime.supervision import INTERRUPTED
from fasseg_jax.runtime.watchdog import Watchdog
from fasseg_jax.training.batch_size import batch_size_of_run, fit_batch_size
from fasseg_jax.training.checkpoints import RunCheckpoints
from fasseg_jax.training.curves import write_curves
from fasseg_jax.training.early_stopping import EarlyStopping
from fasseg_jax.training.evaluator import Evaluator
from fasseg_jax.training.initialization import start_variables
from fasseg_jax.training.metric_log import METRICS_FILE, MetricLog
from fasseg_jax.training.optimizer import learning_rate_schedule, make_optimizer
from fasseg_jax.training.resume import check_resumed
from fasseg_jax.training.run_clock import RunClock, describe_seconds
from fasseg_jax.training.trackers import Trackers
from fasseg_jax.training.train_step import TrainState, check_finite, make_train_step
from fasseg_jax.training.utilization import step_size

__all__ = ["train"]

PROFILED_STEPS = range(10, 15)  # of this run; by then everything is compiled
PATIENCE = 300  # seconds, in which a checkpoint that is being written can be finished
CLASSES_FILE = "class_pixels.npz"  # in WORKDIR: what the scan for rare classes found
LOCK = ".host_{}.lock"  # in WORKDIR, of each host
OF_A_HOST = ("data.num_threads", "data.prefetch", "data.root")  # fields in which hosts may differ


def train(config: ConfigDict, workdir: Path, profile: bool = False, changed_data: bool = False) -> int:
    """Run a training, or resume it from the latest checkpoint in `workdir`.

    Args:
      config: the whole configuration. What only devices and data can tell, `train.batch_size` if it is to fit and
        `loss.class_weights` if classes are to be balanced, is filled in.
      workdir: the folder of the run, made if absent.
      profile: record five steps in WORKDIR/profile.
      changed_data: resume although the data changed since the latest checkpoint.

    Returns:
      The exit status: 0, or `INTERRUPTED` if a signal ended the run and the same command resumes it.

    Raises:
      ValueError: the configuration does not fit the devices, the data, or the run's checkpoints; label files hold
        nothing to learn; another training runs in `workdir`; or another host was started otherwise.
      OSError: data or checkpoints cannot be read.
      NotFiniteError: a loss or a gradient is NaN or infinite.
      CheckpointError: a checkpoint cannot be read or written.
      WriteError: another file of the run cannot be written.
    """
    # Mesh
    clock = RunClock()
    mesh = make_mesh()
    on_first_host = jax.process_index() == 0

    # Data
    with fail_together():
        for name in (config.data.root, config.train.init):
            make_path(name)  # what no program can read is refused before anything is made
        if not config.train.fit_batch_size:
            check_batch_size(config, mesh.size)
        with named_write_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(workdir, LOCK.format(jax.process_index()))
    require_shared(workdir, LOCK)
    with fail_together():
        training, validation = open_source(config, "training"), open_source(config, "validation")
        label_notes = [*describe_data(config.data), *look_at_labels(training, config.data)]
        repeats, config.loss.class_weights = balance_classes(config, training, workdir / CLASSES_FILE, on_first_host)
    if config.train.fit_batch_size:
        max_targets = min(config.data.max_targets, len(training.classes))
        config.train.batch_size = batch_size_of_run(workdir) or fit_batch_size(config, mesh, max_targets, announce)
    with fail_together():
        check_batch_size(config, mesh.size)
        hosts = (jax.process_index(), jax.process_count())
        batches = TrainingBatches(training, config, config.train.seed, *hosts, repeats)
    samples = {"training": len(training), "validation": len(validation)}
    fingerprints = {"training": training.fingerprint, "validation": validation.fingerprint}
    require_equal(run_facts(config, training.classes, samples, fingerprints))

    # Model and optimizer
    model = build_model(config.model)
    variable_shapes = jax.eval_shape(lambda: initial_variables(model, config.train.seed))

    def create_state(variables):
        return TrainState.create(variables, optimizer, ema=config.train.ema_decay > 0)

    optimizer = make_optimizer(config, variable_shapes["params"])

    # Sharding
    state_shapes = jax.eval_shape(create_state, variable_shapes)
    shardings = state_shardings(state_shapes, mesh, config.train.shard_parameters)
    state_to_be = shape_dtype_structs(state_shapes, shardings)

    # Start or resume
    watchdog = Watchdog(config.train.watchdog_minutes, "step, evaluated image or checkpoint", INTERRUPTED)
    checkpoints = RunCheckpoints(workdir / "checkpoints", config, training.classes, samples)
    first_step = checkpoints.latest_step or 0
    with fail_together():
        changes = []
        if first_step:
            saved = checkpoints.metadata(first_step)
            changes = check_resumed(first_step, saved, config, training.classes, samples, changed_data, fingerprints)
        trackers = Trackers(config, workdir, tqdm.write) if on_first_host else None
        log = MetricLog(workdir, config.train.steps, first_step, on_first_host, trackers)
        if on_first_host:
            clock.resume(read_records(workdir / METRICS_FILE), first_step)
    for line in [*label_notes, *(f"Changed since step {first_step}: {change}" for change in changes)]:
        log.say(line)
    if first_step:
        state = checkpoints.restore(first_step, state_to_be)
        log.say(f"Resuming after step {first_step} of {config.train.steps}.")
    else:
        draw_variables, origin = start_variables(model, variable_shapes, config, training.classes)
        variables = in_background(draw_variables)  # on this host, while the step is compiled
        log.say(f"Starting from {origin}.")
    watchdog.progress()

    # Loop
    train_step = make_train_step(config, model, optimizer, mesh, state_shapes)
    learning_rate = learning_rate_schedule(config)
    evaluator = Evaluator(config, validation, mesh, workdir, log)
    interruption = Interruption()
    stopping = EarlyStopping(config.train, checkpoints.best)
    size = step_size(config, mesh.size, mesh.devices.flat[0].device_kind)
    compiled = previous = None
    stop = False
    recording = contextlib.ExitStack()
    # Also after an error, what is being written is finished, if that does not take too long.
    with lock, watchdog, contextlib.closing(log), contextlib.closing(checkpoints), limited_end(), recording:
        ahead = () if stopping.exhausted(first_step) else read_ahead(batches, config.data, first_step)
        for step, batch in enumerate(clock.waiting(ahead), first_step + 1):
            if profile:
                record_profile(step - first_step, workdir, recording)
            images, targets = shard_batch((batch.images, Targets(batch.labels, batch.classes)), mesh)
            if compiled is None:
                watchdog.progress()
                compiled = compile_step(train_step, state_to_be, images, targets, log)
                if not first_step:
                    state = jax.jit(create_state, out_shardings=shardings)(variables.result())
                    del variables, draw_variables  # the host's copy
                release_compiler_memory(traces=True)
                clock.spend("compute")
            state, metrics = compiled(state, images, targets)
            if previous:
                check_finite(*previous)  # of the step before, while the devices compute this one
            previous = step, metrics, batch.names
            watchdog.progress()

            stop = interruption.requested(step) and step < config.train.steps
            due = due_after(step, config.train, stop)
            if any(due):
                values = check_finite(*previous)
            if due.log:
                rates = {**size.rates(clock.interval()), **clock.numbers()}
                log.numbers(step, {**values, **rates, "learning_rate": float(learning_rate(step - 1))})
                log.progress(step, f"loss {values['loss']:.3f}")
            if due.save:
                if not (workdir / LOCK.format(jax.process_index())).exists():  # checkpoints would go on, not the log
                    raise WriteError(f"cannot write {workdir}: the folder was removed while the training ran")
                clock.spend("evaluation")
                mean_iou = evaluator(state, step, watchdog.progress) if due.evaluate else None
                clock.spend("checkpoints")
                log.numbers(step, clock.numbers())
                log.flush()  # a run that is resumed from here has logged all before
                checkpoints.save(step, state, mean_iou)
                stopping.add(step, mean_iou)
                if on_first_host:
                    write_curves(workdir)
                watchdog.progress()
            if stop or (due.evaluate and stopping.exhausted(step)):
                break

    # End
    if on_first_host:
        clock.spend("checkpoints")  # until here the latest was being written
        print(describe_seconds(clock.totals))
    if on_first_host and stop:
        print(f"Interrupted, and saved after step {step}. The same command resumes the training.")
    elif on_first_host:
        if stopping.exhausted(checkpoints.latest_step or 0):
            since = f"in {config.train.patience} evaluations mIoU was never above that of step {stopping.best_step}"
            print(f"Ended early: {since}.")
        best = checkpoints.path_of(checkpoints.best_step)
        print(f"Done. The best checkpoint is {best}; to use it:")
        print(f"  {other_program('predict')} --checkpoint {best} --input PHOTOS --output RESULTS")
        print(f"  {other_program('eval')} --checkpoint {best}")
        print(f"Pictures are in {workdir}/pictures, curves in {workdir}/curves.png and {workdir}/tensorboard.")
    return INTERRUPTED if stop else 0


def run_facts(
    config: ConfigDict, classes: ClassTable, samples: Mapping[str, int], fingerprints: Mapping[str, str]
) -> dict[str, str]:
    """What must be the same on all hosts that train together: name -> value, in words."""
    return {
        **version_facts(),
        **{f"config.{name}": repr(value) for name, value in flat_fields(config).items() if name not in OF_A_HOST},
        **{f"class {class_id}": repr(name) for class_id, name in enumerate(classes.names)},
        **{f"the number of {split} samples": str(number) for split, number in samples.items()},
        **{f"the hash of the {split} photos' names": text for split, text in fingerprints.items()},
    }


@contextlib.contextmanager
def limited_end() -> Iterator[None]:
    """After an error in the block, end the program after `PATIENCE` seconds, whatever it still does."""
    try:
        yield
    except BaseException as error:
        end_within(PATIENCE, 1, f"{error}; what ran in the background did not end within {PATIENCE} s, and was stopped")
        raise


def check_batch_size(config: ConfigDict, num_devices: int) -> None:
    """Raise a `ValueError` if the devices and the accumulated parts cannot share the batch evenly."""
    parts = num_devices * config.train.accumulation
    if config.train.batch_size % parts:
        raise ValueError(
            f"config.train.batch_size = {config.train.batch_size} must be a multiple of {num_devices} devices times "
            f"config.train.accumulation = {config.train.accumulation}"
        )


class Due(NamedTuple):
    """What to do after a step. An evaluation always comes with a checkpoint."""

    log: bool
    evaluate: bool
    save: bool


def due_after(step: int, settings: ConfigDict, stop: bool) -> Due:
    """What is due after `step`. `settings` is `config.train`; `stop`: the run ends here, before its last step."""
    last = step == settings.steps
    evaluate = last or step % settings.evaluate_every == 0
    return Due(
        log=last or step % settings.log_every == 0,
        evaluate=evaluate,
        save=evaluate or stop or step % settings.checkpoint_every == 0,
    )


def compile_step(
    train_step: jax.stages.Wrapped, state: TrainState, images: jax.Array, targets: Targets, log: MetricLog
) -> jax.stages.Compiled:
    """Compile the step ahead of time, and say so."""
    log.say("Compiling the training step: half a minute to several minutes the first time, later seconds.")
    begin = time.perf_counter()
    with paused_garbage_collection():
        compiled = train_step.lower(state, images, targets).compile()
    log.say(f"Compiled in {time.perf_counter() - begin:.0f} s.")
    return compiled


def record_profile(step: int, workdir: Path, recording: contextlib.ExitStack) -> None:
    """Record the `PROFILED_STEPS` of this run, of which `step` is about to begin; `recording` is open meanwhile."""
    if step == PROFILED_STEPS.start:
        jax.profiler.start_trace(str(recording.enter_context(local_folder(workdir / "profile"))))
    if step == PROFILED_STEPS.stop:
        jax.profiler.stop_trace()
        recording.close()
