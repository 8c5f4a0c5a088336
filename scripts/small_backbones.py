"""Small networks on today's backbones, from scratch, for scripts/whole_path.py; on two CPU cores, in minutes.

    vit,DIR         a ViT of DINOv3's form
    convnext,DIR    a ConvNeXt V2

DIR holds the data as configs/folder.py wants them.
"""

from ml_collections import ConfigDict

from fasseg_jax.config import convnext, load_config, vit


def get_config(argument: str) -> ConfigDict:
    """`argument`: "vit" or "convnext", a comma, and the folder of the data."""
    name, _, folder = argument.partition(",")
    config = load_config(f"configs/folder.py:{folder},tiny")
    if name == "vit":
        config.model.backbone = vit("s", version=3)
        config.model.backbone.update(width=96, depth=4, num_heads=3, mlp_width=384, drop_path=0.1)
    elif name == "convnext":
        config.model.backbone = convnext("t", version=2)
        config.model.backbone.update(width=32, blocks=(2, 2, 4, 2), drop_path=0.1)
    else:
        raise ValueError(f"{argument!r} begins with neither 'vit,' nor 'convnext,'")
    config.optimizer.update(learning_rate=5e-4, layer_decay=0.9)
    config.train.update(steps=60, batch_size=4, log_every=5, checkpoint_every=20, evaluate_every=60)
    config.augmentation.update(short_sides=(128, 160, 192), max_long_side=400, crop=(128, 128))
    config.inference.update(short_side=128, max_long_side=256)
    return config
