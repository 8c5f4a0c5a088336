"""What a configuration's network has and needs: parameters, arithmetic, memory: `python -m fasseg_jax.summary`.

    python -m fasseg_jax.summary --config configs/ade20k.py:r50
    python -m fasseg_jax.summary --config configs/ade20k.py:swin_b --size 640x640 --batch 2

No weights are needed or made. What is counted are the multiply-adds of convolutions and matrix products, which is what
papers call FLOPs. The memory is that of the program compiled for this machine's device.
"""

import sys
import time

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from fasseg_jax.data.preprocessing import SIZE_DIVISOR
from fasseg_jax.runtime.command_line import parse_flags, parse_size, print_error
from fasseg_jax.summary.summary import print_summary, summarise


def _main(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    begin = time.perf_counter()
    console = Console()
    try:
        if options.config is None:
            raise ValueError("--config is needed, e.g. configs/ade20k.py:r50")
        size = parse_size(options.size, SIZE_DIVISOR)
        summary = summarise(options.config, size, options.batch)
    except (OSError, ValueError) as error:
        return print_error(error, status=2)
    name = next((text.partition("=")[2] or "" for text in sys.argv if text.startswith("--config=")), "")
    print_summary(
        summary, f"{name} {size[0]} x {size[1]}, {options.config.model.dtype}".strip(), options.batch, console
    )
    console.print(f"[dim]examined in {time.perf_counter() - begin:.1f} s[/]")
    return 0


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "The model, e.g. configs/ade20k.py:r50; --config.NAME=VALUE overrides."
    )
    flags.DEFINE_string("size", "512x512", "HEIGHTxWIDTH of the images, multiples of 32.")
    flags.DEFINE_integer("batch", 1, "Images at a time, for the memory.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    app.run(lambda argv: sys.exit(_main(argv)), flags_parser=parse_flags)
