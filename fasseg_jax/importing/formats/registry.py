"""The formats that can be imported."""

from fasseg_jax.data.classes import DataError
from fasseg_jax.importing.annotations import Format
from fasseg_jax.importing.formats.binary_masks import BINARY_MASKS
from fasseg_jax.importing.formats.cityscapes import CITYSCAPES_POLYGONS
from fasseg_jax.importing.formats.coco import COCO
from fasseg_jax.importing.formats.coco_panoptic import COCO_PANOPTIC
from fasseg_jax.importing.formats.color_masks import COLOR_MASKS
from fasseg_jax.importing.formats.cvat import CVAT
from fasseg_jax.importing.formats.hugging_face import HUGGING_FACE
from fasseg_jax.importing.formats.label_studio import LABEL_STUDIO
from fasseg_jax.importing.formats.labelme import LABELME
from fasseg_jax.importing.formats.voc import VOC
from fasseg_jax.importing.formats.yolo import YOLO
from fasseg_jax.runtime.files import Path

__all__ = ["FORMATS", "find_format"]

# `--format` -> the format. A new format is a file that defines one, and a line here.
FORMATS: dict[str, Format] = {
    "labelme": LABELME,
    "coco": COCO,
    "coco_panoptic": COCO_PANOPTIC,
    "yolo": YOLO,
    "voc": VOC,
    "color_masks": COLOR_MASKS,
    "binary_masks": BINARY_MASKS,
    "cityscapes_polygons": CITYSCAPES_POLYGONS,
    "cvat": CVAT,
    "label_studio": LABEL_STUDIO,
    "hugging_face": HUGGING_FACE,
}


def find_format(source: Path) -> str:
    """Recognize the format of a folder or file.

    Raises:
      DataError: none fits, or several do.
    """
    fitting = [name for name, candidate in FORMATS.items() if candidate.recognize(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(f"{source} may be {' or '.join(fitting)}: choose by --format")
    raise DataError(f"{source} has no format that is known; if it is one of {', '.join(FORMATS)}, name it by --format")
