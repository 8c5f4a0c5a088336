"""What changed in the configuration of a run that is taken up again."""

from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

__all__ = ["changed_fields", "flat_fields"]

# Without influence on what is learnt.
IMMATERIAL = (
    "data.num_threads",
    "data.prefetch",
    "data.root",
    "model.deformable_attention",
    "model.remat",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "train.evaluation_stride",
    "train.shard_parameters",
    "train.init",
)
# Parameters of one do not fit the other; `model` apart from its dtype.
ARCHITECTURE = "model."


def changed_fields(saved: ConfigDict, current: ConfigDict) -> list[str]:
    """Fields that matter and differ, a line each.

    Raises:
      ValueError: the network's architecture changed, so that the run's checkpoints do not fit.
    """
    before, after = (flat_fields(config) for config in (saved, current))
    changed = [
        (name, f"config.{name} was {before.get(name)!r}, is {after.get(name)!r}")
        for name in sorted(before.keys() | after.keys())
        if name not in IMMATERIAL and before.get(name) != after.get(name)
    ]
    architecture = [line for name, line in changed if name.startswith(ARCHITECTURE) and name != "model.dtype"]
    if architecture:
        raise ValueError(
            "this run's checkpoints are of another network: " + "; ".join(architecture) + ". Use another --workdir"
        )
    return [line for _, line in changed]


def flat_fields(config: ConfigDict) -> dict[str, Any]:
    """Values by dotted name; tuples as lists, which overrides may hold in their place."""
    fields = flatten_dict(config.to_dict(), sep=".")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
