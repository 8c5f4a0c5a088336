"""What changed since the checkpoint from which a run resumes, and what of it is refused."""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import changed_fields
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.training.optimizer import is_frozen
from fasseg_jax.weights.checkpoint_metadata import CheckpointMetadata

__all__ = ["check_resumed"]

# Fields that decide which class a pixel of a label file has.
LABEL_FIELDS = ("data.ignore_label", "data.label_orientation", "data.reduce_zero_label")


def check_resumed(
    step: int,
    saved: CheckpointMetadata,
    config: ConfigDict,
    classes: ClassTable,
    samples: Mapping[str, int],
    changed_data: bool = False,
    fingerprints: Mapping[str, str] | None = None,
) -> list[str]:
    """Compare a run with the checkpoint from which it resumes.

    Args:
      step: of the checkpoint.
      saved: what the checkpoint says of the run that wrote it.
      config: the whole configuration of this run.
      classes: of this run's data.
      samples: split -> number of samples of this run's data.
      changed_data: whether other data than before are meant.
      fingerprints: split -> `Source.fingerprint` of this run's data.

    Returns:
      What changed, one line each.

    Raises:
      ValueError: the run has more steps behind it than it shall have; the network is another one; a frozen backbone
        shall be trained, or the reverse; or the data changed, although `changed_data` is False.
    """
    if step > config.train.steps:
        raise ValueError(
            f"config.train.steps = {config.train.steps}, but this run has done {step}: "
            "give more steps, or another --workdir"
        )
    fields = changed_fields(saved.config, config)
    if is_frozen(saved.config) != is_frozen(config):
        raise ValueError(
            f"{fields['optimizer.backbone_multiplier']}: a run cannot freeze its backbone midway, nor train a frozen "
            "one, because the optimizer keeps no state of what is frozen. Use another --workdir, with "
            "--config.train.init=CHECKPOINT to start from this run's weights"
        )
    data = [
        *(line for name, line in fields.items() if name in LABEL_FIELDS),
        *_changed_classes(saved.classes, classes),
        *(
            f"the {split} split had {number} samples, has {samples[split]}"
            for split, number in saved.samples.items()
            if samples.get(split, number) != number
        ),
        *(
            f"the {split} split has other photos"
            for split, fingerprint in saved.fingerprints.items()
            if (fingerprints or {}).get(split, fingerprint) != fingerprint
            and samples.get(split) == saved.samples.get(split)
        ),
    ]
    if data and not changed_data:
        raise ValueError(
            f"the data changed since step {step} of this run: {'; '.join(data)}. "
            "If it is meant, add --changed_data; otherwise mend the data, or choose another --workdir"
        )
    return [*data, *(line for name, line in fields.items() if name not in LABEL_FIELDS)]


def _changed_classes(before: ClassTable, after: ClassTable) -> list[str]:
    """One line for names or their order, and one for colors."""
    lines = []
    changed = [
        f"class {class_id} was {old!r}, is {new!r}"
        for class_id, (old, new) in enumerate(zip(before.names, after.names, strict=False))
        if old != new
    ]
    if changed:
        more = f" (and {len(changed) - 2} others)" if len(changed) > 2 else ""
        lines.append(", ".join(changed[:2]) + more)
    elif not np.array_equal(before.palette, after.palette):
        lines.append("the colors of classes are others")
    return lines
