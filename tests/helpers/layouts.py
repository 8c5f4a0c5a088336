"""Trains in several layouts of eight simulated devices, and continues in each what each has saved.

    python -m tests.helpers.layouts FOLDER FOLDER_OF_BUCKET SETTINGS

It writes FOLDER/results.json: the losses of the first four steps, by layout; those of the last two, by the layout that
continued and the one that saved the checkpoint before them; and the collectives of each layout's program. `SETTINGS`
are fields of the configuration, as JSON. Each layout compiles its step once.
"""

import json
import sys

import jax
import numpy as np

from benchmarks.collectives import collectives
from fasseg_jax.config import load_config
from fasseg_jax.data import TrainingBatches, open_source
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime import distributed
from fasseg_jax.runtime.compilation import enable_compilation_cache
from fasseg_jax.runtime.files import make_path
from fasseg_jax.runtime.garbage import paused_garbage_collection
from fasseg_jax.training.checkpoints import RunCheckpoints
from fasseg_jax.training.optimizer import make_optimizer
from fasseg_jax.training.train_step import TrainState, make_train_step

SAVED, LAST = 2, 4  # steps
# Name -> devices, slices, whether parameters are sharded.
LAYOUTS = {
    "one": (1, 1, False),
    "slices": (8, 2, False),  # the program of eight devices in one slice, apart from the mesh's names
    "sharded": (8, 1, True),
    "sharded slices": (8, 2, True),
}
IN_BUCKET = "sharded slices"  # the layout whose checkpoint is saved in the bucket


class Layout:
    """A mesh, the shardings of the state, and the compiled step."""

    def __init__(self, name, config, batches):
        devices, num_slices, config.train.shard_parameters = LAYOUTS[name]
        self.mesh = distributed.make_mesh(jax.devices()[:devices], num_slices)
        self.batches = batches
        model = build_model(config.model)
        variables = jax.eval_shape(lambda: initial_variables(model, config.train.seed))
        optimizer = make_optimizer(config, variables["params"])
        shapes = jax.eval_shape(lambda v: TrainState.create(v, optimizer, ema=True), variables)
        self.shardings = distributed.state_shardings(shapes, self.mesh, config.train.shard_parameters)
        self.like = distributed.shape_dtype_structs(shapes, self.shardings)
        step = make_train_step(config, model, optimizer, self.mesh, shapes)
        with paused_garbage_collection():
            self.step = step.lower(self.like, *self.batch(0)).compile()

    def batch(self, step):
        batch = self.batches[step]
        return distributed.shard_batch((batch.images, Targets(batch.labels, batch.classes)), self.mesh)

    def train(self, state, first, last):
        losses = []
        for step in range(first, last):
            state, metrics = self.step(state, *self.batch(step))
            losses.append(float(metrics.loss))
        return state, losses


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def main(folder, bucket, settings):
    enable_compilation_cache()
    distributed.SMALLEST_SHARDED = 2**12  # so that even the tiny model has some dozens of sharded arrays
    config = load_config("configs/shapes.py")
    config.update_from_flattened_dict(json.loads(settings))
    source = open_source(config, "training")
    samples = {split: len(open_source(config, split)) for split in ("training", "validation")}
    batches = TrainingBatches(source, config, config.train.seed)
    layouts = {name: Layout(name, config, batches) for name in LAYOUTS}
    model = build_model(config.model)
    variables = jax.jit(lambda: initial_variables(model, config.train.seed))()
    optimizer = make_optimizer(config, variables["params"])
    start = jax.device_get(TrainState.create(variables, optimizer, ema=True))

    def checkpoints(name):
        root = make_path(bucket) / "run" if name == IN_BUCKET else make_path(folder) / name
        return RunCheckpoints(root / "checkpoints", config, source.classes, samples)

    losses, states = {}, {}
    for name, layout in layouts.items():
        state, losses[name] = layout.train(jax.device_put(start, layout.shardings), 0, SAVED)
        states[name] = jax.device_get(state)
        run = checkpoints(name)
        run.save(SAVED, state)
        run.close()
        _, more = layout.train(state, SAVED, LAST)
        losses[name] += more

    continued = {}
    for writer in layouts:
        for reader, layout in layouts.items():
            run = checkpoints(writer)
            state = run.restore(SAVED, layout.like)
            run.close()
            assert jax.tree.map(lambda x: x.sharding, state) == layout.shardings
            assert_equal(state, states[writer])
            _, continued[f"{reader} after {writer}"] = layout.train(state, SAVED, LAST)

    found = {name: collectives(layout.step.as_text()) for name, layout in layouts.items()}
    results = {"losses": losses, "continued": continued, "collectives": found}
    (make_path(folder) / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
