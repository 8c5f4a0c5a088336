"""Your own data: the recipe for ADE20K on a folder of photos and label maps.

    python train.py --config configs/folder.py:DIR --check      # look for mistakes in the data
    python train.py --config configs/folder.py:DIR --workdir WORKDIR

DIR holds

    images/training/NAME.jpg         images/validation/...         photos, in any format that Pillow reads
    annotations/training/NAME.png    annotations/validation/...    class ids in one channel, 8 or 16 bits or a palette
    classes.txt                      a line "id name R G B" for each class, ids from 0; or classes.csv

Ignored pixels are 255 (`--config.data.ignore_label`). If label files hold 0 for "nothing" and the classes begin at 1,
add `--config.data.reduce_zero_label=True`.
"""

from ml_collections import ConfigDict

from fasseg_jax.config import base_config
from fasseg_jax.data.sources.folder import folder_classes
from fasseg_jax.runtime.files import make_path


def get_config(folder: str = "") -> ConfigDict:
    """`folder`: the folder of the data, or the one that `python -m fasseg_jax.data.tfds` made of them."""
    if not folder:
        raise ValueError("name the folder of the data: configs/folder.py:DIR")
    config = base_config()
    config.data.root = folder
    config.data.dataset = ""  # the folder's own classes
    config.data.reduce_zero_label = False
    config.model.num_classes = len(folder_classes(make_path(folder).expanduser()))
    return config
