"""Write a model as one file that needs no code of this package: `python -m fasseg_jax.export`.

    python -m fasseg_jax.export --checkpoint CHECKPOINT --size 512x512 --size 512x683 --output model.npz

For each size the function from a photo, uint8 (H, W, 3), to its labels (H, W) is lowered by `jax.export` (to StableHLO,
for several platforms at once), and runs wherever JAX does: `fasseg_jax/export/load_exported.py` loads it, may be
copied, and imports neither Flax nor this package. A photo is to have its test size already; what is no multiple of 32
is padded inside.

The file is a NumPy archive: "metadata" (JSON: sizes, classes, versions), "function_HxW" (jax.export's bytes) and the
weights, which functions share. With `--weights separate` these are in a file of their own beside it.
"""

import sys

from absl import app, flags, logging

from fasseg_jax.export.exporter import PLATFORMS, export_model
from fasseg_jax.runtime.command_line import parse_flags, parse_size, print_error
from fasseg_jax.weights.checkpoint import load_checkpoint


def _main(_: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    try:
        sizes = [parse_size(text) for text in options.size]
        checkpoint = load_checkpoint(options.checkpoint)
        files = export_model(
            checkpoint, sizes, options.output, options.weights == "separate", options.platform, options.overwrite
        )
    except (OSError, ValueError) as error:
        return print_error(error, status=1)
    for file in files:
        print(f"written     {file}, {file.stat().st_size / 1e6:.1f} MB")
    print(f"sizes       {', '.join(options.size)} (height x width)")
    print(f"platforms   {', '.join(options.platform)}")
    print(f'next        from load_exported import load; labels = load("{files[0]}")(photo)')
    return 0


def _define_flags() -> None:
    flags.DEFINE_string(
        "checkpoint", None, "Folder of a checkpoint, as convert.py and train.py write it.", required=True
    )
    flags.DEFINE_multi_string("size", None, "HEIGHTxWIDTH of photos; may be given several times.", required=True)
    flags.DEFINE_string("output", None, "File to write, ending in .npz.", required=True)
    flags.DEFINE_enum("weights", "included", ["included", "separate"], "Weights in the file, or in one beside it.")
    flags.DEFINE_list("platform", list(PLATFORMS), "Where it is to run: cpu, cuda, rocm, tpu.")
    flags.DEFINE_bool("overwrite", False, "Replace files that are there.")


if __name__ == "__main__":
    _define_flags()
    app.run(lambda argv: sys.exit(_main(argv)), flags_parser=parse_flags)
