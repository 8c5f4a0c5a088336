"""Serve a model over HTTP: a web page for trying it, and an interface for programs.

    fasseg serve --checkpoint CHECKPOINT

The page is at http://127.0.0.1:8000, only on this machine; --port changes the port. --host 0.0.0.0 opens the server to
everyone on the network, without a password. The page loads nothing from other sites, and the program stores no photos.
Programs send the file of a photo, and choose what the answer holds:

    curl --data-binary @photo.jpg "http://127.0.0.1:8000/segment?format=labels" -o labels.png

/openapi.json describes the interface, /health says whether photos are segmented, /metrics has counters for Prometheus.
Too many photos at once are refused with status 503 and Retry-After. The server needs only the standard library's
server. `fasseg demo` is the same. Exit status: 0 after Ctrl-C or SIGTERM, when the photos in progress are answered; 2
wrong usage.
"""

import contextlib
import signal
import threading

from absl import app, flags, logging

from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import announce, enable_compilation_cache
from fasseg_jax.runtime.devices import choose_device
from fasseg_jax.serving.limits import Limits
from fasseg_jax.serving.server import PhotoServer

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FINISHING = 20  # seconds for the photos in progress after the first signal


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    if argv[1:] or not options.checkpoint:
        return print_error("give --checkpoint DIR, the folder of a checkpoint, and no other arguments", status=2)
    try:
        choose_device(options.device)
        enable_compilation_cache()
        changes = {} if options.round_to is None else {"round_to": options.round_to}
        segmenter = Segmenter.from_checkpoint(options.checkpoint, inference=changes, dtype=options.dtype)
        segmenter.announce = announce
    except (ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=2)
    limits = Limits(
        megabytes=options.max_megabytes,
        megapixels=options.max_megapixels,
        waiting=options.max_waiting,
        batch_size=options.batch_size,
    )
    try:
        server = PhotoServer(segmenter, options.host, options.port, limits)
    except OSError as error:
        return print_error(f"cannot listen on {options.host}, port {options.port}: {error.strerror}", status=2)

    def stop(*_):
        """End `serve_forever` after the request that it accepts; a second signal ends the program at once."""
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        threading.Thread(target=server.shutdown).start()

    for number in SIGNALS:  # SIGINT too: a shell makes its background programs ignore Ctrl-C
        signal.signal(number, stop)
    print(f"Open {server.url} in a browser; Ctrl-C stops the server.", flush=True)
    if not server.local:
        print("Everyone who can reach this machine over the network can use the page.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            server.serve_forever()
            print()
            server.finish(FINISHING)
        finally:
            server.server_close()
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg serve`."""
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint or of a run, or hf://OWNER/NAME.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 opens the page to the network.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_integer(
        "batch_size", Limits.batch_size, "Photos of a size that a GPU or TPU computes together, at most.", lower_bound=1
    )
    flags.DEFINE_integer(
        "round_to",
        None,
        "Pad photos to multiples of this many pixels, itself one of 32, in place of the checkpoint's value: more "
        "photos share a compiled program, and scores change.",
        lower_bound=1,
    )
    flags.DEFINE_integer("max_waiting", Limits.waiting, "Photos that wait at once; more are refused.", lower_bound=1)
    flags.DEFINE_integer("max_megabytes", Limits.megabytes, "Largest file of a photo.", lower_bound=1)
    flags.DEFINE_integer("max_megapixels", Limits.megapixels, "Largest photo, in millions of pixels.", lower_bound=1)
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Dtype of the network, if not the checkpoint's; bfloat16 is faster on GPUs, TPUs and recent CPUs, and rounds.",
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Where to compute; by default JAX chooses.")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
