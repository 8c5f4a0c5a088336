"""CamVid with a small ViT (DINOv3's form) or ConvNeXt V2 from scratch, for a test of the whole path."""
from fasseg_jax.config import convnext, load_config, vit

def get_config(variant):
    config = load_config("configs/folder.py:/tmp/w/camvid_test")
    if variant == "vit":
        config.model.backbone = vit("s", version=3)
        config.model.backbone.update(width=96, depth=4, num_heads=3, mlp_width=384, drop_path=0.1)
    else:
        config.model.backbone = convnext("t", version=2)
        config.model.backbone.update(width=32, blocks=(2, 2, 4, 2), drop_path=0.1)
    config.model.hidden_dim = 64
    config.model.pixel_decoder.update(num_layers=2, ffn_dim=128)
    config.model.decoder.update(num_queries=24, num_layers=5, ffn_dim=128, hrca_omega=4)
    config.loss.num_points = 1024
    config.data.max_targets = 12
    config.data.num_threads = 2
    config.optimizer.update(learning_rate=5e-4, backbone_multiplier=1.0, layer_decay=0.9)
    config.train.update(steps=60, batch_size=4, log_every=5, checkpoint_every=10, evaluate_every=60, evaluation_stride=20)
    config.augmentation.update(short_sides=(128, 160, 192), max_long_side=400, crop=(128, 128))
    config.inference.update(short_side=128, max_long_side=256)
    config.inference.multi_scale.update(short_sides=(96, 128), max_long_side=256)
    return config
