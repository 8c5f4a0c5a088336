"""A tiny FASeg on generated images: all of training in minutes, without any files.

    python train.py --config configs/shapes.py --workdir runs/shapes

takes about five minutes on two CPU cores. The model has every part of FASeg, but few channels, blocks and queries.
"""

from ml_collections import ConfigDict

from fasseg_jax.config import base_config


def get_config() -> ConfigDict:
    """FASeg with every part, but few channels, blocks and queries."""
    config = base_config()
    config.data.source = "shapes"
    config.data.dataset = "shapes"
    config.data.reduce_zero_label = False
    config.data.max_targets = 6
    config.data.num_threads = 2

    model = config.model
    model.num_classes = 6
    model.hidden_dim = 64
    model.backbone.update(blocks=(1, 1, 1, 1), width=16, norm="batch_norm")
    model.pixel_decoder.update(num_layers=2, ffn_dim=128)
    model.decoder.update(num_queries=16, num_layers=4, ffn_dim=128, hrca_omega=4)

    config.loss.num_points = 512
    config.optimizer.update(learning_rate=1e-3, backbone_multiplier=1.0)
    config.train.update(steps=1000, batch_size=8, log_every=20, checkpoint_every=200, evaluate_every=500)
    config.augmentation.update(short_sides=(96, 128, 160), max_long_side=256, crop=(128, 128))
    config.inference.update(short_side=128, max_long_side=256)
    config.inference.multi_scale.update(short_sides=(96, 128, 160), max_long_side=256)
    return config
