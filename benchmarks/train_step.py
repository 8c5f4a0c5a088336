"""A training step here compared with one of Hugging Face transformers' Mask2Former, on a CPU.

    pip install -e ".[benchmarks]"
    python benchmarks/train_step.py --size 256 --batch 2 --targets 8
    python benchmarks/train_step.py --recipe configs/ade20k.py:swin_t --frozen --repeats 3

A step is forward pass, matching, loss, backward pass, clipping and AdamW, in float32. The weights are random; the
program downloads nothing. Each subject runs in its own process, whose peak memory is measured (Linux only): once over
the steps, and once over the whole process, compilation included. The processes take turns, step by step, and only one
of them computes at a time. Programs are compiled without a cache, unless --cache names a folder for it: the second call
with the same folder loads them, as every start of `train.py` but the first one does. Prints a table, and writes JSON
with --output.
"""

import json
import multiprocessing
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags
from example_batch import NUM_CLASSES, example_batch
from process_memory import peak_mb, restart_peak
from rich.console import Console
from rich.table import Table

THEIRS = "transformers, Mask2Former Swin-T"
SUBJECTS = {
    "Mask2Former Swin-T": "configs/ade20k.py:mask2former_swin_t",
    "FASeg R50": "configs/ade20k.py:r50",
    "FASeg Swin-T": "configs/ade20k.py:swin_t",
    THEIRS: None,
}
WITH_FROZEN_BACKBONE = ", frozen"

SIZE = flags.DEFINE_integer("size", 256, "Side of the square images, a multiple of 64.")
BATCH = flags.DEFINE_integer("batch", 2, "Images in a batch.")
TARGETS = flags.DEFINE_integer("targets", 8, "Segments of each image.")
RECIPES = flags.DEFINE_multi_string("recipe", [], "Recipes to measure in place of the subjects; may be repeated.")
FROZEN = flags.DEFINE_boolean("frozen", False, "Measure each recipe also with a frozen backbone.")
REPEATS = flags.DEFINE_integer("repeats", 7, "Timed steps of each subject, after one that is not timed.")
ONLY = flags.DEFINE_multi_enum("only", list(SUBJECTS), list(SUBJECTS), "Subjects; may be repeated.")
CACHE = flags.DEFINE_string("cache", None, "Folder of compiled programs.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def our_step(recipe: str, cache: str | None, images, labels, classes) -> tuple[Callable[[], float], dict[str, float]]:
    """A function that runs one step and returns its loss, and the seconds that lowering and compiling took.

    A frozen backbone has random weights here: that changes neither time nor memory.
    """
    import jax

    from fasseg_jax.config import load_config
    from fasseg_jax.losses.targets import Targets
    from fasseg_jax.models.fasseg import build_model, initial_variables
    from fasseg_jax.runtime.compilation import release_compiler_memory
    from fasseg_jax.runtime.distributed import make_mesh, shard_batch
    from fasseg_jax.training.optimizer import make_optimizer
    from fasseg_jax.training.train_step import TrainState, make_train_step

    jax.config.update("jax_enable_compilation_cache", cache is not None)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    config = load_config(recipe.removesuffix(WITH_FROZEN_BACKBONE))
    if recipe.endswith(WITH_FROZEN_BACKBONE):
        config.optimizer.backbone_multiplier = 0.0
    model, mesh = build_model(config.model), make_mesh()
    variables = jax.jit(lambda: initial_variables(model, 0))()
    optimizer = make_optimizer(config, variables["params"])
    state = TrainState.create(variables, optimizer, ema=False)
    padding = np.full((len(images), config.data.max_targets - classes.shape[1]), -1, np.int32)
    batch = shard_batch((images, Targets(labels, np.concatenate([classes, padding], axis=1))), mesh)

    times = [time.perf_counter()]
    lowered = make_train_step(config, model, optimizer, mesh, state).lower(state, *batch)
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    del lowered
    release_compiler_memory(traces=True)  # as train.py

    def step():
        nonlocal state
        state, metrics = compiled(state, *batch)
        return float(jax.block_until_ready((state, metrics))[1].loss)

    lower, compilation = np.diff(times).tolist()
    return step, {"lower_s": lower, "compile_s": compilation}


def their_model(num_classes: int):
    """Mask2Former with Swin-T of transformers, made from its configuration, without a download."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=224,
        patch_size=4,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=num_classes, num_queries=100)
    return Mask2FormerForUniversalSegmentation(config)


def their_batch(images, labels, classes, device: str):
    """Normalized pixels, and masks and classes of each image, as transformers' model takes them."""
    import torch

    normalized = (images - np.float32((123.675, 116.28, 103.53))) / np.float32((58.395, 57.12, 57.375))
    pixels = torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy()).to(device)
    class_labels = [torch.from_numpy(own.astype(np.int64)).to(device) for own in classes]
    mask_labels = [
        torch.from_numpy((label == own[:, None, None]).astype(np.float32)).to(device)
        for label, own in zip(labels, classes, strict=True)
    ]
    return pixels, mask_labels, class_labels


def their_step(images, labels, classes) -> tuple[Callable[[], float], dict[str, float]]:
    """The same for transformers, run eagerly; JAX stays out of its process."""
    import torch

    model = their_model(NUM_CLASSES).train()
    pixels, mask_labels, class_labels = their_batch(images, labels, classes, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(pixel_values=pixels, mask_labels=mask_labels, class_labels=class_labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        return loss.item()

    return step, {}


def serve(connection, recipe: str | None, cache: str | None, batch: tuple[np.ndarray, ...]) -> None:
    """The process of one subject: for every "step" that it receives, it runs one and sends its seconds and loss."""
    step, facts = their_step(*batch) if recipe is None else our_step(recipe, cache, *batch)
    before = peak_mb()
    restart_peak()
    connection.send(facts)
    while connection.recv() == "step":
        begin = time.perf_counter()
        loss = step()
        connection.send((time.perf_counter() - begin, loss))
    connection.send({"peak_mb": peak_mb(), "peak_with_compilation_mb": max(before, peak_mb())})


def main(_):
    """Measure and report."""
    batch = example_batch(SIZE.value, BATCH.value, TARGETS.value)
    context = multiprocessing.get_context("spawn")
    subjects = {name: SUBJECTS[name] for name in ONLY.value}
    if RECIPES.value:
        suffixes = ["", WITH_FROZEN_BACKBONE] if FROZEN.value else [""]
        subjects = {name + suffix: name + suffix for name in RECIPES.value for suffix in suffixes}
    results, connections = {}, {}
    for name, recipe in subjects.items():
        connections[name], other = context.Pipe()
        context.Process(target=serve, args=(other, recipe, CACHE.value, batch), daemon=True).start()
        other.close()  # so that the end of the process is seen here
        results[name] = {**connections[name].recv(), "seconds": [], "losses": []}
    for _ in range(REPEATS.value + 1):
        for name, connection in connections.items():
            connection.send("step")
            seconds, loss = connection.recv()
            if not np.isfinite(loss):
                raise RuntimeError(f"the loss of {name} is {loss}")
            results[name]["seconds"].append(seconds)
            results[name]["losses"].append(loss)
    for name, connection in connections.items():
        connection.send("end")
        own = results[name]
        times = own["seconds"][1:]
        own |= {"median_s": float(np.median(times)), "min_s": min(times), "max_s": max(times)}
        own |= connection.recv()

    theirs = results.get(THEIRS)

    def ratio(own, field):
        return f" ({own[field] / theirs[field]:.2f})" if theirs else ""

    title = f"Training step, {BATCH.value} x {SIZE.value} x {SIZE.value}, {TARGETS.value} targets an image"
    table = Table("", "median s (ratio)", "range s", "peak MB (ratio)", "compiling", "lower + compile s", title=title)
    for name, own in results.items():
        table.add_row(
            name,
            f"{own['median_s']:.2f}" + ratio(own, "median_s"),
            f"{own['min_s']:.2f} to {own['max_s']:.2f}",
            f"{own['peak_mb']:.0f}" + ratio(own, "peak_mb"),
            f"{own['peak_with_compilation_mb']:.0f}",
            f"{own['lower_s']:.1f} + {own['compile_s']:.1f}" if "compile_s" in own else "",
        )
    Console().print(table)
    if OUTPUT.value:
        with open(OUTPUT.value, "w") as file:
            json.dump({"size": SIZE.value, "batch": BATCH.value, "targets": TARGETS.value, **results}, file, indent=2)


if __name__ == "__main__":
    app.run(main)
