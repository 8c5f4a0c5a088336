"""What all formats share: splits, names, EXIF, a second run, classes and colors."""

import itertools
import json
import sys

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.config import load_config
from fasseg_jax.data.classes import DataError
from fasseg_jax.data.images import open_photo
from fasseg_jax.data.palette import choose_colors, simulate
from fasseg_jax.data.sources.folder import find_splits
from fasseg_jax.importing import writing
from fasseg_jax.importing.annotations import Annotations, ImportOptions, Item, clean_name
from fasseg_jax.importing.class_lists import read_class_list
from fasseg_jax.importing.plan import final_classes, plan_targets
from fasseg_jax.importing.records import LOCK
from fasseg_jax.importing.run import import_annotations
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.folder_lock import lock_folder
from tests.helpers.import_cases import read_labels, run_import, write_json, write_photo


def write_item(source, name, height=36, width=48, orientation=1, box=(0, 0, 9, 9)):
    write_photo(source / f"{name}.jpg", orientation=orientation)
    left, top, right, bottom = box
    shape = {"label": "x", "points": [[left, top], [right, bottom]], "shape_type": "rectangle"}
    image = {"imagePath": f"{name.rpartition('/')[2]}.jpg", "imageHeight": height, "imageWidth": width}
    write_json(source / f"{name}.json", {"shapes": [shape]} | image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn_on", ["viewer", "stored"])
def test_labels_lie_on_the_photo_as_it_is_shown(source, output, orientation, drawn_on):
    """White where the box was drawn: in the photo as `open_photo` shows it, labels and white pixels agree."""
    turned = orientation >= 5 and drawn_on == "viewer"
    write_item(source, "a", *((48, 36) if turned else (36, 48)), orientation, box=(4, 6, 19, 29))
    pixels = np.zeros((48, 36, 3) if turned else (36, 48, 3), np.uint8)
    pixels[6:30, 4:20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    if drawn_on == "viewer":
        pixels = np.asarray(writing.as_stored(Image.fromarray(pixels), orientation))
    Image.fromarray(pixels).save(source / "a.jpg", exif=exif, quality=100)
    run_import(source, output, orientation="auto" if orientation >= 5 else drawn_on)
    shown = open_photo(output / "images/training/a.jpg").mean(axis=-1) > 128
    np.testing.assert_array_equal(read_labels(output, "a") == 1, shown)


def test_the_split_depends_on_names_only():
    def item(name):
        return Item(name, lambda: b"", name, (), "")

    def validation(names):
        targets, _, _ = plan_targets([item(name) for name in names], 0.2)
        return {target.item.name for target in targets if target.split == "validation"}

    names = [f"{index}.jpg" for index in range(1000)]
    chosen = validation(names)
    assert 160 < len(chosen) < 240
    assert validation(names[::-1]) == chosen
    assert validation(names[:500]) == chosen & set(names[:500])
    assert [len(validation(names[:count])) for count in (1, 2)] == [0, 1]  # one at least, and never all


def test_films_and_classes_decide_as_in_a_folder_without_splits(source, output):
    """An import and `find_splits` of the same photos and labels choose the same photos for validation."""
    rng = np.random.default_rng(0)
    names = [f"run{film}_{frame}" for film in "abcdef" for frame in range(10)] + [f"x{index}y" for index in range(20)]
    for name in names:
        write_photo(source / f"images/{name}.jpg", 6, 8)
        values = np.where(rng.random((6, 8)) < (name in ("x3y", "x7y")), 255, 0).astype(np.uint8)
        (source / "masks").mkdir(exist_ok=True)
        Image.fromarray(values).save(source / f"masks/{name}.png")
    result = run_import(source, output)
    assert not result.problems
    imported = {path.stem for path in output.glob("images/validation/*.jpg")}
    for path in source.glob("masks/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    splits = find_splits(load_config(f"configs/folder.py:{source}").data)
    assert imported == {pair.photo.stem for pair in splits.pairs["validation"]}
    assert all(len([name for name in imported if name.startswith(f"run{film}")]) in (0, 10) for film in "abcdef")
    assert len(imported & {"x3y", "x7y"}) == 1


def test_photos_of_an_earlier_import_keep_their_split(source, output):
    for index in range(6):
        write_item(source, f"p{index}q")
    run_import(source, output)
    before = {path.relative_to(output) for path in output.glob("images/*/*.jpg")}
    for index in range(6, 40):
        write_item(source, f"p{index}q")
    said: list[str] = []
    result = import_annotations(source, output, None, ImportOptions(validation=0.7), said.append)
    assert (result.problems, result.kept, result.written) == ((), 6, 34)
    assert before <= {path.relative_to(output) for path in output.glob("images/*/*.jpg")}
    assert "6 photos stay in the split of the earlier import" in said
    assert any(line.startswith("divided by a hash of the names (--validation=0.7)") for line in said)


def test_two_imports_into_one_folder(source, output):
    write_item(source, "a")
    output.mkdir()
    with lock_folder(output, LOCK, "imports into"), pytest.raises(DataError, match=r"process \d+ .* imports into this"):
        run_import(source, output)
    assert run_import(source, output).written == 1


def test_splits_of_the_source_are_kept():
    def item(name, split):
        return Item(name, lambda: b"", name, (), "", split)

    def splits(*items):
        targets, _, notes = plan_targets([item(*each) for each in items], 0.5)
        return {target.item.name: target.split for target in targets}, notes

    kept, notes = splits(("a.jpg", "training"), ("b.jpg", "validation"), ("c.jpg", "test"))
    assert kept == {"a.jpg": "training", "b.jpg": "validation"}
    assert notes == ['1 photos of the split "test" are left out']
    only_training, _ = splits(("a.jpg", "training"), ("b.jpg", "training"))
    assert sorted(only_training.values()) == ["training", "validation"]


def test_names_stay_in_the_folder_and_apart(source, output):
    items = [
        Item(name, lambda: b"", name, (), "", "training")
        for name in ("../../a.jpg", "/etc/b.jpg", "c\\d.jpg", "e.jpg", "e.png", ".f.jpg", "G.jpg", "g.jpg")
    ]
    targets, problems, _ = plan_targets(items, 0)
    assert [target.name.as_posix() for target in targets] == ["a", "etc/b", "c/d", "e.jpg", "e.png", "_.f"] + (
        ["G.jpg", "g.jpg"] if len(targets) == 8 else []
    )
    assert len(targets) + len(problems) == len(items)


def test_a_second_run_goes_on(source, output, monkeypatch):
    for index in range(6):
        write_item(source, str(index))
    written = []
    original = writing.write_sample

    def write(target, folder, rules):
        written.append(target.item.name)
        if len(written) == 4:
            raise KeyboardInterrupt
        return original(target, folder, rules)

    monkeypatch.setattr("fasseg_jax.importing.run.write_sample", write)
    with pytest.raises(KeyboardInterrupt):
        run_import(source, output)
    assert not (output / "classes.txt").exists()
    with (output / "import.jsonl").open("ab") as records:
        records.write(b'{"key": "training/cut off')
    result = run_import(source, output)
    assert result.written + result.kept == 6 and result.kept >= 1
    assert run_import(source, output).kept == 6
    write_item(source, "3", box=(1, 1, 12, 12))
    next(output.glob("annotations/*/4.png")).unlink()
    result = run_import(source, output)
    assert (result.written, result.kept) == (2, 4)
    assert np.count_nonzero(read_labels(output, "3")) == 12 * 12
    (source / "5.json").unlink()
    assert "is from an earlier import" in run_import(source, output).problems[0]


def test_a_folder_with_something_else_is_refused(source, output):
    write_item(source, "a")
    output.mkdir()
    (output / "thesis.txt").write_text("")
    with pytest.raises(DataError, match="holds other files"):
        run_import(source, output)
    run_import(source, output.with_name("b"))
    with pytest.raises(DataError, match="holds an import with another overlap"):
        run_import(source, output.with_name("b"), overlap="smaller")
    (output.with_name("b") / "import.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(DataError, match=r"import.jsonl: is damaged"):
        run_import(source, output.with_name("b"))
    with pytest.raises(DataError, match="lies in"):
        run_import(source, source / "data")


def test_a_split_in_the_path_of_photos(source, output):
    write_item(source, "train/a")
    write_item(source, "valid/a")
    write_item(source, "valid/sub/b")
    run_import(source, output)
    files = sorted(path.relative_to(output).as_posix() for path in output.glob("images/**/*.jpg"))
    assert files == ["images/training/a.jpg", "images/validation/a.jpg", "images/validation/sub/b.jpg"]


def test_colors_are_told_apart_by_color_blind_people():
    """The smallest distance between two colors, under each deficiency, is larger than in any of 100 random palettes."""
    rng = np.random.default_rng(0)

    def smallest_distance(colors):
        seen = simulate(colors) ** (1 / 2.2)  # (K, 4, 3)
        return np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(len(colors), dtype=bool)].min()

    for count in (20, 40, 80):
        chosen = smallest_distance(choose_colors(tuple(map(str, range(count)))))
        assert chosen > max(smallest_distance(rng.integers(0, 256, (count, 3))) for _ in range(100)), count
    many = choose_colors(tuple(map(str, range(1200))))
    assert len(np.unique(many, axis=0)) == 1200
    colors = choose_colors(("x", "background"))
    np.testing.assert_array_equal(colors, [(230, 159, 0), (0, 0, 0)])


def test_class_names(tmp_path):
    for listing in ("a  b\n\nc\n", "0 a b 1 2 3\n1 c 4 5 6", "1 2 3 a b\n4 5 6 c", "# x\na b:1,2,3::\nc:4,5,6::"):
        (tmp_path / "list.txt").write_text(listing)
        names, colors = read_class_list(Path(tmp_path / "list.txt"))
        assert names == ("a b", "c")
        assert colors is None if "1" not in listing else colors.tolist() == [[1, 2, 3], [4, 5, 6]]
    (tmp_path / "dict.csv").write_text("name, r,g,b\na b,1,2,3\nc,4,5,6\n")
    assert read_class_list(Path(tmp_path / "dict.csv"))[0] == ("a b", "c")
    for listing, message in (("0 a 1 2 300", "from 0 to 255"), ("", "no classes"), ("a\n0 b 1 2 3", "some have none")):
        (tmp_path / "list.txt").write_text(listing)
        with pytest.raises(DataError, match=message):
            read_class_list(Path(tmp_path / "list.txt"))
    assert clean_name(json.loads('" a\\u0000\\u2028b\\ud800 "')) == "a b?"
    with pytest.raises(DataError, match="there twice"):
        final_classes(Annotations((), ("a", " a")), ImportOptions(), "ignore")


def test_more_than_255_classes(source, output):
    write_item(source, "a")
    result = run_import(source, output, classes=tuple(f"c{index}" for index in itertools.chain(range(299))) + ("x",))
    assert result.ignore_label == 65535 and len(result.classes) == 301
    assert result.classes.names[-1] == "background"  # ids that were given stay
    assert (read_labels(output, "a")[5, 5], read_labels(output, "a")[20, 20]) == (299, 300)


def test_the_output_may_lie_beside_a_file(tmp_path):
    """Photos that the first run copied are not those that a second run looks for."""
    write_photo(tmp_path / "photos/a.jpg")
    image = {"imagePath": "a.jpg", "imageHeight": 36, "imageWidth": 48}
    write_json(tmp_path / "a.json", {"shapes": [{"label": "x", "points": [[0, 0], [9, 0], [9, 9]]}]} | image)
    for kept in (0, 1):
        result = run_import(tmp_path / "a.json", tmp_path / "data")
        assert (result.kept, result.problems) == (kept, ())


def test_a_missing_library_is_said_once(source, output, monkeypatch):
    write_item(source, "a")
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(DataError, match=r"shapely is needed for this format .*pip install 'fasseg_jax\[import\]'"):
        run_import(source, output)
    assert not output.exists()
