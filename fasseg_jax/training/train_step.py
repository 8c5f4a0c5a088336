"""The training state and one step of training: a pure function, compiled once for all devices."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Key, UInt8
from ml_collections import ConfigDict

from fasseg_jax.data.preprocessing import normalize
from fasseg_jax.losses.criterion import LossTerms, sharded_segmentation_loss
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import FASeg
from fasseg_jax.ops.threefry import random_key
from fasseg_jax.runtime.distributed import (
    SLICE,
    batch_axes,
    batch_sharding,
    gather_within_slices,
    replicated,
    state_shardings,
)
from fasseg_jax.training.optimizer import gradient_norm, is_frozen, merge, split

__all__ = ["NotFiniteError", "StepMetrics", "TrainState", "check_finite", "make_train_step"]

# (trained params, frozen params, batch_stats, images, targets, key) -> gradients, (loss terms, new batch_stats)
GradientFunction = Callable[
    [Any, Any, Any, UInt8[Array, "B H W 3"], Targets, Key[Array, ""]], tuple[Any, tuple[LossTerms, Any]]
]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: number of steps done.
      params: float32, whatever the dtype of the computation.
      batch_stats: statistics of batch norm; empty if the model has none.
      opt_state: state of the optimizer.
      ema_params: exponential moving average of `params`; None if config.train.ema_decay is 0.
    """

    step: Int32[Array, ""]
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
class StepMetrics:
    """The numbers of one step.

    Attributes:
      loss: the weighted sum of the three losses over the L + 1 predictions.
      class_loss: cross-entropy, summed over the predictions, without its weight.
      mask_loss: binary cross-entropy of the masks, the same.
      dice_loss: Dice loss of the masks, the same.
      gradient_norm: of all that is trained, before clipping.
      non_finite_costs: matching costs that were NaN or infinite.
    """

    loss: Float[Array, ""]
    class_loss: Float[Array, ""]
    mask_loss: Float[Array, ""]
    dice_loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    non_finite_costs: Int32[Array, ""]


def make_train_step(
    config: ConfigDict, model: FASeg, optimizer: optax.GradientTransformation, mesh: Mesh, state: TrainState
) -> jax.stages.Wrapped:
    """The jitted step `(state, images, targets) -> (state, metrics)`. It reuses the memory of the given state.

    Images are uint8 (B, H, W, 3). The gradients are means over `config.train.accumulation` parts of the batch, each
    with the loss of its own images. The random numbers of a step depend only on config.train.seed and its number.

    Args:
      config: the whole configuration.
      model: of `build_model(config.model)`.
      optimizer: of `make_optimizer`.
      mesh: of `make_mesh`; images and targets are sharded over all its devices.
      state: the state, or its shapes.
    """
    compute_gradients = _gradient_function(config, model, mesh)
    if config.train.accumulation > 1:
        compute_gradients = _accumulated(compute_gradients, config.train.accumulation)

    def step(state: TrainState, images: UInt8[Array, "B H W 3"], targets: Targets) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(random_key(config.train.seed), state.step)
        trained, frozen = split(state.params, config)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # deformable attention divides its work by it
            gradients, (terms, batch_stats) = compute_gradients(
                trained, frozen, state.batch_stats, images, targets, key
            )
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            step_number = state.step.astype(jnp.float32)
            decay = jnp.minimum(config.train.ema_decay, (1 + step_number) / (10 + step_number))
            averaged, _ = split(ema_params, config)
            ema_params = merge(optax.incremental_update(trained, averaged, 1 - decay), frozen)
        metrics = StepMetrics(
            loss=terms.total,
            class_loss=terms.class_loss.sum(),
            mask_loss=terms.mask_loss.sum(),
            dice_loss=terms.dice_loss.sum(),
            gradient_norm=gradient_norm(gradients),
            non_finite_costs=terms.non_finite_costs,
        )
        return TrainState(state.step + 1, merge(trained, frozen), batch_stats, opt_state, ema_params), metrics

    # By default XLA for CPUs orders operations so that they can run side by side: more memory, and no less time.
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


def _gradient_function(config: ConfigDict, model: FASeg, mesh: Mesh) -> GradientFunction:
    """Gradients of the loss of a whole batch, for the parameters that are trained.

    The others are constants: JAX computes no gradients of a frozen backbone, and keeps none of its activations.
    """
    loss_function = sharded_segmentation_loss(mesh, batch_axes(mesh), config.loss)

    def loss(trained, frozen, batch_stats, images, targets, key):
        drop_path_key, points_key = jax.random.split(key)
        params = merge(trained, frozen)
        if config.train.shard_parameters and SLICE in mesh.axis_names:
            params = gather_within_slices(params, mesh)
        predictions, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(images),
            train=True,
            frozen_backbone=is_frozen(config),
            all_predictions="factored",
            rngs={"dropout": drop_path_key},
            mutable=["batch_stats"],
        )
        terms = loss_function(predictions, targets, points_key)
        return terms.total, (terms, updates.get("batch_stats", {}))

    return jax.grad(loss, has_aux=True)


def _accumulated(compute_gradients: GradientFunction, num_parts: int) -> GradientFunction:
    """Means of the gradients of `num_parts` parts of a batch, computed one after another to save memory."""

    def split(x):
        # Every num_parts-th image, so that each part is spread over all devices: (B, ...) -> (parts, B / parts, ...)
        return x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)

    def mean(total):
        return total / num_parts if jnp.issubdtype(total.dtype, jnp.floating) else total  # counts are summed

    def accumulated_gradients(trained, frozen, batch_stats, images, targets, key):
        parts = (*jax.tree.map(split, (images, targets)), jax.random.split(key, num_parts))
        first_part = jax.tree.map(lambda x: x[0], parts)
        gradients, (terms, _) = jax.eval_shape(compute_gradients, trained, frozen, batch_stats, *first_part)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradients, terms))

        def add_part(carry, part):
            total, batch_stats = carry
            part_gradients, (part_terms, batch_stats) = compute_gradients(trained, frozen, batch_stats, *part)
            return (jax.tree.map(jnp.add, total, (part_gradients, part_terms)), batch_stats), None

        ((gradients, terms), batch_stats), _ = jax.lax.scan(add_part, (zeros, batch_stats), parts)
        return jax.tree.map(mean, gradients), (jax.tree.map(mean, terms), batch_stats)

    return accumulated_gradients


class NotFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite."""


def check_finite(step: int, metrics: StepMetrics, names: tuple[str, ...]) -> dict[str, float]:
    """Wait for the metrics of a step and return them as numbers.

    Args:
      step: number of the step, from 1.
      metrics: of the step.
      names: of the samples of its batch, those of this host.

    Raises:
      NotFiniteError: a metric is not finite; the message lists all metrics and samples.
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
