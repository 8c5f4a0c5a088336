"""What a configuration's network has and needs: parameters, arithmetic, memory."""

import dataclasses
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.summary.flops import count_multiply_adds

__all__ = ["Part", "Summary", "print_summary", "summarise"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the network: `repeats` modules whose names differ in their number alone, joined ("encoder_#")."""

    name: str
    repeats: int = 0
    parameters: int = 0
    multiply_adds: int = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The facts of a network for images (B, H, W, 3).

    Attributes:
      parts: in the order of the network; `multiply_adds` of one image.
      constants: number of values that no optimiser changes, such as the statistics of batch norm.
      published_multiply_adds: of one image, with all layers' masks at full size, as the official program computes them,
        and as training does here.
      argument_bytes, temporary_bytes, output_bytes: of the compiled program: weights and images, activations, results.
      outputs: {name: shape}.
    """

    parts: list[Part]
    constants: int
    published_multiply_adds: int
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    outputs: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def multiply_adds(self) -> int:
        return sum(part.multiply_adds for part in self.parts)


def summarise(config: ConfigDict, size: tuple[int, int], batch: int = 1) -> Summary:
    """Examine the network of `config.model` for images of `size` (H, W), multiples of 32."""
    model = build_model(config.model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    one_image, images = (jax.ShapeDtypeStruct((n, *size, 3), jnp.float32) for n in (1, batch))
    traced = jax.jit(model.apply).trace(variables, one_image)
    every_layer = jax.make_jaxpr(lambda *arguments: model.apply(*arguments, all_predictions=True))(variables, one_image)
    lowered = jax.jit(model.apply).lower(variables, images) if batch > 1 else traced.lower()
    memory = lowered.compile().memory_analysis()
    return Summary(
        parts=_parts(variables["params"], count_multiply_adds(traced.jaxpr.jaxpr)),
        constants=sum(leaf.size for leaf in jax.tree.leaves(variables.get("batch_stats", {}))),
        published_multiply_adds=count_multiply_adds(every_layer.jaxpr).total(),
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        outputs={name: value.shape for name, value in vars(lowered.out_info).items()},
    )


def _parts(parameters: dict[str, Any], multiply_adds: Counter[str]) -> list[Part]:
    modules, sizes, counts = {}, Counter(), Counter()
    for path, leaf in flatten_dict(parameters, sep="/").items():
        module = "/".join(path.split("/")[:2])
        modules.setdefault(_joined(module), set()).add(module)
        sizes[_joined(module)] += leaf.size
    for place, count in multiply_adds.items():
        # "FASeg/decoder/decoder._predict/class_embed/...": names of methods and of operations are no identifiers.
        path = [part for part in place.split("/")[1:] if part.isidentifier()]
        name = _joined("/".join(path[:2]))
        counts[name if name in sizes else f"{path[0]}/products of activations"] += count
    # In the order of computation; what computes no products comes last.
    sections, computed = ["backbone", "pixel_decoder", "decoder"], list(counts)
    place = lambda name: computed.index(name) if name in counts else len(counts)
    names = sorted({**sizes, **counts}, key=lambda name: (sections.index(name.split("/")[0]), place(name)))
    return [Part(name, len(modules.get(name, ())), sizes[name], counts[name]) for name in names]


def _joined(module: str) -> str:
    """A module's name without its number: "backbone/res2_0" -> "backbone/res2_#"."""
    return re.sub(r"(?<=[a-z_])\d+$", "#", module)


def print_summary(summary: Summary, title: str, batch: int, console: Console) -> None:
    """Print the facts as two tables."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", show_footer=True)
    table.add_column("module", "all")
    table.add_column("modules", justify="right")
    table.add_column("parameters", f"{summary.parameters:,}", justify="right", footer_style="bold")
    table.add_column("share", justify="right")
    table.add_column("multiply-adds", f"{summary.multiply_adds / 1e9:.2f} G", justify="right", footer_style="bold")
    table.add_column("share", justify="right")
    previous = None
    for part in summary.parts:
        section = part.name.split("/")[0]
        if previous not in (None, section):
            table.add_section()
        previous = section
        table.add_row(
            escape(part.name),
            str(part.repeats or ""),
            f"{part.parameters:,}" if part.parameters else "",
            _share(part.parameters, summary.parameters),
            f"{part.multiply_adds / 1e9:.2f} G" if part.multiply_adds else "",
            _share(part.multiply_adds, summary.multiply_adds),
        )
    console.print(table)

    images, device = f"{batch} image{'s' * (batch > 1)}", jax.devices()[0].device_kind
    giga, mebibytes = lambda number: f"{number / 1e9:.1f} G", lambda number: f"{number / 2**20:.0f} MiB"
    facts = Table(box=None, show_header=False, padding=(0, 2))
    if summary.constants:
        facts.add_row("constants", f"{summary.constants:,}", "values of batch norm beside the parameters")
    facts.add_row("multiply-adds", giga(summary.multiply_adds), "an image: convolutions and products, as above")
    published = giga(summary.published_multiply_adds)
    facts.add_row("as published", published, "an image: all layers' masks at full size, as papers count FLOPs")
    facts.add_row("activations", mebibytes(summary.temporary_bytes), f"{images}: at most, compiled for {device}")
    facts.add_row("weights, input", mebibytes(summary.argument_bytes))
    for name, shape in summary.outputs.items():
        facts.add_row(name.replace("_", " "), "", str(shape))
    console.print(facts)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part else ""
