"""Your own data: a folder of photos and label maps, and a recipe that is sized by them.

    python train.py --config configs/folder.py:DIR --check      # look for mistakes in the data
    python train.py --config configs/folder.py:DIR --workdir WORKDIR --config.train.init=CHECKPOINT

CHECKPOINT is one of convert.py, such as that of ADE20K's ResNet-50; without it, all weights are random.

DIR holds

    images/training/NAME.jpg         images/validation/...         photos, in any format that Pillow reads
    annotations/training/NAME.png    annotations/validation/...    class ids in one channel, 8 or 16 bits or a palette
    classes.txt                      a line "name" or "id name R G B" for each class, ids from 0

or these in another layout (docs/own-data.md); `--check` says what it found. Ignored pixels are 255
(`--config.data.ignore_label`). If label files hold 0 for "nothing" and the classes begin at 1, add
`--config.data.reduce_zero_label=True`.

    DIR or DIR,base    FASeg with ResNet-50 as for ADE20K, to start from its weights (`--config.train.init`)
    DIR,small          11 million parameters, Swin with few channels; from scratch, on one GPU or patiently on a CPU
    DIR,tiny           the tiny FASeg of configs/shapes.py, for a CPU
    ...,strong         after any of these: photos are scaled from 0.1 to 2 (as in Ghiasi et al., Simple Copy-Paste,
                       CVPR 2021), not from 0.5 to 2

The number of photos sets the steps, and their size sets the crop; a line on the screen says what they became.
Evaluations, checkpoints and warm-up follow `train.steps`, and the steps follow `train.batch_size`, also if the command
line sets these. The run ends early if mIoU stops rising.
"""

import sys

from ml_collections import ConfigDict, FieldReference

from fasseg_jax.config import base_config, swin
from fasseg_jax.data.class_files import folder_classes
from fasseg_jax.data.classes import DataError
from fasseg_jax.data.sizing import TrainingSize, training_size
from fasseg_jax.importing.suggestion import explain
from fasseg_jax.runtime.files import Path

VARIANTS = ("base", "small", "tiny")
STRONG = "strong"

EPOCHS = 100  # of many photos,
FEWEST_SAMPLES = 32_000  # and more of few: 2,000 steps of batch 16
EVALUATIONS = 20  # of a run
LARGEST_CROP = {"base": 512, "small": 384, "tiny": 256}


def get_config(argument: str = "") -> ConfigDict:
    """`argument`: the folder of the data, or the one that `python -m fasseg_jax.data.tfds` made of them; see above."""
    folder, variant, strong = _read(argument)
    root = Path(folder).expanduser()
    config = base_config()
    config.data.root = folder
    config.data.dataset = ""  # the folder's own classes
    config.data.reduce_zero_label = False
    try:
        config.model.num_classes = len(folder_classes(root))
    except DataError as error:
        explain(error, root)
        raise
    _set_model(config, variant)
    size = training_size(config.data)
    if size is not None:
        _set_sizes(config, variant, size, strong)
        _set_steps(config, size.photos)
        _print(config, variant, size)
    return config


def _read(argument: str) -> tuple[str, str, bool]:
    """Folder, variant, and whether augmentation is strong."""
    if not argument:
        raise ValueError("name the folder of the data: configs/folder.py:DIR")
    folder, words = argument, []
    while "," in folder and not Path(folder).expanduser().is_dir():  # names of folders may hold commas
        folder, _, word = folder.rpartition(",")
        words.append(word)
    wrong = [word for word in words if word not in (*VARIANTS, STRONG)]
    if wrong or len(words) != len(set(words)) or len(set(words) - {STRONG}) > 1:
        raise ValueError(
            f"there is no folder {argument!r}; after configs/folder.py:{folder}, write one of "
            f"{', '.join(f',{name}' for name in VARIANTS)}, or nothing, and perhaps ,{STRONG}"
        )
    return folder, next((word for word in words if word != STRONG), "base"), STRONG in words


def _set_model(config: ConfigDict, variant: str) -> None:
    model = config.model
    queries = min(config.data.max_targets, model.num_classes)  # at least; each target needs one
    if variant == "small":
        model.backbone = swin("t")
        model.backbone.update(embed_dim=48, blocks=(2, 2, 2, 2), heads=(2, 4, 8, 16), drop_path=0.1)
        model.pixel_decoder.update(num_layers=2, ffn_dim=512)
        model.decoder.update(num_queries=max(30, queries), num_layers=5, ffn_dim=512)
        config.optimizer.update(learning_rate=3e-4, backbone_multiplier=1.0)
        config.train.batch_size = 8
    elif variant == "tiny":
        model.hidden_dim = 64
        model.backbone.update(blocks=(1, 1, 1, 1), width=16, norm="batch_norm")
        model.pixel_decoder.update(num_layers=2, ffn_dim=128)
        model.decoder.update(num_queries=max(16, queries), num_layers=4, ffn_dim=128, hrca_omega=4)
        config.optimizer.update(learning_rate=1e-3, backbone_multiplier=1.0)
        config.train.batch_size = 8


def _set_sizes(config: ConfigDict, variant: str, size: TrainingSize, strong: bool) -> None:
    """Scale photos around their own size, if that is not too large for the variant."""
    largest = LARGEST_CROP[variant]
    side = min(min(size.height, size.width) or largest, largest)
    crop = max(side // 32, 2) * 32
    config.augmentation.update(
        short_sides=tuple(max(side * tenths // 10, 8) for tenths in range(1 if strong else 5, 21)),
        max_long_side=4 * side,
        crop=(crop, crop),
    )
    config.inference.update(short_side=side, max_long_side=4 * side)
    config.inference.multi_scale.update(
        short_sides=tuple(side * quarters // 4 for quarters in range(2, 8)), max_long_side=7 * side
    )
    if variant != "base":
        config.loss.num_points = crop * crop // 36


def _set_steps(config: ConfigDict, photos: int) -> None:
    """Steps, and what follows them. References: an override of one field moves those that depend on it."""
    train = config.train
    samples = max(EPOCHS * photos, FEWEST_SAMPLES)
    batch_size = abs(train.get_ref("batch_size"))
    batch_size = batch_size + FieldReference(0) ** batch_size  # 1 for 0, which is refused later, by its name
    train.steps = (batch_size + (samples - 1)) // batch_size
    for field in ("evaluate_every", "checkpoint_every"):
        train[field] = (train.get_ref("steps") + (EVALUATIONS - 1)) // EVALUATIONS
    config.optimizer.warmup_steps = train.get_ref("steps") // 20
    train.update(patience=8, ema_decay=0.999)
    config.data.repeat_below = 0.5
    config.augmentation.balanced_crops = 0.5


def _print(config: ConfigDict, variant: str, size: TrainingSize) -> None:
    train, side = config.train, config.augmentation.crop[0]
    epochs = train.steps * train.batch_size / size.photos
    photos = f"{size.photos} training photos of about {size.width}x{size.height} pixels"
    print(
        f"configs/folder.py, {variant}: {photos}: crops of {side}x{side}, {train.steps:,} steps of batch "
        f"{train.batch_size} ({epochs:.0f} epochs), evaluation every {train.evaluate_every:,} steps "
        f"({epochs / EVALUATIONS:.1f} epochs). --config.NAME=VALUE overrides any of them.",
        file=sys.stderr,
    )
