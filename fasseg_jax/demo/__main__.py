"""Serve a web page for trying a model: drop a photo, see its classes.

    fasseg demo --checkpoint CHECKPOINT

The page is at http://127.0.0.1:8000, only on this machine; --port changes the port. --host 0.0.0.0 opens the page to
everyone on the network, without a password. The page loads nothing from other sites, and the program stores no photos.
It needs only the standard library's server. Exit status: 0 after Ctrl-C; 2 wrong usage.
"""

import signal

from absl import app, flags, logging

from fasseg_jax.demo.server import DemoServer
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import announce, enable_compilation_cache
from fasseg_jax.runtime.devices import choose_device


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C."""
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    if argv[1:] or not options.checkpoint:
        return print_error("give --checkpoint DIR, the folder of a checkpoint, and no other arguments", status=2)
    try:
        choose_device(options.device)
        enable_compilation_cache()
        segmenter = Segmenter.from_checkpoint(options.checkpoint)
        segmenter.announce = announce
    except (ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=2)
    try:
        server = DemoServer(segmenter, options.host, options.port)
    except OSError as error:
        return print_error(f"cannot listen on {options.host}, port {options.port}: {error.strerror}", status=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes its background programs ignore Ctrl-C
    print(f"Open {server.url} in a browser; Ctrl-C stops the server.", flush=True)
    if not server.local:
        print("Everyone who can reach this machine over the network can use the page.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg demo`."""
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint or of a run, or hf://OWNER/NAME.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 opens the page to the network.")
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Where to compute; by default JAX chooses.")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
