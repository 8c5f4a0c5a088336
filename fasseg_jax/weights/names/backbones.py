"""Names of the backbones' parameters in PyTorch programs."""

from fasseg_jax.weights.names.rules import Rule, batch_norm_rules, conv_rules, linear_rules, norm_rules

__all__ = ["BACKBONE_RULES", "TORCHVISION_RULES"]


BACKBONE_RULES = [
    # ResNet, Detectron2's names
    *conv_rules("stem.conv1", "backbone/stem_conv"),
    *batch_norm_rules("stem.conv1.norm", "backbone/stem_norm"),
    *conv_rules("res{s}.{i}.conv{n}", "backbone/res{s}_{i}/conv{n}"),
    *batch_norm_rules("res{s}.{i}.conv{n}.norm", "backbone/res{s}_{i}/norm{n}"),
    *conv_rules("res{s}.{i}.shortcut", "backbone/res{s}_{i}/shortcut"),
    *batch_norm_rules("res{s}.{i}.shortcut.norm", "backbone/res{s}_{i}/shortcut_norm"),
    # Swin, Microsoft's names
    *conv_rules("patch_embed.proj", "backbone/patch_embed"),
    *norm_rules("patch_embed.norm", "backbone/patch_norm"),
    *norm_rules("layers.{s}.blocks.{i}.norm{n}", "backbone/stage{s}_block{i}/norm{n}"),
    Rule(
        "layers.{s}.blocks.{i}.attn.relative_position_bias_table",
        "backbone/stage{s}_block{i}/attention/relative_position_bias",
    ),
    *linear_rules("layers.{s}.blocks.{i}.attn.qkv", "backbone/stage{s}_block{i}/attention/qkv"),
    *linear_rules("layers.{s}.blocks.{i}.attn.proj", "backbone/stage{s}_block{i}/attention/proj"),
    *linear_rules("layers.{s}.blocks.{i}.mlp.fc{n}", "backbone/stage{s}_block{i}/fc{n}"),
    *norm_rules("layers.{s}.downsample.norm", "backbone/stage{s}_merge/norm"),
    *linear_rules("layers.{s}.downsample.reduction", "backbone/stage{s}_merge/reduction"),
    *norm_rules("norm{s}", "backbone/norm{s}"),
]

TORCHVISION_RULES = [
    *conv_rules("conv1", "backbone/stem_conv"),
    *batch_norm_rules("bn1", "backbone/stem_norm"),
]
for _layer, _res in (("layer1", "res2"), ("layer2", "res3"), ("layer3", "res4"), ("layer4", "res5")):
    TORCHVISION_RULES += [
        *conv_rules(_layer + ".{i}.conv{n}", f"backbone/{_res}" + "_{i}/conv{n}"),
        *batch_norm_rules(_layer + ".{i}.bn{n}", f"backbone/{_res}" + "_{i}/norm{n}"),
        *conv_rules(_layer + ".{i}.downsample.0", f"backbone/{_res}" + "_{i}/shortcut"),
        *batch_norm_rules(_layer + ".{i}.downsample.1", f"backbone/{_res}" + "_{i}/shortcut_norm"),
    ]
