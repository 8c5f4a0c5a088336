"""The training state and one step of training: a pure function, compiled once for all devices."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fasseg_jax.data.preprocessing import normalize
from fasseg_jax.losses.criterion import sharded_segmentation_loss
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import FASeg
from fasseg_jax.runtime.distributed import DATA, batch_sharding, replicated, state_shardings
from fasseg_jax.training.optimizer import gradient_norm

__all__ = ["Metrics", "NotFiniteError", "TrainState", "check_finite", "make_train_step"]


@flax.struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: () int32, steps done.
      params: float32, whatever the dtype of the computation.
      batch_stats: statistics of batch norm; empty without.
      opt_state: of the optimiser.
      ema_params: exponential moving average of `params`, or None if config.train.ema_decay is 0.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any

    @classmethod
    def create(cls, variables: dict, optimizer: optax.GradientTransformation, ema: bool) -> "TrainState":
        """The state before the first step."""
        params = variables["params"]
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.array, params) if ema else None,
        )

    def variables(self) -> dict:
        """What to predict with: the averaged parameters if there are any."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats} if self.batch_stats else {"params": params}


@flax.struct.dataclass
class Metrics:
    """Of one step; losses before their weights and summed over the L + 1 predictions, `loss` with weights."""

    loss: jax.Array
    class_loss: jax.Array
    mask_loss: jax.Array
    dice_loss: jax.Array
    gradient_norm: jax.Array
    non_finite_costs: jax.Array


def make_train_step(
    config: ConfigDict, model: FASeg, optimizer: optax.GradientTransformation, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, jax.Array, Targets], tuple[TrainState, Metrics]]:
    """The jitted step `(state, images, targets) -> (state, metrics)`; the memory of the given state is reused.

    Images are uint8 (B, H, W, 3). Gradients are means over `config.train.accumulation` parts of the batch, each with
    the loss of its own images. The random numbers of a step follow from config.train.seed and its number alone.

    Args:
      config: the whole configuration.
      model: of `build_model(config.model)`.
      optimizer: of `make_optimizer`.
      mesh: images and targets are sharded over its axis.
      state: the state, or its shapes.
    """
    loss_function = sharded_segmentation_loss(mesh, DATA, config.loss)
    num_parts = config.train.accumulation

    @functools.partial(jax.grad, has_aux=True)
    def gradient_function(params, batch_stats, images, targets, key):
        drop_path_key, points_key = jax.random.split(key)
        predictions, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(images),
            train=True,
            all_predictions="factored",
            rngs={"dropout": drop_path_key},
            mutable=["batch_stats"],
        )
        terms = loss_function(predictions, targets, points_key)
        return terms.total, (terms, updates.get("batch_stats", {}))

    def accumulated_gradients(params, batch_stats, images, targets, key):
        # Every num_parts-th image, so that a part is spread over all devices: (B, ...) -> (parts, B / parts, ...)
        split = lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)
        parts = (*jax.tree.map(split, (images, targets)), jax.random.split(key, num_parts))
        first = jax.tree.map(lambda x: x[0], parts)
        gradients, (terms, _) = jax.eval_shape(gradient_function, params, batch_stats, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradients, terms))

        def add_part(carry, part):
            total, batch_stats = carry
            part_gradients, (part_terms, batch_stats) = gradient_function(params, batch_stats, *part)
            return (jax.tree.map(jnp.add, total, (part_gradients, part_terms)), batch_stats), None

        ((gradients, terms), batch_stats), _ = jax.lax.scan(add_part, (zeros, batch_stats), parts)
        mean = lambda x: x / num_parts if jnp.issubdtype(x.dtype, jnp.floating) else x  # counts are summed
        return jax.tree.map(mean, gradients), (jax.tree.map(mean, terms), batch_stats)

    def step(state: TrainState, images: jax.Array, targets: Targets) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        compute = gradient_function if num_parts == 1 else accumulated_gradients
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # deformable attention divides its work by it
            gradients, (terms, batch_stats) = compute(state.params, state.batch_stats, images, targets, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - config.train.ema_decay)
        metrics = Metrics(
            loss=terms.total,
            class_loss=terms.class_loss.sum(),
            mask_loss=terms.mask_loss.sum(),
            dice_loss=terms.dice_loss.sum(),
            gradient_norm=gradient_norm(gradients),
            non_finite_costs=terms.non_finite_costs,
        )
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema_params), metrics

    # XLA for CPUs otherwise orders operations to run side by side, which takes more memory and saves no time.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if on_cpu else None
    shardings, batch = state_shardings(state, mesh, config.train.shard_parameters), batch_sharding(mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, batch, batch),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=options,
    )


class NotFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite."""


def check_finite(step: int, metrics: Metrics, names: tuple[str, ...]) -> dict[str, float]:
    """Wait for the metrics of a step; raise a `NotFiniteError` with all there is to know if one is not finite.

    Args:
      step: its number, from 1.
      metrics: of the step.
      names: of the samples of its batch (this host's).

    Returns:
      The metrics as numbers.
    """
    values = {name: float(value) for name, value in vars(metrics).items()}
    wrong = [name for name, value in values.items() if not np.isfinite(value)]
    if wrong:
        listed = ", ".join(f"{name} = {value:.4g}" for name, value in values.items())
        raise NotFiniteError(
            f"step {step}: {' and '.join(wrong)} not finite ({listed}). The batch: {', '.join(names)}. "
            "Checkpoints of earlier steps are kept; a lower config.optimizer.learning_rate may help, or float32"
        )
    return values
