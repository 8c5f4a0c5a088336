"""Turn annotations of other tools into a folder to train from.

    fasseg import --input ANNOTATIONS --output DATA
    fasseg check --config folder:DATA

The program recognizes the format and says what it took it for; --format overrides. It copies the photos, writes label
maps and classes.txt, and reports every shape that it drops or clips, with the reason. It never changes the input. A
second run goes on where the first one stopped. It needs `pip install "fasseg_jax[import]"`.

Exit status: 0 all photos are imported; 1 some are not, or nothing can be written; 2 wrong usage.
"""

import re

from absl import app, flags, logging

from fasseg_jax.data.classes import DataError
from fasseg_jax.importing.annotations import ImportOptions
from fasseg_jax.importing.class_lists import read_class_list
from fasseg_jax.importing.formats.registry import FORMATS
from fasseg_jax.importing.run import REPORT, ImportResult, import_annotations
from fasseg_jax.importing.shapes import OVERLAP
from fasseg_jax.runtime.command_line import other_program, parse_flags, print_error
from fasseg_jax.runtime.files import Path

PRINTED = 20  # lines of each kind; the report has all


def main(argv: list[str]) -> int:
    """Import."""
    logging.set_verbosity(logging.WARNING)
    flag = flags.FLAGS
    if argv[1:] or not flag.input or not flag.output:
        return print_error("give --input ANNOTATIONS and --output FOLDER, and no other arguments", status=2)
    try:
        options = _options()
    except DataError as error:
        return print_error(error, status=2)
    output = Path(flag.output).expanduser()
    try:
        result = import_annotations(Path(flag.input).expanduser(), output, flag.format, options)
    except (OSError, DataError) as error:
        return print_error(error, status=1)
    except RecursionError:
        return print_error(f"{flag.input}: is nested too deeply; export the annotations again", status=1)
    except KeyboardInterrupt:
        return print_error("stopped; the same command goes on from here", status=130)
    _print_result(result, output)
    return 1 if result.problems else 0


def _options() -> ImportOptions:
    flag = flags.FLAGS
    if flag.format is not None and flag.format not in FORMATS:
        raise DataError(f"--format={flag.format}: choose one of {', '.join(FORMATS)}")
    classes, colors = read_class_list(Path(flag.classes).expanduser()) if flag.classes else (None, None)
    try:
        re.compile(flag.group)
    except re.error as error:
        raise DataError(f"--group={flag.group}: is no regular expression ({error})") from error
    photos = Path(flag.photos).expanduser() if flag.photos else None
    if photos is not None and not photos.is_dir():
        raise DataError(f"--photos={flag.photos}: there is no such folder")
    return ImportOptions(
        photos=photos,
        classes=classes,
        colors=colors,
        overlap=flag.overlap,
        unlabeled=flag.unlabeled,
        validation=flag.validation,
        group=flag.group,
        orientation=flag.orientation,
        tolerance=flag.tolerance,
    )


def _print_result(result: ImportResult, output: Path) -> None:
    overlaps = [note for note in result.notes if OVERLAP in note]
    if overlaps:
        print(f"{len(overlaps)} photos have pixels that lie in several shapes; {output / REPORT} counts them")
    others = [note for note in result.notes if OVERLAP not in note]
    for kind, lines in (("", others), ("problem: ", result.problems)):
        for line in lines[:PRINTED]:
            print(kind + line)
        if len(lines) > PRINTED:
            print(f"{len(lines) - PRINTED} more such lines are in {output / REPORT}")
    kept = f", {result.kept} were there already" if result.kept else ""
    print(f"Wrote {result.written} photos with their label maps{kept}.")
    if not result.written + result.kept:
        return
    ignored = f" --config.data.ignore_label={result.ignore_label}" if result.ignore_label != 255 else ""
    print(f"Next: {other_program('check')} --config folder:{output}{ignored}")


def define_flags() -> None:
    """Define the command line of `fasseg import`."""
    flags.DEFINE_string("input", None, "Folder or file of the annotations.")
    flags.DEFINE_string("output", None, "Folder to make; a second run goes on there.")
    flags.DEFINE_string("format", None, "Format of the annotations; by default it is recognized.")
    flags.DEFINE_string("photos", None, "Folder of the photos, if they are not in that of the annotations.")
    flags.DEFINE_string(
        "classes", None, "Text file of the classes in the order of their ids: a name a line, or classes.txt."
    )
    flags.DEFINE_enum("overlap", "later", ["later", "smaller"], "Which of two shapes covers the other.")
    flags.DEFINE_enum(
        "unlabeled", None, ["background", "ignore"], "What pixels are that no shape covers; the format has a default."
    )
    flags.DEFINE_float(
        "validation", 0.2, "Share of photos for validation, if the source has none.", lower_bound=0, upper_bound=0.9
    )
    flags.DEFINE_string(
        "group",
        "auto",
        'Which photos stay together in one split: "auto" (frames of a film), "none", or a regular expression: those '
        "whose names begin with the same match.",
    )
    flags.DEFINE_enum(
        "orientation", "auto", ["auto", "viewer", "stored"], "What labels are drawn on if EXIF turns a photo."
    )
    flags.DEFINE_integer(
        "tolerance", 0, "Most that a channel of a mask may differ from a class's color.", lower_bound=0, upper_bound=127
    )


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
