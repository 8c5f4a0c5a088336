"""What `gpu_all.py` measures: each subject runs in a process of its own and answers requests."""

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Subject", "serve"]

TARGETS = 16  # segments of each image
PASSES_S = 0.5  # a throughput is measured over at least so many seconds


@dataclasses.dataclass(frozen=True)
class Subject:
    """One program to measure.

    Attributes:
      name: in tables.
      recipe: FILE:VARIANT of this package, or "transformers" for its Mask2Former with Swin-T.
      work: "forward" or "training".
      batch: images at once.
      dtype: of the computation; in "float32" our matmuls have full precision, theirs that of tensor cores (TF32).
      method: of deformable attention, ours only.
      shared_points: `config.loss.shared_points`, ours only.
      compiled: whether `torch.compile` compiles the network; theirs only.
      xla_flags: of the compiler; ours only.
    """

    name: str
    recipe: str
    work: str
    batch: int
    dtype: str = "bfloat16"
    method: str = "auto"
    shared_points: bool = False
    compiled: bool = False
    xla_flags: str = ""


@dataclasses.dataclass(frozen=True)
class Program:
    """What a process can do once its program is compiled.

    Attributes:
      start: places the data on the device, and returns a function that begins one pass and one that waits for all.
      memory: bytes of the device that the program has held at most.
      facts: figures that are known before it runs.
      text: the compiled program, if it has one.
    """

    start: Callable[[], tuple[Callable[[], Any], Callable[[Any], None]]]
    memory: Callable[[], int]
    facts: dict[str, Any]
    text: str = ""


def our_config(subject: Subject):
    """The configuration of a subject of this package."""
    from fasseg_jax import load_config

    config = load_config(subject.recipe)
    config.model.dtype = subject.dtype
    config.model.deformable_attention = subject.method
    config.loss.shared_points = subject.shared_points
    return config


def num_targets(size: int, num_classes: int) -> int:
    """Segments of each image: fewer than `TARGETS` for small images of a try."""
    return min(TARGETS, num_classes, (size // 32) ** 2)


def our_forward(subject: Subject, size: int) -> Program:
    """The network, as `Segmenter` and evaluation call it, without their upsampling."""
    import jax
    import jax.numpy as jnp
    from example_batch import random_like

    from fasseg_jax import build_model

    model = build_model(our_config(subject).model)
    image_shape = (subject.batch, size, size, 3)
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    begin = time.perf_counter()
    forward = jax.jit(model.apply).lower(shapes, images).compile()
    seconds = time.perf_counter() - begin

    def start():
        data = jax.device_put(np.random.default_rng(1).standard_normal(image_shape).astype(np.float32))
        variables = jax.device_put(random_like(shapes))
        return lambda: forward(variables, data), jax.block_until_ready

    return Program(start, device_peak, program_facts(forward, seconds), forward.as_text())


def our_training(subject: Subject, size: int) -> Program:
    """The step of `train.py` without its input."""
    import jax
    from example_batch import example_batch, random_like
    from train_program import lower_train_step

    from fasseg_jax.losses.targets import Targets
    from fasseg_jax.models.fasseg import build_model, initial_variables
    from fasseg_jax.runtime.distributed import make_mesh, shard_batch
    from fasseg_jax.training.optimizer import make_optimizer
    from fasseg_jax.training.train_step import TrainState

    config = our_config(subject)
    config.train.batch_size, config.augmentation.crop = subject.batch, (size, size)
    begin = time.perf_counter()
    step = lower_train_step(config, jax.devices()[:1]).compile()
    seconds = time.perf_counter() - begin

    def start():
        model = build_model(config.model)
        variables = random_like(jax.eval_shape(lambda: initial_variables(model, 0)))
        optimizer = make_optimizer(config, variables["params"])
        state = jax.eval_shape(lambda v: TrainState.create(v, optimizer, ema=config.train.ema_decay > 0), variables)
        state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state)
        state = state.replace(
            params=variables["params"],
            batch_stats=jax.tree.map(lambda x: abs(x) + 1, state.batch_stats),
            ema_params=state.ema_params and variables["params"],
        )
        states = [jax.device_put(state)]
        targets, num_classes = num_targets(size, config.model.num_classes), config.model.num_classes
        images, labels, classes = example_batch(size, subject.batch, targets, num_classes)
        padding = np.full((subject.batch, config.data.max_targets - classes.shape[1]), -1, np.int32)
        targets = Targets(labels, np.concatenate([classes, padding], axis=1))
        batch = shard_batch((images, targets), make_mesh())

        def one_step():
            state, metrics = step(states.pop(), *batch)
            states.append(state)
            return metrics.loss

        return one_step, jax.block_until_ready

    return Program(start, device_peak, program_facts(step, seconds), step.as_text())


def program_facts(compiled, seconds: float) -> dict[str, Any]:
    """Seconds of tracing and compiling, and the bytes that the program needs by the compiler's account."""
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {"compile_s": seconds, "program_bytes": total - memory.alias_size_in_bytes}


def device_peak() -> int:
    """The most bytes that JAX has held on its first device; 0 where the device does not count them."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def their_program(subject: Subject, size: int) -> Program:
    """Mask2Former with Swin-T of transformers, from its configuration; the training step is eager, under autocast."""
    import torch
    from example_batch import NUM_CLASSES, example_batch
    from train_step import their_batch, their_model

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32, theirs at its best
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, training = getattr(torch, subject.dtype), subject.work == "training"
    model = their_model(NUM_CLASSES).to(device).train(training)

    def wait(_):
        if device.type == "cuda":
            torch.cuda.synchronize()

    def start_forward():
        pixels = torch.randn(subject.batch, 3, size, size, device=device, dtype=dtype)
        return functools.partial(forward, pixels), wait

    def forward(pixels):
        with torch.inference_mode():
            return call(pixel_values=pixels).masks_queries_logits

    def start_training():
        batch = example_batch(size, subject.batch, num_targets(size, NUM_CLASSES))
        pixels, mask_labels, class_labels = their_batch(*batch, device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype, enabled=subject.dtype != "float32"):
                loss = model(pixel_values=pixels, mask_labels=mask_labels, class_labels=class_labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            return loss

        return step, wait

    def memory():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0

    facts = {}
    if not training:
        model = model.eval().to(dtype)
        call = torch.compile(model) if subject.compiled else model
        if subject.compiled:
            begin = time.perf_counter()
            run, _ = start_forward()
            wait(run())
            facts["compile_s"] = time.perf_counter() - begin
            del run
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return Program(start_training if training else start_forward, memory, facts)


def make_program(subject: Subject, size: int) -> Program:
    """Compile a subject's program."""
    if subject.recipe == "transformers":
        return their_program(subject, size)
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return (our_training if subject.work == "training" else our_forward)(subject, size)


def serve(subject: Subject, size: int, pipe) -> None:
    """The process of a subject.

    It sends its facts once its program is compiled. To "start" it answers with the seconds of its first pass, to "time"
    with figures of `time_passes`, to "text" with the compiled program, and to ["profile", folder] after a trace.
    """
    if subject.xla_flags:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {subject.xla_flags}".strip()
    program = make_program(subject, size)
    pipe.send(program.facts)
    while (request := pipe.recv()) != "end":
        match request:
            case "start":
                begin = time.perf_counter()
                run, wait = program.start()
                wait(run())
                pipe.send(time.perf_counter() - begin)
            case "time":
                pipe.send(time_passes(run, wait) | {"peak_bytes": program.memory()})
            case "text":
                pipe.send(program.text)
            case ["profile", folder]:
                profile(run, wait, folder)
                pipe.send(folder)


def time_passes(run: Callable, wait: Callable) -> dict[str, float]:
    """Seconds of a pass by itself (median), and of a pass among many that are begun without waiting."""
    alone = []
    while len(alone) < 5 or (sum(alone) < PASSES_S and len(alone) < 50):
        begin = time.perf_counter()
        wait(run())
        alone.append(time.perf_counter() - begin)
    latency = statistics.median(alone)
    passes = max(3, int(PASSES_S / latency))
    begin = time.perf_counter()
    for _ in range(passes):
        result = run()
    wait(result)
    return {"latency_s": latency, "pass_s": (time.perf_counter() - begin) / passes}


def profile(run: Callable, wait: Callable, folder: str) -> None:
    """Write JAX's trace of three passes."""
    import jax

    with jax.profiler.trace(folder):
        for _ in range(3):
            result = run()
        wait(result)
