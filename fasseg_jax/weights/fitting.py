"""Finds which model weights belong to: the prefix of their names, and the architecture that their shapes show."""

import collections
import re
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.weights.backbones import FOREIGN_BACKBONES
from fasseg_jax.weights.names.rules import find_rule
from fasseg_jax.weights.safe_pickle import shorten

__all__ = ["best_fit", "remove_prefix"]

HEAD = re.compile(r"(?:^|\.)(?=sem_seg_head\.)")
NAMES_TRIED = 2000

# Kind, blocks and width of a backbone -> the recipe that has it.
RECIPES: dict[tuple, str] = {
    ("resnet", (3, 4, 6, 3), 64): "r50",
    ("resnet", (3, 4, 23, 3), 64): "r101",
    ("swin", (2, 2, 6, 2), 96): "swin_t",
    ("swin", (2, 2, 18, 2), 96): "swin_s",
    ("swin", (2, 2, 18, 2), 128): "swin_b",
    ("swin", (2, 2, 18, 2), 192): "swin_l",
    ("convnext", (3, 3, 9, 3), 96): "convnext_t or convnextv2_t",
    ("convnext", (3, 3, 27, 3), 96): "convnext_s",
    ("convnext", (3, 3, 27, 3), 128): "convnext_b or convnextv2_b",
    ("convnext", (3, 3, 27, 3), 192): "convnext_l or convnextv2_l",
    ("vit", (12,), 384): "dinov2_s, dinov2r_s or dinov3_s",
    ("vit", (12,), 768): "dinov2_b, dinov2r_b or dinov3_b",
    ("vit", (24,), 1024): "dinov2_l, dinov2r_l or dinov3_l",
}


def remove_prefix(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Remove what a wrapper put before all names: "module.", "model.", "_orig_mod.", or any other prefix.

    Args:
      state_dict: of the official FASeg or Mask2Former, or of an ImageNet backbone.

    Returns:
      The weights, and the prefix, empty if there is none. Names without the prefix stay as they are.

    Raises:
      ValueError: the weights are of several models, each with a prefix of its own.
    """
    prefixes = {name[: found.end()] for name in state_dict if (found := HEAD.search(name))}
    if len(prefixes) > 1:
        listed = " and ".join(repr(shorten(prefix)) for prefix in sorted(prefixes)[:4])
        raise ValueError(f"holds several models, whose names have the prefixes {listed}; save one of them")
    prefix = prefixes.pop() if prefixes else _prefix_of_backbone(list(state_dict))
    renamed = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    if len(renamed) < len(state_dict):
        raise ValueError(f"holds names with and without the prefix {shorten(prefix)!r}; save one of the models")
    return renamed, prefix


def _prefix_of_backbone(names: list[str]) -> str:
    """The prefix without which most names are those of an ImageNet backbone."""
    tables = [table for backbone in FOREIGN_BACKBONES.values() for table in backbone.imagenet]
    prefixes: dict[str, int] = collections.Counter()
    for name in names[:NAMES_TRIED]:
        parts = name.split(".")
        for i in range(min(len(parts) - 1, 4)):
            prefixes["".join(part + "." for part in parts[:i])] += 1
    best, most_known = "", 0
    for prefix, count in sorted(prefixes.items(), key=lambda item: len(item[0])):
        if count > most_known and 2 * count > min(len(names), NAMES_TRIED):
            rest = [name.removeprefix(prefix) for name in names[:NAMES_TRIED] if name.startswith(prefix)]
            known = max(sum(find_rule(name, table) is not None for name in rest) for table in tables)
            if known > most_known:
                best, most_known = prefix, known
    return best


def best_fit(state_dict: Mapping[str, np.ndarray], model_config: ConfigDict) -> str:
    """One line: the configuration that the weights fit best; empty if they show no other than `model_config`."""
    theirs = _architecture(state_dict)
    backbone = model_config.backbone
    ours = {
        "kind": backbone.kind,
        "blocks": (backbone.depth,) if backbone.kind == "vit" else tuple(backbone.blocks),
        "width": backbone.embed_dim if backbone.kind == "swin" else backbone.width,
        "queries": model_config.decoder.num_queries,
        "classes": model_config.num_classes,
    }
    if "kind" not in theirs:
        known = ", ".join(FOREIGN_BACKBONES)
        return f"no name is of a backbone that is known here ({known}); are they another model's?" if theirs else ""
    different = {field: value for field, value in theirs.items() if ours.get(field) != value}
    if not different:
        return ""
    recipe = RECIPES.get((theirs["kind"], theirs["blocks"], theirs.get("width")))
    named = f", as in the recipe {recipe}" if recipe else ""
    listed = ", ".join(f"{value} {field}" for field, value in different.items() if field in ("queries", "classes"))
    text = f"{theirs['kind']} with blocks {theirs['blocks']} and width {theirs.get('width')}{named}"
    return f"they fit best: {text}" + (f"; {listed}" if listed else "")


def _architecture(state_dict: Mapping[str, np.ndarray]) -> dict:
    """What names and shapes show of the architecture."""
    blocks: dict[str, dict[int, int]] = {kind: {} for kind in FOREIGN_BACKBONES}
    found: dict = {}
    for name, value in state_dict.items():
        name = name.removeprefix("backbone.")
        for kind, foreign in FOREIGN_BACKBONES.items():
            if match := foreign.blocks.match(name):
                stage, block = int(match[1] or 0), int(match[2][:4])
                blocks[kind][stage] = max(blocks[kind].get(stage, 0), block + 1)
        if not value.shape:
            continue
        if any(name in foreign.stems for foreign in FOREIGN_BACKBONES.values()):
            found["width"] = value.shape[0]
        elif name.endswith(("predictor.query_feat.weight", "predictor.static_query.weight")):
            found["queries"] = value.shape[0]
        elif name.endswith("predictor.class_embed.weight"):
            found["classes"] = value.shape[0] - 1
    for kind, stages in blocks.items():
        if len(stages) == FOREIGN_BACKBONES[kind].num_stages:
            found |= {"kind": kind, "blocks": tuple(stages[stage] for stage in sorted(stages))}
    return found
