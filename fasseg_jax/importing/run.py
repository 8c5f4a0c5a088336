"""Imports annotations of any known format into a folder to train from."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator

from tqdm import tqdm

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.importing.annotations import ImportOptions, load_library
from fasseg_jax.importing.formats.registry import FORMATS, find_format
from fasseg_jax.importing.plan import Target, final_classes, plan_targets
from fasseg_jax.importing.records import LOCK, ImportRecords, earlier_keys
from fasseg_jax.importing.writing import LabelRules, Written, write_sample
from fasseg_jax.runtime.files import Path, named_write_errors, write_atomically
from fasseg_jax.runtime.folder_lock import lock_folder
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["REPORT", "ImportResult", "import_annotations"]

REPORT = "import-report.txt"  # in the folder of the import


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """What an import did.

    Attributes:
      classes: of the data.
      written: samples that this run wrote.
      kept: samples that were there and complete.
      problems: what could not be imported and why, one line each.
      notes: shapes that were dropped, clipped or doubtful, one line each.
      ignore_label: label of ignored pixels.
    """

    classes: ClassTable
    written: int
    kept: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    ignore_label: int


def import_annotations(
    source: Path,
    output: Path,
    format_name: str | None = None,
    options: ImportOptions | None = None,
    announce: Callable[[str], None] = print,
) -> ImportResult:
    """Turn annotations into the folder that `open_folder` reads.

    Args:
      source: a folder or file of annotations.
      output: the folder to make; an import that was interrupted goes on there.
      format_name: a key of `FORMATS`; None recognizes the format.
      options: the person's decisions.
      announce: is called with each line that tells what happens.

    Raises:
      DataError: the source cannot be read, has no format that is known, or `output` holds something else.
      WriteError: something cannot be written.
    """
    options = dataclasses.replace(options or ImportOptions(), output=output)
    if not source.exists():
        raise DataError(f"there is no {source}; name a folder or file of annotations by --input")
    if output.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{output} lies in {source}, which is imported; name a folder outside of it by --output")
    name = format_name or find_format(source)
    announce(f"{source}: {FORMATS[name].title}{'' if format_name else f' (recognized; --format={name})'}")
    annotations = FORMATS[name].read(source, options)
    unlabeled = options.unlabeled or FORMATS[name].unlabeled
    targets, problems, notes = plan_targets(
        annotations.items, options.validation, options.group, annotations.classes, earlier_keys(output)
    )
    if not targets:
        raise DataError("; ".join([f"{source}: no photo can be imported", *annotations.problems[:3], *problems[:3]]))
    if any(isinstance(target.item.labels, tuple) for target in targets):
        load_library("shapely")  # one line now, rather than one for each photo
    classes, background = final_classes(annotations, options, unlabeled)
    rules = LabelRules(
        {class_name: index for index, class_name in enumerate(classes.names)},
        annotations.classes,
        background,
        options.overlap,
        options.orientation,
    )
    for line in [*_description(targets, classes, rules, unlabeled), *notes]:
        announce(line)
    settings = {
        "source": str(source.resolve()),
        "format": name,
        "classes": list(classes.names),
        "unlabeled": unlabeled,
        "overlap": options.overlap,
        "orientation": options.orientation,
        "tolerance": options.tolerance,
    }
    with _locked(output), contextlib.closing(ImportRecords(output, settings)) as records:
        outcome = _write_all(targets, records, rules)
    stale = records.known.keys() - {target.key for target in targets}
    gone = [
        f"{output}: {key} is from an earlier import, and no longer belongs there; delete it" for key in sorted(stale)
    ]
    result = ImportResult(
        classes,
        outcome.written,
        outcome.kept,
        problems=(*annotations.problems, *problems, *outcome.problems, *gone),
        notes=(*annotations.notes, *outcome.notes),
        ignore_label=rules.ignore_label,
    )
    _write_table(output / "classes.txt", classes)
    with write_atomically(output / REPORT) as partial:
        partial.write_text("".join(f"{line}\n" for line in [*result.problems, *result.notes]), "utf-8", "replace")
    return result


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other imports out of it during the block."""
    with named_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_folder(folder, LOCK, "imports into")
        except ValueError as error:
            raise DataError(str(error)) from None
    with lock:
        yield


@dataclasses.dataclass(frozen=True)
class _Outcome:
    written: int
    kept: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def _write_all(targets: list[Target], records: ImportRecords, rules: LabelRules) -> _Outcome:
    """Write the samples that are not there yet."""
    problems: list[str] = []
    notes: list[str] = []
    written = kept = 0

    def write(target: Target) -> tuple[str, Written | str, bool]:
        """The version, what was written or the problem, and whether it was there already."""
        try:
            version = _version(target)
            if (known := records.complete(target.key, version)) is not None:
                return version, known, True
            return version, write_sample(target, records.folder, rules), False
        except DataError as error:
            return "", str(error), False

    progress = tqdm(targets, "importing", unit="photo", leave=False, disable=None)
    for target, (version, result, was_there) in map_ahead(write, progress):
        if isinstance(result, str):
            problems.append(result)
            continue
        notes += [f"{target.item.origin}: {note}" for note in result.notes]
        written, kept = written + (not was_there), kept + was_there
        if not was_there:
            records.add(target.key, version, result)
    return _Outcome(written, kept, tuple(problems), tuple(notes))


def _version(target: Target) -> str:
    photo = target.item.photo
    parts = [target.item.version, file_version(photo) if isinstance(photo, Path) else ""]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _description(targets: list[Target], classes: ClassTable, rules: LabelRules, unlabeled: str) -> list[str]:
    """What is going to be imported."""
    validation = sum(target.split == "validation" for target in targets)
    names = ", ".join(classes.names[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
    lines = [f"{len(targets)} photos: {len(targets) - validation} training, {validation} validation"]
    lines.append(f"{len(classes)} classes: {names}")
    if any(isinstance(target.item.labels, tuple) for target in targets):
        meaning = "ignored" if unlabeled == "ignore" else f"{classes.names[rules.background or 0]!r}"
        lines.append(
            f"pixels in several shapes belong to the {rules.overlap} one (--overlap); pixels in none are {meaning} "
            "(--unlabeled)"
        )
    return lines


def _write_table(file: Path, classes: ClassTable) -> None:
    lines = [
        f"{index} {name} {' '.join(map(str, color))}\n"
        for index, (name, color) in enumerate(zip(classes.names, classes.palette.tolist(), strict=True))
    ]
    with write_atomically(file) as partial:
        partial.write_text("".join(lines), "utf-8")
