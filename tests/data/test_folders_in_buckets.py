"""Folders in any layout, and what is known of their classes, are the same in a bucket as on a disk."""

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, describe_data, open_source
from fasseg_jax.data.balance import count_classes
from fasseg_jax.data.folder_tree import show_tree
from fasseg_jax.data.samples import SPLITS
from fasseg_jax.importing.suggestion import explain
from fasseg_jax.programs.check import check
from fasseg_jax.runtime.files import list_files
from tests.data.test_data_in_buckets import assert_same_samples, upload
from tests.helpers.data_cases import small_crops, write_image

LISTS = {"train.txt": "0\n1\n2\n3\n", "val.txt": "images/4.jpg\nimages/5.jpg\n"}
# Photo, label map, other files: for each of six photos, of which the last two are for validation if folders say so.
LAYOUTS = {
    "splits": ("{split}/images/{index}.jpg", "{split}/masks/{index}.png", {}),
    "no splits": ("images/{index}.jpg", "masks/{index}.png", {"data.yaml": "names: [sky, road, car]\n"}),
    "beside": ("{index}.jpg", "{index}_mask.png", {"sub/classes.txt": "sky\nroad\ncar\n"}),
    "lists": ("images/{index}.jpg", "labels/{index}.png", LISTS | {"classes.txt": "sky\nroad\ncar\n"}),
}


def write_layout(root, photo, label_map, others):
    for index in range(6):
        rng = np.random.default_rng(index)
        where = {"split": "train" if index < 4 else "valid", "index": index}
        write_image(root / photo.format(**where), rng.integers(0, 256, (24, 30, 3), np.uint8))
        write_image(root / label_map.format(**where), rng.choice(np.array([0, 1, 2, 255], np.uint8), (24, 30)))
    for name, text in others.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, bucket_folder, capsys, layout):
    local = write_layout(tmp_path / "data", *LAYOUTS[layout])
    root = upload(local, f"{bucket_folder}/data")
    ours, theirs = (small_crops(load_config(f"configs/folder.py:{folder},tiny")) for folder in (root, local))
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 2 and printed[0] == printed[1]  # the sizes of the training
    assert ours.data.root == str(root)
    ours.data.root, theirs.data.root = str(local), str(local)
    assert ours == theirs
    ours.data.root = str(root)
    assert [line.replace(str(root), str(local)) for line in describe_data(ours.data)] == describe_data(theirs.data)
    for split in SPLITS:
        got, wanted = open_source(ours, split), open_source(theirs, split)
        assert_same_samples(got, wanted, root, local)
        assert got.fingerprint == wanted.fingerprint != ""
    assert show_tree(root) == [line.replace(str(local), str(root)) for line in show_tree(local)]
    assert len(show_tree(root)) > 1 or layout == "beside"


def test_the_check_writes_pictures(tmp_path, bucket_folder, capsys, monkeypatch):
    local = write_layout(tmp_path / "data", *LAYOUTS["no splits"])
    root = upload(local, f"{bucket_folder}/data")
    monkeypatch.setattr("sys.argv", ["train.py", "--check"])
    printed = []
    for folder, pictures in ((root, f"{bucket_folder}/pictures"), (local, str(tmp_path / "pictures"))):
        config = small_crops(load_config(f"configs/folder.py:{folder},tiny"))
        capsys.readouterr()
        assert check(config, pictures) == 0
        printed.append(capsys.readouterr().out.replace(pictures, "PICTURES").replace(str(folder), "FOLDER"))
    assert printed[0] == printed[1] and printed[0].endswith("--workdir runs/data\n")
    written = list_files(upload(tmp_path / "pictures", f"{bucket_folder}/expected"))
    assert [path.name for path in written] == ["training.png", "validation.png"]
    for path in written:
        assert (root.parent / "pictures" / path.name).read_bytes() == path.read_bytes()


def test_counts_are_kept(tmp_path, bucket_folder):
    local = write_layout(tmp_path / "data", *LAYOUTS["splits"])
    root = upload(local, f"{bucket_folder}/data")
    source = open_source(small_crops(load_config(f"configs/folder.py:{root},tiny")), "training")
    config = small_crops(load_config(f"configs/folder.py:{local},tiny"))
    expected = count_classes(open_source(config, "training"), config.data)
    cache = root.parent / "run" / "class_pixels.npz"
    np.testing.assert_array_equal(count_classes(source, config.data, cache), expected)

    class Versions:
        """The source's names and versions, without its samples."""

        classes, version = source.classes, staticmethod(source.version)

        def __len__(self):
            return len(source)

    np.testing.assert_array_equal(count_classes(Versions(), config.data, cache), expected)
    cache.write_bytes(b"damaged")
    np.testing.assert_array_equal(count_classes(source, config.data, cache), expected)


@pytest.mark.parametrize(
    "files",
    [
        ["images/a.jpg", "images/b.jpg"],
        ["images/train/a.jpg", "masks/train/a.png", "images/val/notes.txt"],
        ["images/a.jpg", "masks/a.png", "masks2/a.png"],
    ],
    ids=["photos only", "no validation photos", "two folders"],
)
def test_what_is_wrong_is_explained_as_on_a_disk(tmp_path, bucket_folder, files):
    local = tmp_path / "data"
    for name in files:
        if name.endswith(".txt"):
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_text("later")
        else:
            labels = (np.arange(72, dtype=np.uint8) % 3).reshape(8, 9)
            write_image(local / name, np.stack([labels] * 3, -1) if name.endswith(".jpg") else labels)
    (local / "classes.txt").write_text("sky\nsea\nland\n")
    root = upload(local, f"{bucket_folder}/data")
    texts = []
    for folder in (root, local):
        config = load_config("configs/ade20k.py:r50")
        config.data.update(root=str(folder), dataset="", reduce_zero_label=False)
        config.model.num_classes = 3
        with pytest.raises(DataError) as error:
            open_source(config, "validation")
        explain(error.value, folder)
        texts.append([str(error.value), *vars(error.value).get("advice", [])])
    assert [line.replace(str(root), str(local)) for line in texts[0]] == texts[1] and len(texts[0]) > 3
