"""AdamW with the recipe's parameter groups, clipping and schedule (docs/specification.md, section 5)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fasseg_jax.models.fasseg import build_model

__all__ = [
    "gradient_norm",
    "is_frozen",
    "layer_scales",
    "learning_rate_schedule",
    "make_optimizer",
    "merge",
    "parameter_groups",
    "split",
]

# Module of the model -> its learning rate's group; a module inside goes before. config.optimizer.backbone_multiplier
# multiplies that of "backbone", and 0 freezes it. The pyramid of a ViT is no part of what was trained before.
RATE_GROUPS = {"backbone": "backbone", "pixel_decoder": "head", "decoder": "head", "backbone/pyramid": "head"}

# Name of a parameter -> whether AdamW decays it. Every parameter must match exactly one name: "norm/NAME" if it belongs
# to a normalization layer, else NAME or MODULE/NAME.
WEIGHT_DECAY = {
    "kernel": True,
    "bias": True,
    "in_proj_kernel": True,  # of attention: query, key and value packed
    "in_proj_bias": True,
    "norm/scale": False,
    "norm/bias": False,
    "gamma": False,  # layer scale
    "qkv_kernel": True,  # of a ViT's attention, as in_proj_kernel
    "qkv_bias": True,
    "class_token": False,
    "registers": False,
    "position_table": False,
    "relative_position_bias": False,
    "query_feat": False,
    "query_embed": False,
    "decoder/level_embed": False,
    "pixel_decoder/level_embed": True,
}

# Prefixes of paths in the order in which a backward pass reaches their parameters.
BACKWARD_ORDER = (
    r"decoder/layer_\d",
    r"decoder/",
    r"pixel_decoder/(mask_features|output|lateral)",
    r"pixel_decoder/",
    r"backbone/pyramid",
    r"backbone/(stage|res|block)\d",
    r"backbone/",
)


def parameter_groups(params: Any) -> Any:
    """The group of every parameter: "backbone" or "head", followed by "_fixed" where there is no weight decay.

    Returns:
      A tree of names like `params`.

    Raises:
      ValueError: parameters that match no rule, or more than one.
    """
    groups, problems = {}, []
    for path in flatten_dict(params, sep="/"):
        modules = path.split("/")
        rate_group = RATE_GROUPS.get("/".join(modules[:2])) or RATE_GROUPS.get(modules[0])
        rules = [rule for rule in _names_of(path) if rule in WEIGHT_DECAY]
        if rate_group is None or len(rules) != 1:
            problems.append(f"{path} ({' and '.join(rules) or 'no rule'})")
        else:
            groups[path] = rate_group if WEIGHT_DECAY[rules[0]] else f"{rate_group}_fixed"
    if problems:
        raise ValueError(
            f"each parameter needs a module of {' or '.join(RATE_GROUPS)} and exactly one rule of WEIGHT_DECAY in "
            f"fasseg_jax/training/optimizer.py: {', '.join(problems)}"
        )
    return unflatten_dict(groups, sep="/")


def _names_of(path: str) -> list[str]:
    """The names by which WEIGHT_DECAY may know a parameter."""
    *modules, name = path.split("/")
    module = modules[-1] if modules else ""
    return [f"norm/{name}"] if "norm" in module else [name, f"{module}/{name}"]


def is_frozen(config: ConfigDict) -> bool:
    """Whether the backbone is frozen: a `config.optimizer.backbone_multiplier` of 0."""
    return config.optimizer.backbone_multiplier == 0


def split(params: Any, config: ConfigDict) -> tuple[Any, Any]:
    """The parameters that are trained, and those that are frozen: the group "backbone", if it is frozen."""
    if not is_frozen(config):
        return params, {}
    flat, groups = (flatten_dict(tree, sep="/") for tree in (params, parameter_groups(params)))
    trained, frozen = (
        {path: leaf for path, leaf in flat.items() if groups[path].startswith("backbone") == wanted}
        for wanted in (False, True)
    )
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def merge(trained: Any, frozen: Any) -> Any:
    """The inverse of `split`."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(trained, sep="/") | flatten_dict(frozen, sep="/"), sep="/")


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Polynomial decay: the rate of step t = 0, 1, ... is base * (1 - t / steps) ** power.

    In the first `warmup_steps` steps this is multiplied by (t + 1) / warmup_steps.
    """
    decay = optax.polynomial_schedule(
        config.optimizer.learning_rate, 0.0, config.optimizer.poly_power, transition_steps=config.train.steps
    )
    warmup = config.optimizer.warmup_steps
    return (lambda step: decay(step) * jnp.minimum((step + 1) / warmup, 1)) if warmup else decay


def layer_scales(config: ConfigDict, params: Any) -> Any:
    """Layer-wise rate decay (BEiT; Bao et al., 2021, and later MAE and ConvNeXt): factors of the learning rates.

    They are 1 for all that comes after the backbone's last layer, and `config.optimizer.layer_decay` times less for
    each layer before it. The backbone says which layers it has (`Backbone.layers`).

    Returns:
      A tree of numbers like `params`.
    """
    layers = build_model(config.model).backbone.layers()
    distance = {f"backbone/{name}": len(layers) - depth for depth, names in enumerate(layers) for name in names}

    def scale(path):
        return config.optimizer.layer_decay ** distance.get("/".join(path.split("/")[:2]), 0)

    return unflatten_dict({path: scale(path) for path in flatten_dict(params, sep="/")}, sep="/")


def gradient_norm(gradients: Any) -> Float[Array, ""]:
    """Euclidean norm of all gradients.

    The squares are summed in the order in which a backward pass computes the gradients. XLA schedules a program from
    its results: if the sum began with the first layer, XLA would run the whole backward pass for that layer's gradient
    and put off the gradients of all other layers, whose activations it must keep until then.
    """
    return optax.tree.norm(_in_backward_order(gradients))


def _in_backward_order(gradients: Any) -> list[jax.Array]:
    def order(path):
        numbers_as_such = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
        return -next(i for i, prefix in enumerate(BACKWARD_ORDER) if re.match(prefix, path)), numbers_as_such

    by_path = flatten_dict(gradients, sep="/")
    return [by_path[path] for path in sorted(by_path, key=order, reverse=True)]


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Optax's transformation of this name, with the order of `gradient_norm`."""

    def update(gradients, state, params=None):
        del params
        factor = jnp.minimum(limit / gradient_norm(gradients), 1)
        return jax.tree.map(lambda g: g * factor, gradients), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def make_optimizer(config: ConfigDict, params: Any) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer` for a tree like `params`.

    Gradients are clipped to a global norm before Adam sees them. The recipe's 0.01 makes them about as small as Adam's
    epsilon, which therefore matters.

    `init` takes all parameters. `update` takes those that are trained, of `split`, and their gradients; so frozen
    parameters have no state, and no share in the norm that is clipped.
    """
    settings = config.optimizer
    groups = parameter_groups(split(params, config)[0])
    decayed = jax.tree.map(lambda group: not group.endswith("_fixed"), groups)
    multipliers = {
        "head": 1.0,
        "head_fixed": 1.0,
        "backbone": settings.backbone_multiplier,
        "backbone_fixed": settings.backbone_multiplier,
    }
    optimizer = optax.chain(
        _clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(*settings.betas, eps=settings.eps),
        optax.add_decayed_weights(settings.weight_decay, decayed),
        optax.multi_transform({group: optax.scale(value) for group, value in multipliers.items()}, groups),
        optax.scale_by_learning_rate(learning_rate_schedule(config)),
    )
    scales = layer_scales(config, groups)

    def init(params):
        return optimizer.init(split(params, config)[0])

    def update(gradients, state, params=None):
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.multiply, updates, scales), state

    return optax.GradientTransformation(init, update)
