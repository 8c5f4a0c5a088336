"""Print parameters, arithmetic and memory of a configuration's network.

    fasseg summary --config ade20k:r50
    fasseg summary --config ade20k:swin_b --size 640x640 --batch 2

It needs no weights. The multiply-adds are those of convolutions and matrix products, which papers call FLOPs. The
memory is that of the program that XLA compiles for this machine's device.
"""

import sys
import time

from absl import app, flags, logging
from rich.console import Console

from fasseg_jax.config import config_flags
from fasseg_jax.models.fasseg import build_model
from fasseg_jax.runtime.command_line import parse_flags, parse_size, print_error
from fasseg_jax.runtime.compilation import announce
from fasseg_jax.summary.summary import print_summary, summarize


def main(_: list[str]) -> int:
    """Print the summary."""
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    begin = time.perf_counter()
    console = Console()
    try:
        config = config_flags.given_config()
        if config is None:
            raise ValueError("--config is needed, e.g. ade20k:r50")
        height, width = parse_size(options.size, build_model(config.model).size_divisor)
        announce(f"Compiling the network for {height}x{width} pixels: up to some minutes.")
        summary = summarize(config, (height, width), options.batch)
    except (OSError, ValueError) as error:
        return print_error(error, status=2)
    name = next((text.partition("=")[2] for text in sys.argv if text.startswith("--config=")), "")
    title = f"{name} {height} x {width}, {config.model.dtype}".strip()
    print_summary(summary, title, options.batch, console)
    console.print(f"[dim]took {time.perf_counter() - begin:.1f} s[/]")
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg summary`."""
    config_flags.DEFINE_config_file(
        "config", None, "The model, e.g. configs/ade20k.py:r50; --config.NAME=VALUE overrides."
    )
    flags.DEFINE_string("size", "512x512", "HEIGHTxWIDTH of the images, multiples of 32.")
    flags.DEFINE_integer("batch", 1, "Images in a batch, for the memory.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
