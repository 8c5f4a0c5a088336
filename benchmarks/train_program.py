"""The training step of a recipe, lowered for devices that need not be present."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.distributed import batch_sharding, make_mesh, shape_dtype_structs, state_shardings
from fasseg_jax.training.optimizer import make_optimizer
from fasseg_jax.training.train_step import TrainState, make_train_step

__all__ = ["lower_train_step"]


def lower_train_step(config: ConfigDict, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """Lower the step that `train.py` compiles, for arrays of the configuration's sizes on a mesh of `devices`."""
    mesh = make_mesh(devices)
    model = build_model(config.model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    optimizer = make_optimizer(config, variables["params"])
    state = jax.eval_shape(lambda v: TrainState.create(v, optimizer, ema=config.train.ema_decay > 0), variables)
    state = shape_dtype_structs(state, state_shardings(state, mesh, config.train.shard_parameters))

    def sharded(shape, dtype):
        return jax.ShapeDtypeStruct((config.train.batch_size, *shape), dtype, sharding=batch_sharding(mesh))

    crop = config.augmentation.crop  # height and width
    images = sharded((*crop, 3), jnp.uint8)
    targets = Targets(labels=sharded(crop, jnp.uint8), classes=sharded((config.data.max_targets,), jnp.int32))
    return make_train_step(config, model, optimizer, mesh, state).lower(state, images, targets)
