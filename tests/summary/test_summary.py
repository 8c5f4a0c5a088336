import functools
import io
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from fasseg_jax.config import load_config
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.command_line import parse_size
from fasseg_jax.summary.flops import count_multiply_adds
from fasseg_jax.summary.summary import Part, Summary, print_summary, summarize
from tests.helpers import ROOT
from tests.helpers.markup import MARKUP
from tests.helpers.weight_cases import OFFICIAL


def count(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_multiply_adds(jax.make_jaxpr(function)(*arrays).jaxpr)


def test_products():
    assert count(jnp.matmul, (3, 5), (5, 7)).total() == 3 * 5 * 7
    assert (
        count(functools.partial(jnp.einsum, "bqc,bhwc->bqhw"), (2, 3, 5), (2, 7, 11, 5)).total() == 2 * 3 * 5 * 7 * 11
    )
    assert count(lambda a, b: a * b + 1, (3, 5), (3, 5)).total() == 0


def test_convolutions_are_counted_as_a_loop_would():
    def convolve(groups):
        return lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    # output pixels x output channels x (3 x 3 pixels x input channels of a group)
    assert count(convolve(1), (2, 8, 12, 6), (3, 3, 6, 10)).total() == 2 * 4 * 6 * 10 * 9 * 6
    assert count(convolve(6), (2, 8, 12, 6), (3, 3, 1, 12)).total() == 2 * 4 * 6 * 12 * 9


def test_loops_calls_and_platforms():
    def function(x, y):
        with jax.named_scope("loop"):
            x, _ = jax.lax.scan(lambda carry, _: (jax.jit(jnp.matmul)(carry, y), None), x, length=4)
        with jax.named_scope("choice"):
            return jax.lax.platform_dependent(x, tpu=lambda x: x @ y @ y, default=lambda x: x @ y)

    product = 3 * 5 * 5
    by_scope = {}
    for scope, number in count(function, (3, 5), (5, 5)).items():
        by_scope[scope.split("/")[0]] = by_scope.get(scope.split("/")[0], 0) + number
    assert by_scope == {"loop": 4 * product, "choice": product}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "official", "published"),
    [("r50", "faseg_r50_ade20k", 72e9), ("swin_t", "faseg_swin_tiny_ade20k", 75e9)],
)
def test_published_numbers(variant, official, published):
    """The paper's table 1 (512 x 512), which also counts the norms: 1 to 2% more."""
    model = build_model(load_config(f"configs/ade20k.py:{variant}").model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda *arguments: model.apply(*arguments, all_predictions=True))(variables, image)
    counts = count_multiply_adds(traced.jaxpr)
    assert 0.975 * published < counts.total() < published
    # A 3x3 convolution of 256 channels at stride 4.
    assert counts["FASeg/pixel_decoder/output_conv"] == 128 * 128 * 256 * 256 * 9
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == OFFICIAL[official]["parameters"]


@pytest.mark.slow
def test_summary_of_a_tiny_model(tiny_config):
    tiny_config.model.pixel_decoder.num_layers = 2
    channels, ffn_dim = 32, 32
    assert (tiny_config.model.hidden_dim, tiny_config.model.pixel_decoder.ffn_dim) == (channels, ffn_dim)
    summary = summarize(tiny_config, (64, 96), batch=2)
    model = build_model(tiny_config.model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    assert summary.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert summary.constants == sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    assert summary.outputs == {"class_logits": (2, 9, 6), "mask_logits": (2, 9, 16, 24)}
    parts = {part.name: part for part in summary.parts}
    assert len(parts) == len(summary.parts)
    layer = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["decoder"]["layer_0"]))
    assert parts["decoder/layer_#"].repeats == 5 and parts["decoder/layer_#"].parameters == 5 * layer
    assert parts["pixel_decoder/mask_features"].multiply_adds == 16 * 24 * channels * channels
    # Two layers in a loop: offsets, weights, values, output and the two products of the feed-forward network.
    tokens = 2 * 3 + 4 * 6 + 8 * 12
    encoder = 2 * tokens * channels * (96 + 48 + channels + channels + 2 * ffn_dim)
    assert parts["pixel_decoder/encoder_#"].multiply_adds == encoder
    # Only the last prediction: queries (9, C) times mask features.
    assert parts["decoder/products of activations"].multiply_adds > 9 * channels * 16 * 24
    # In addition the masks of the initial queries and of the first four of five layers.
    assert summary.published_multiply_adds - summary.multiply_adds > 5 * 9 * channels * 16 * 24
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))
    images = 2 * 64 * 96 * 3 * 4
    assert weights <= summary.argument_bytes - images <= 1.1 * weights
    assert summary.output_bytes >= 4 * sum(np.prod(shape) for shape in summary.outputs.values())
    assert summary.temporary_bytes > 2 * 64 * 96  # activations of the stem at least

    printed = io.StringIO()
    print_summary(summary, "tiny", 2, Console(file=printed, width=120))
    text = printed.getvalue()
    assert f"{summary.parameters:,}" in text and "decoder/layer_#" in text and "(2, 9, 16, 24)" in text


def test_sizes():
    assert parse_size("64x96", 32) == (64, 96)
    for wrong in ("64", "64x", "0x64", "60x64", "64x64x3", "axb"):
        with pytest.raises(ValueError, match=f"--size {wrong}: give HEIGHTxWIDTH, multiples of 32"):
            parse_size(wrong, 32)


@pytest.mark.slow
def test_command_line_reports_a_mistake_in_one_line():
    for arguments, message in (
        ((), "--config is needed"),
        (("--config=configs/ade20k.py:r50", "--size=500x500"), "multiples of 32"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "fasseg_jax.summary", *arguments],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr, run.stderr


@pytest.mark.parametrize("name", MARKUP)
def test_titles_with_markup_are_printed_as_they_are(name):
    """A title holds the path of a configuration."""
    console = Console(file=io.StringIO(), width=200)
    summary = Summary([Part(name, 3, 5, 7)], 0, 7, 0, 0, 0, {})
    print_summary(summary, f"configs/{name}.py 32 x 32", 1, console)
    assert f" configs/{name}.py 32 x 32" in console.file.getvalue()
    assert any(line.split()[:1] == name.split()[:1] for line in console.file.getvalue().splitlines())
