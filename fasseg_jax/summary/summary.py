"""Parameters, arithmetic and memory of a configuration's network."""

import dataclasses
import re
from collections import Counter, defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.summary.flops import count_multiply_adds

__all__ = ["Part", "Summary", "print_summary", "summarize"]

SECTIONS = ("backbone", "pixel_decoder", "decoder")  # of the network, in the order of computation


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the network: `repeats` modules whose names differ only in their number, as one ("encoder_#")."""

    name: str
    repeats: int = 0
    parameters: int = 0
    multiply_adds: int = 0


@dataclasses.dataclass(frozen=True)
class Summary:
    """Numbers of a network for images (B, H, W, 3).

    Attributes:
      parts: in the order of the network; their `multiply_adds` are those of one image.
      constants: number of values that no optimizer changes, such as the statistics of batch norm.
      published_multiply_adds: those of one image if all layers predict masks at full size, as in the official program
        and in training.
      argument_bytes: weights and images of the compiled program.
      temporary_bytes: activations.
      output_bytes: results.
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


def summarize(config: ConfigDict, size: tuple[int, int], batch: int = 1) -> Summary:
    """Examine the network of `config.model`.

    Args:
      config: the whole configuration.
      size: (H, W) of the images in pixels, multiples of 32.
      batch: B, images in a batch; it matters only for the memory.

    Raises:
      ValueError: a field of `config.model` is not allowed.
    """
    model = build_model(config.model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    one_image, images = (jax.ShapeDtypeStruct((n, *size, 3), jnp.float32) for n in (1, batch))
    traced = jax.jit(model.apply).trace(variables, one_image)
    every_layer = jax.make_jaxpr(lambda *arguments: model.apply(*arguments, all_predictions=True))(variables, one_image)
    lowered = jax.jit(model.apply).lower(variables, images) if batch > 1 else traced.lower()
    memory = lowered.compile().memory_analysis()
    assert memory is not None, "XLA reports the memory of a program on every platform of the project"
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
    """The parts with parameters and multiply-adds, in the order of computation; those without products come last."""
    modules: defaultdict[str, set[str]] = defaultdict(set)
    sizes: Counter[str] = Counter()
    for path, leaf in flatten_dict(parameters, sep="/").items():
        module = "/".join(path.split("/")[:2])
        modules[_without_number(module)].add(module)
        sizes[_without_number(module)] += leaf.size

    counts: Counter[str] = Counter()
    for scope, count in multiply_adds.items():
        section, *inner = scope.split("/")[1:]  # without the network itself, "FASeg"
        name = _without_number("/".join([section, *inner[:1]]))
        counts[name if name in sizes else f"{section}/products of activations"] += count

    computed = list(counts)

    def order(name: str) -> tuple[int, int]:
        section = SECTIONS.index(name.split("/")[0])
        return section, computed.index(name) if name in counts else len(computed)

    names = sorted({**sizes, **counts}, key=order)
    return [Part(name, len(modules.get(name, ())), sizes[name], counts[name]) for name in names]


def _without_number(module: str) -> str:
    """A module's name with # for its number: "backbone/res2_0" -> "backbone/res2_#"."""
    return re.sub(r"(?<=[a-z_])\d+$", "#", module)


def print_summary(summary: Summary, title: str, batch: int, console: Console) -> None:
    """Print two tables: the parts of the network, and its totals.

    Args:
      summary: of a batch of `batch` images.
      title: above the first table.
      batch: B.
      console: to print to.
    """
    console.print(_table_of_parts(summary, title))
    console.print(_table_of_totals(summary, f"{batch} image{'s' * (batch > 1)}"))


def _table_of_parts(summary: Summary, title: str) -> Table:
    table = Table(title=Text(title, "bold"), box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("module", "all")
    table.add_column("modules", justify="right")
    table.add_column("parameters", f"{summary.parameters:,}", justify="right", footer_style="bold")
    table.add_column("share", justify="right")
    table.add_column("multiply-adds", _giga(summary.multiply_adds, 2), justify="right", footer_style="bold")
    table.add_column("share", justify="right")
    previous = None
    for part in summary.parts:
        section = part.name.split("/")[0]
        if previous not in (None, section):
            table.add_section()
        previous = section
        table.add_row(
            Text(part.name),
            str(part.repeats or ""),
            f"{part.parameters:,}" if part.parameters else "",
            _share(part.parameters, summary.parameters),
            _giga(part.multiply_adds, 2) if part.multiply_adds else "",
            _share(part.multiply_adds, summary.multiply_adds),
        )
    return table


def _table_of_totals(summary: Summary, images: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    if summary.constants:
        table.add_row("constants", f"{summary.constants:,}", "values of batch norm that are not trained")
    table.add_row("multiply-adds", _giga(summary.multiply_adds), "of an image: convolutions and products, as above")
    published = _giga(summary.published_multiply_adds)
    table.add_row("as published", published, "of an image, if all layers predict masks at full size, as papers count")
    device = jax.devices()[0].device_kind
    table.add_row("activations", _mebibytes(summary.temporary_bytes), f"of {images}, at most, compiled for {device}")
    table.add_row("weights, input", _mebibytes(summary.argument_bytes))
    for name, shape in summary.outputs.items():
        table.add_row(name.replace("_", " "), "", str(shape))
    return table


def _giga(number: int, digits: int = 1) -> str:
    return f"{number / 1e9:.{digits}f} G"


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:.0f} MiB"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part else ""
