"""The model card of a shared model: README.md with the metadata that the Hugging Face Hub reads, and commands."""

import json
import re
from collections.abc import Mapping
from typing import Any

import jax

from fasseg_jax.runtime.files import Path
from fasseg_jax.weights.checkpoint import Checkpoint
from fasseg_jax.weights.hugging_face_config import is_mask2former

__all__ = ["TRANSFORMERS_CODE", "model_card", "read_metrics"]

# Field of metrics.json -> its name for readers.
METRICS = {
    "mean_iou": "mIoU",
    "mean_boundary_iou": "boundary mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}

# A test executes this code, and compares its labels with those of this package.
TRANSFORMERS_CODE = """\
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad
from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

processor = AutoImageProcessor.from_pretrained(name)
model = Mask2FormerForUniversalSegmentation.from_pretrained(name).eval()
photo = Image.open("photo.jpg").convert("RGB")
scale = processor.size["shortest_edge"] / min(photo.size)
limit = min(1, processor.size["longest_edge"] / max(side * scale for side in photo.size))
width, height = (int(side * scale * limit + 0.5) for side in photo.size)
size = {"height": height, "width": width}
pixels = processor(photo, size=size, size_divisor=1, return_tensors="pt")["pixel_values"]
pixels = pad(pixels, (0, -width % 32, 0, -height % 32))
with torch.no_grad():
    outputs = model(pixel_values=pixels)
masks = interpolate(outputs.masks_queries_logits, size=pixels.shape[-2:], mode="bilinear").sigmoid()
classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
scores = torch.einsum("bqc,bqhw->bchw", classes, masks)[..., :height, :width]
labels = interpolate(scores, size=photo.size[::-1], mode="bilinear")[0].argmax(0)
"""


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Read metrics.json of an evaluation's folder.

    Raises:
      ValueError: it is absent, or no such file; the message names it.
    """
    file = Path(folder) / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        numbers = {name: content["metrics"][name] for name in METRICS}
        if not all(value is None or (type(value) in (int, float) and 0 <= value <= 1) for value in numbers.values()):
            raise ValueError("a metric is no number from 0 to 1")
        facts = {name: str(content[name]) for name in ("data", "images", "inference")}
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); name the folder of an evaluation") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file}: not the metrics of an evaluation ({type(error).__name__}: {error})") from error
    return {"numbers": numbers, **facts}


def model_card(
    checkpoint: Checkpoint, name: str, license_id: str = "", evaluation: Mapping[str, Any] | None = None
) -> str:
    """Write README.md of a shared model.

    Args:
      checkpoint: the model.
      name: of the repository, OWNER/NAME, or of the folder.
      license_id: as the Hub names licenses, for example "apache-2.0"; empty: the card says that none is given.
      evaluation: from `read_metrics`; None: the card says that no metrics are known.
    """
    theirs = is_mask2former(checkpoint.config.model)
    kind = "Mask2Former" if theirs else "FASeg"
    data = checkpoint.config.data.dataset
    sections = [
        _metadata(name, kind, data, license_id, evaluation),
        f"# {name.rpartition('/')[2]}",
        f"A {kind} for semantic segmentation, in the format of fasseg_jax. {_facts(checkpoint)}",
        _results(evaluation),
        _use(name, theirs),
        _classes(checkpoint),
        f"## License\n\n{license_id or 'No license is given: ask the owner of this repository before you use it.'}",
        "## Citation\n\nFASeg: He et al., Dynamic Focus-aware Positional Queries for Semantic Segmentation, CVPR 2023, "
        "[arXiv:2204.01244](https://arxiv.org/abs/2204.01244). Mask2Former: Cheng et al., Masked-attention Mask "
        "Transformer for Universal Image Segmentation, CVPR 2022, [arXiv:2112.01527](https://arxiv.org/abs/2112.01527).",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(name: str, kind: str, data: str, license_id: str, evaluation: Mapping[str, Any] | None) -> str:
    """The block of YAML that the Hub reads; every value is JSON, which YAML includes."""
    fields: dict[str, Any] = {
        "library_name": "transformers" if kind == "Mask2Former" else "fasseg_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "jax", "fasseg_jax", kind.lower()],
    }
    if license_id:
        fields["license"] = license_id
    numbers = {} if evaluation is None else evaluation["numbers"]
    if any(value is not None for value in numbers.values()):
        metrics = [
            {"type": field, "name": METRICS[field], "value": round(100 * value, 2)}
            for field, value in numbers.items()
            if value is not None
        ]
        task = {"type": "image-segmentation", "name": "semantic segmentation"}
        dataset = {"type": data or "custom", "name": data or "custom", "split": "validation"}
        fields["model-index"] = [
            {"name": name.rpartition("/")[2], "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
        ]
    return "\n".join(["---", *(f"{field}: {json.dumps(value)}" for field, value in fields.items()), "---"])


def _facts(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.variables["params"]))
    return (
        f"{parameters / 1e6:.1f}M parameters, backbone {config.model.backbone.kind}, {len(checkpoint.classes)} classes"
        f"{f' of {config.data.dataset}' if config.data.dataset else ''}. Photos are resized to a shorter side of "
        f"{config.inference.short_side} pixels, and a longer one of at most {config.inference.max_long_side}."
    )


def _results(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "## Results\n\nNo evaluation was given with this model."
    shown = [(METRICS[field], value) for field, value in evaluation["numbers"].items() if value is not None]
    rows = "\n".join(f"| {title} | {100 * value:.2f} |" for title, value in shown)
    about = f"{evaluation['images']} images ({_plain(evaluation['data'])}), {_plain(evaluation['inference'])}"
    return f"## Results\n\n{about}; in percent:\n\n| | |\n|---|---|\n{rows}"


def _use(name: str, theirs: bool) -> str:
    reference = f"hf://{name}" if "/" in name else name
    text = f"""## Use

```sh
pip install "fasseg_jax[hub]"
fasseg predict --checkpoint {reference} --input photo.jpg --output results
fasseg eval --checkpoint {reference} --config folder:DATA
```

```python
from fasseg_jax import Segmenter

segmenter = Segmenter.from_pretrained("{reference}")
```"""
    if not theirs:
        return f"{text}\n\n`transformers` has no FASeg; model.safetensors has the names of the official program."
    return f"""{text}

### With transformers

`pipeline("image-segmentation", model="{name}")` and `post_process_semantic_segmentation` work, but give other labels on
some pixels: transformers stretches photos to multiples of 32 pixels, where fasseg_jax pads them, and compares classes
on a grid of 384 x 384 points. No setting of the folder changes that. This code gives the labels of fasseg_jax:

```python
name = "{name}"

{TRANSFORMERS_CODE}```"""


def _classes(checkpoint: Checkpoint) -> str:
    names = ", ".join(f"{index} {_plain(name)}" for index, name in enumerate(checkpoint.classes.names))
    return f"## Classes\n\n{names}"


def _plain(text: str) -> str:
    """Text without the letters that Markdown and HTML would interpret."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)
