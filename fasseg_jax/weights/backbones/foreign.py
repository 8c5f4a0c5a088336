"""How other programs store a backbone."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.weights.names.rules import Rule

__all__ = ["STAGES", "ForeignBackbone", "check_fixed"]

STAGES = ["stage1", "stage2", "stage3", "stage4"]  # transformers' names of the features at strides 4, 8, 16, 32


@dataclasses.dataclass(frozen=True)
class ForeignBackbone:
    """How other programs store a backbone. Flax paths begin with "backbone/".

    Attributes:
      official: the names in files of the official FASeg and Mask2Former, without "backbone.".
      imagenet: the alternative names in files of ImageNet classifiers; the table that knows most names of a file reads
        it.
      blocks: matches the beginning of names of a block's parameters in the tables above; its groups are the numbers of
        the stage and of the block.
      num_stages: number of the stages.
      stems: in these tables, the names of the weights whose first axis is the width.
      classifier: matches the names of such a file that only classification needs; they are not read.
      hugging_face: the names in transformers' Mask2Former, without "model.pixel_level_module.encoder."; empty if that
        cannot have the backbone.
      fixed: fields of transformers' `backbone_config`, with the only value that the network here supports.
      model_types: the values of transformers' `model_type`.
      read: translates `backbone_config` to `config.model.backbone`; adds what is not supported to the given list.
      describe: translates `config.model.backbone` to fields of `backbone_config`, without those of `fixed`, and with
        `model_type` if there are several.
      prepare: brings the state dict of such a file into the form that the tables know.
      not_in_imagenet: matches the paths that an ImageNet file lacks; they keep their initial values.
    """

    official: Sequence[Rule]
    imagenet: Sequence[Sequence[Rule]]
    blocks: re.Pattern[str]
    stems: tuple[str, ...]
    classifier: re.Pattern[str]
    hugging_face: Sequence[Rule]
    fixed: dict[str, Any]
    read: Callable[[dict[str, Any], list[str]], ConfigDict]
    describe: Callable[[ConfigDict], dict[str, Any]]
    model_types: tuple[str, ...]
    not_in_imagenet: re.Pattern[str] | None = None
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda state_dict: state_dict
    num_stages: int = 4


def check_fixed(fields: dict[str, Any], fixed: dict[str, Any], prefix: str, problems: list[str]) -> None:
    """Add a problem for each field that differs from its only supported value; absent fields have that value."""
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            problems.append(f"{prefix}{name} is {fields[name]}; it must be {value}")
