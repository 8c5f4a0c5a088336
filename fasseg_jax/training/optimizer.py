"""AdamW with the recipe's parameter groups, clipping and schedule (SPEC section 5)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

__all__ = ["gradient_norm", "learning_rate_schedule", "make_optimizer", "parameter_groups"]

# Path of a parameter -> its group. The rate of "backbone" groups is multiplied by config.optimizer.backbone_multiplier;
# "fixed" groups have no weight decay: norms, embeddings, tables of relative positions. Every parameter must match
# exactly one rule.
NORM = r"[^/]*norm\d?"
GROUP_RULES = (
    (rf"backbone/(.*/)?({NORM}/(scale|bias)|relative_position_bias)", "backbone_fixed"),
    (rf"backbone/(?!(.*/)?{NORM}/).*(kernel|bias)(?<!relative_position_bias)", "backbone"),
    (rf"(pixel_decoder|decoder)/(.*/)?{NORM}(_\d)?/(scale|bias)", "head_fixed"),
    (r"decoder/(query_feat|query_embed|level_embed)", "head_fixed"),
    (rf"(pixel_decoder|decoder)/(?!(.*/)?{NORM}(_\d)?/).*(kernel|bias)", "head"),
    (r"pixel_decoder/level_embed", "head"),
)

# Prefixes of paths in the order in which a backward pass reaches their parameters.
BACKWARD_ORDER = (
    r"decoder/layer_\d",
    r"decoder/",
    r"pixel_decoder/(mask_features|output|lateral)",
    r"pixel_decoder/",
    r"backbone/(stage|res)\d",
    r"backbone/",
)


def parameter_groups(params: Any) -> Any:
    """The group of every parameter, a tree of names.

    Raises:
      ValueError: parameters that no rule matches, or more than one.
    """
    groups, problems = {}, []
    for path in flatten_dict(params, sep="/"):
        matches = [group for pattern, group in GROUP_RULES if re.fullmatch(pattern, path)]
        if len(matches) != 1:
            problems.append(f"{path} ({' and '.join(matches) or 'no group'})")
        groups[path] = matches[0] if matches else ""
    if problems:
        raise ValueError("each parameter needs exactly one rule of GROUP_RULES: " + ", ".join(problems))
    return unflatten_dict(groups, sep="/")


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Polynomial decay without warm-up: rate of step t = 0, 1, ... is base * (1 - t / steps) ** power."""
    return optax.polynomial_schedule(
        config.optimizer.learning_rate, 0.0, config.optimizer.poly_power, transition_steps=config.train.steps
    )


def gradient_norm(gradients: Any) -> jax.Array:
    """Euclidean norm of all gradients.

    The squares are added up in the order in which a backward pass finds the gradients. XLA schedules a program from
    its results: when the sum begins with the first layer, it takes the whole backward pass for that layer's gradient,
    and puts off those of all others, for which it must keep the activations.
    """
    return optax.tree.norm(_backward_order(gradients))


def _backward_order(gradients: Any) -> list[jax.Array]:
    def place(path):
        numbers_as_such = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
        return -next(i for i, prefix in enumerate(BACKWARD_ORDER) if re.match(prefix, path)), numbers_as_such

    flat = flatten_dict(gradients, sep="/")
    return [flat[path] for path in sorted(flat, key=place, reverse=True)]


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """As optax's, with the norm of `gradient_norm`."""

    def update(gradients, state, params=None):
        del params
        norm = gradient_norm(gradients)
        return jax.tree.map(lambda g: jnp.where(norm < limit, g, g / norm * limit), gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformation:
    """The optimiser of `config.optimizer` for a tree like `params`.

    Gradients are clipped to a global norm before Adam sees them; at the recipe's 0.01 they are of the order of Adam's
    epsilon, which therefore matters.
    """
    settings = config.optimizer
    groups = parameter_groups(params)
    decayed = jax.tree.map(lambda group: not group.endswith("_fixed"), groups)
    multipliers = {"head": 1.0, "head_fixed": 1.0}
    multipliers |= dict.fromkeys(("backbone", "backbone_fixed"), settings.backbone_multiplier)
    return optax.chain(
        _clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(*settings.betas, eps=settings.eps),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.multi_transform({group: optax.scale(value) for group, value in multipliers.items()}, groups),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
