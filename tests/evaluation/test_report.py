"""The report in a browser: its numbers, its program, and that it fetches nothing."""

import html
import html.parser
import json
import re
import subprocess

import numpy as np
import pytest

from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.evaluation.metrics import Counts, count, image_score, metrics_of, most_confused
from fasseg_jax.evaluation.report import PicturedImage, write_report
from tests.helpers.browser import find_browser
from tests.helpers.markup import MARKUP

# What a reader does, in order, and what the page then shows; run inside a copy of the report.
ACTIONS = """<script>
const heads = document.querySelectorAll("th button");
const order = () => [...document.querySelectorAll("tbody tr:not([hidden])")].map((row) => +row.cells[0].textContent);
const seen = { initial: order() };
for (const [name, column] of [["byId", 0], ["byName", 1], ["byIou", 2], ["byIouDown", 2], ["byBoundary", 3]]) {
  heads[column].click();
  seen[name] = order();
}
seen.sorted = [...document.querySelectorAll("th")].map((head) => head.getAttribute("aria-sort"));
const filter = document.getElementById("filter");
filter.value = "SQU";
filter.dispatchEvent(new Event("input"));
seen.found = order();
function read(element, x, y) {
  const box = element.getBoundingClientRect();
  const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
  element.dispatchEvent(new PointerEvent("pointermove", at));
  return document.getElementById("tip").textContent;
}
window.addEventListener("load", () => {
  const size = data.shown.length, cells = document.querySelector(".matrix image");
  seen.cells = data.shown.map((_, row) => data.shown.map((_, column) =>
    cells ? read(cells, (column + 0.5) / size, (row + 0.5) / size) : ""));
  seen.pictures = [...document.querySelectorAll(".panels")].map((panels) =>
    [0.1, 0.3, 0.5, 0.7].map((x) => read(panels.children[1], x + 1e-4, 0.5)));
  seen.background = getComputedStyle(document.body).backgroundColor;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.fetched = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 40));
  const note = document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify(seen);
  document.body.append(note);
});
window.addEventListener("error", (event) => (seen.error = event.message));
</script>"""


def browse(file, width=1300):
    """What the page shows to a reader in a browser without a network, and the page as the browser then has it."""
    browser = find_browser()
    acted = file.with_name(f"acted_{file.name}")
    acted.write_text(file.read_text(encoding="utf-8").replace("</body>", f"{ACTIONS}</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --virtual-time-budget=5000"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [
        browser,
        *flags.split(),
        offline,
        f"--window-size={width},900",
        f"--user-data-dir={file.parent / 'user'}",
    ]
    page = subprocess.run(
        [*command, "--dump-dom", acted.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    note = re.search(r'<pre id="seen">(.*?)</pre>', page, re.DOTALL)
    assert note, "the page's program did not run to its end"
    seen = json.loads(html.unescape(note[1]))
    assert "error" not in seen
    return seen, page


def evaluated(num_images=3):
    """Shapes, and predictions that lag behind them."""
    classes = load_classes("shapes")
    source = ShapesSource("validation", num_images, (90, 140), classes, 255)
    total, images = Counts.zeros(len(classes)), []
    for sample in (source[index] for index in range(num_images)):
        prediction = np.roll(np.where(sample.labels == 255, 0, sample.labels), 9, axis=1).astype(np.uint8)
        prediction[prediction == 4] = 3  # rings are taken for triangles
        counts = count(sample.labels, prediction, len(classes), 255)
        total += counts
        images.append(PicturedImage(sample.name, image_score(counts), sample.image, sample.labels, prediction))
    return total, classes, sorted(images, key=lambda image: image.score)


class Elements(html.parser.HTMLParser):
    """Names of the elements and their attributes, and the text, as a browser reads them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.names = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, [name for name, _ in attributes]))
        self.names += [value for name, value in attributes if tag == "td" and name == "data-value"]

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.elements.append(("comment", data))


def test_names_with_markup_are_text(tmp_path):
    """The page has the same elements as with plain names, and shows the names as they are."""
    labels = (np.arange(len(MARKUP) * 4).reshape(-1, 4) % len(MARKUP)).astype(np.uint8)
    counts = count(labels, np.roll(labels, 1), len(MARKUP), 255)
    pages = []
    for names in (MARKUP, tuple(f"class {number}" for number in range(len(MARKUP)))):
        classes = ClassTable(names, np.zeros((len(names), 3), np.uint8))
        image = PicturedImage(names[-6], 0.5, np.zeros((*labels.shape, 3), np.uint8), labels, np.roll(labels, 1))
        file = tmp_path / "report.html"
        write_report(file, metrics_of(counts), counts, classes, [image], [image], {names[-5]: names[-4]})
        pages.append(Elements(file.read_text(encoding="utf-8")))
    marked, plain = pages
    assert marked.elements == plain.elements
    assert set(MARKUP) <= set(marked.names) and set(MARKUP) <= set(marked.texts)


@pytest.mark.slow
def test_report_in_a_browser(tmp_path):
    counts, classes, images = evaluated()
    metrics = metrics_of(counts)
    file = tmp_path / "report.html"
    write_report(file, metrics, counts, classes, images[2:], images[:2], {"data": "<shapes> & more"})
    seen, page = browse(file)
    text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())

    for share in (metrics.mean_iou, metrics.mean_boundary_iou, metrics.pixel_accuracy, metrics.mean_accuracy):
        assert f"{100 * share:.2f}" in text
    assert "data <shapes> & more" in text
    for image in images:
        assert f"{image.name} mIoU of this image {100 * image.score:.2f}" in text
    for truth, predicted in most_confused(counts.confusion, 5):
        assert f"{classes.names[truth]} taken for {classes.names[predicted]}" in text

    ids = range(len(classes))
    by_iou = sorted(ids, key=lambda i: (metrics.truth_share[i] == 0, metrics.iou[i]))
    assert (metrics.truth_share > 0).all()
    assert seen["initial"] == seen["byIou"] == by_iou
    assert seen["byId"] == list(ids)
    assert seen["byName"] == sorted(ids, key=lambda i: classes.names[i])
    assert seen["byIouDown"] == by_iou[::-1]
    assert seen["byBoundary"] == sorted(ids, key=lambda i: metrics.boundary_iou[i])
    assert seen["sorted"] == [None, None, None, "ascending", None, None, None]
    assert seen["found"] == [classes.names.index("square")]

    for row in ids:
        for column in ids:
            pixels = counts.confusion[row, column]
            share = f"{100 * pixels / counts.confusion[row].sum():.2f}% ({pixels:,} pixels)"
            names = classes.names[row], classes.names[column]
            expected = f"{names[0]}, correct: {share}" if row == column else f"{names[0]} taken for {names[1]}: {share}"
            assert seen["cells"][row][column] == expected
    called = lambda labels, x: "ignored" if labels[45, x] == 255 else classes.names[labels[45, x]]
    for image, read in zip([*images[:2], *images[2:]], seen["pictures"], strict=True):
        expected = [
            f"ground truth: {called(image.truth, x)} · prediction: {called(image.prediction, x)}"
            for x in (14, 42, 70, 98)
        ]
        assert read == expected

    # Nothing is fetched: the browser lists no resource beside those in the page, and the page may load none.
    assert [name for name in seen["fetched"] if not name.startswith("data:")] == []
    source = file.read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    for address in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)|url\(([^)]*)""", source):
        assert re.match("#|data:", "".join(address)), address[:80]
    assert file.stat().st_size < 300_000


@pytest.mark.slow
def test_strange_names_and_undefined_numbers(tmp_path):
    """Names that are HTML, classes in neither, nothing counted at all."""
    names = ("</script><script>document.body.innerHTML = ''</script>", "a & <b>", "unseen", "square <i>")
    classes = ClassTable(names, np.arange(12, dtype=np.uint8).reshape(4, 3))
    confusion = np.zeros((4, 4), np.int64)
    confusion[1] = 5, 7, 0, 2
    none = np.zeros(4, np.int64)
    counts = Counts(confusion, none, none)
    write_report(tmp_path / "report.html", metrics_of(counts), counts, classes, [], [], {})
    seen, page = browse(tmp_path / "report.html")
    assert seen["initial"][0] == 1 and seen["byIou"][-1] == 2 and seen["byIouDown"][-1] == 2
    assert seen["found"] == [3]
    assert len(seen["cells"]) == 3  # the class in neither is left out
    assert seen["cells"][1][0] == f"{names[1]} taken for {names[0]}: 35.71% (5 pixels)"
    assert seen["cells"][0][0] == f"{names[0]}, correct: not in the ground truth"
    assert "occur in neither (1)" in page and "Worst images" not in page

    empty = Counts.zeros(4)
    write_report(tmp_path / "empty.html", metrics_of(empty), empty, classes, [], [], {})
    seen, page = browse(tmp_path / "empty.html")
    assert "Nothing was counted" in page and seen["byName"] == [0, 1, 3, 2]


@pytest.mark.slow
def test_many_classes_on_a_phone(tmp_path):
    """150 classes in a narrow window: nothing sticks out, every cell can be read."""
    rng = np.random.default_rng(0)
    classes = load_classes("ade20k")
    vector = rng.integers(1, 10**7, 150 * 152)
    counts = Counts.from_vector(vector)
    write_report(tmp_path / "report.html", metrics_of(counts), counts, classes, [], [], {"data": "x" * 300})
    seen, _ = browse(tmp_path / "report.html", width=500)
    assert seen["overflow"] <= 0
    assert seen["cells"][149][17].startswith(f"{classes.names[149]} taken for {classes.names[17]}: ")
    assert f"({counts.confusion[149, 17]:,} pixels)" in seen["cells"][149][17]


@pytest.mark.parametrize("size", [(1, 900), (700, 300), (1300, 40)], ids=str)
def test_pictures_are_small(tmp_path, size):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.integers(0, 300, size).astype(np.uint16)  # more classes than a palette's file holds
    classes = ClassTable(tuple(map(str, range(300))), rng.integers(0, 256, (300, 3), np.uint8))
    counts = count(labels, labels, 300, 65535)
    image = PicturedImage("noise", 1.0, photo, labels, labels)
    write_report(tmp_path / "report.html", metrics_of(counts), counts, classes, [image], [], {})
    ratio = re.search(r"--ratio:(\d+)/(\d+)", (tmp_path / "report.html").read_text(encoding="utf-8"))
    scale = min(1, 640 / max(size))
    assert [int(side) for side in ratio.groups()] == [max(1, round(scale * side)) for side in size[::-1]]
