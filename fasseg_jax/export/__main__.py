"""Write a model as one file that needs no code of this package.

    fasseg export --checkpoint CHECKPOINT --size 512x512 --size 512x683 --output model.npz

For each size, `jax.export` lowers the function from a photo, uint8 (H, W, 3), to its labels (H, W) to StableHLO, for
several platforms at once. The file runs wherever JAX does: `fasseg_jax/export/load_exported.py`, which you may copy,
loads it and imports neither Flax nor this package. Resize a photo to its test size before you pass it. Its sides need
not be multiples of 32; the function pads them.

The file is a NumPy archive: "metadata" (JSON: sizes, classes, versions), "function_HxW" (jax.export's bytes) and the
weights, which all functions share. With --weights separate, the weights are in another file beside it. Exit status: 0;
1 if the model cannot be exported; 2 for wrong usage.
"""

from absl import app, flags, logging

from fasseg_jax.export.exporter import PLATFORMS, export_model
from fasseg_jax.runtime.command_line import parse_flags, parse_size, print_error
from fasseg_jax.runtime.compilation import announce
from fasseg_jax.runtime.files import make_path
from fasseg_jax.weights.pretrained import load_pretrained


def main(_: list[str]) -> int:
    """Export, and print a summary."""
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    try:
        sizes = [parse_size(text) for text in options.size]
        make_path(options.output)  # refused before the work begins
        checkpoint = load_pretrained(options.checkpoint)
        checkpoint.config.model.dtype = options.dtype or checkpoint.config.model.dtype
        files = export_model(
            checkpoint,
            sizes,
            options.output,
            separate_weights=options.weights == "separate",
            platforms=options.platform,
            overwrite=options.overwrite,
            announce=announce,
        )
    except (OSError, ValueError) as error:
        return print_error(error, status=1)
    for file in files:
        print(f"written     {file}, {file.stat().st_size / 1e6:.1f} MB")
    print(f"sizes       {', '.join(options.size)} (height x width)")
    print(f"platforms   {', '.join(options.platform)}")
    print(f'next        from load_exported import load; labels = load("{files[0]}")(photo)')
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg export`."""
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint or of a run, or hf://OWNER/NAME.", required=True)
    flags.DEFINE_multi_string("size", None, "HEIGHTxWIDTH of photos; may be given several times.", required=True)
    flags.DEFINE_string("output", None, "File to write; its name must end in .npz.", required=True)
    flags.DEFINE_enum("weights", "included", ["included", "separate"], "Weights in the file, or in one beside it.")
    flags.DEFINE_list("platform", list(PLATFORMS), "Platforms that will run the model: cpu, cuda, rocm, tpu.")
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Dtype of the network, if not the checkpoint's; bfloat16 is faster on GPUs, TPUs and recent CPUs, and rounds.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace existing files.")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
