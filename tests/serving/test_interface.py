"""The interface for programs: formats of answers, batches, overload, health, metrics, and their description."""

import concurrent.futures
import http.client
import io
import json
import signal
import subprocess
import sys
import threading

import jsonschema
import numpy as np
import pytest
from openapi_spec_validator import validate
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families
from pycocotools import mask as coco_mask

from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.serving.answers import FORMATS
from fasseg_jax.serving.batcher import Batcher
from fasseg_jax.serving.limits import Limits, PixelBudget
from fasseg_jax.serving.openapi import openapi_document
from fasseg_jax.visualization.overlay import draw_overlay
from tests.helpers import ROOT
from tests.helpers.stand_ins import Brightness, serve
from tests.helpers.tiny import photo, tiny_model
from tests.serving.test_hostile_clients import wait_until
from tests.serving.test_server import CLASSES, file_of, request

DOCUMENT = openapi_document(Limits())


def check_schema(content, name):
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.validate(content, schema, cls=jsonschema.Draft202012Validator)


def answers(server, image):
    """The answer of each format: (type, content)."""
    found = {}
    for form in FORMATS:
        status, body, headers = request(server, "POST", f"/segment?format={form}", file_of(image))
        assert status == 200, body
        kind = headers["Content-Type"]
        assert kind == FORMATS[form].content_type
        found[form] = json.loads(body) if kind == "application/json" else np.asarray(Image.open(io.BytesIO(body)))
        if kind == "application/json":
            check_schema(found[form], "Segmentation")
    return found


def test_formats_hold_the_labels_of_the_segmenter():
    segmenter = Segmenter(*tiny_model(), CLASSES)
    image = photo(70, 101)
    labels = segmenter(image).labels
    with serve(segmenter) as server:
        found = answers(server, image)
        assert request(server, "POST", "/segment", file_of(image))[1].startswith(b'{"width":101,"height":70,')
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_array_equal(found["overlay"], np.asarray(draw_overlay(image, labels, CLASSES)))
    shares = {entry["id"]: entry["share"] for entry in found["shares"]["classes"]}
    assert shares == pytest.approx({i: (labels == i).mean() for i in np.unique(labels).tolist()})
    assert len(shares) > 2
    for entry in found["rle"]["classes"]:  # the library of COCO reads them
        encoded = coco_mask.frPyObjects(entry["rle"], *entry["rle"]["size"])
        np.testing.assert_array_equal(coco_mask.decode(encoded), labels == entry["id"])
    # Half a pixel inwards, Pillow fills the polygon's pixels; painted in order they are the labels.
    painted = Image.new("L", labels.shape[::-1], 255)
    for polygon in found["polygons"]["polygons"]:
        corners = np.array(polygon["corners"])
        x, y, width, height = polygon["box"]
        assert [x, y, x + width, y + height] == [*corners.min(0), *corners.max(0)]
        painted.paste(polygon["id"], mask=filled(corners, labels.shape))
    np.testing.assert_array_equal(np.asarray(painted), labels)


def filled(corners, shape, scale=8):
    """The pixels whose centers lie in a polygon: drawn eight times as large, where its borders fall between pixels."""
    large = Image.new("L", (shape[1] * scale, shape[0] * scale))
    ImageDraw.Draw(large).polygon([tuple(corner) for corner in (corners * scale).tolist()], fill=255)
    return Image.fromarray(np.asarray(large)[scale // 2 :: scale, scale // 2 :: scale])


@pytest.mark.parametrize("first", [0, 3])
def test_runs_of_masks(first):
    """A class may begin at the first pixel or end at the last."""

    class Fixed(Brightness):
        def labels(self, image):
            return np.array([[first, 3, 3], [0, 0, 3]], np.uint8)

    with serve(Fixed()) as server:
        found = answers(server, photo(2, 3))["rle"]["classes"]
    runs = {entry["id"]: entry["rle"] for entry in found}
    counts = {0: [0, 2, 1, 1, 2], 3: [2, 1, 1, 2]} if first == 0 else {0: [1, 1, 1, 1, 2], 3: [0, 1, 1, 1, 1, 2]}
    assert runs == {i: {"size": [2, 3], "counts": counts[i]} for i in counts}


def test_formats_that_do_not_exist():
    with serve(Brightness()) as server:
        for query in ("format=svg", "format=", "format", "form=labels", "format=labels&x=1", "x" * 5000):
            status, body, _ = request(server, "POST", f"/segment?{query}", file_of(photo(8, 8)))
            assert status == 400 and "NAME is one of page, shares, labels" in json.loads(body)["error"], query


def test_the_description_is_valid_and_complete():
    """Every address and every status that the server sends is described."""
    validate(DOCUMENT)
    with serve(Brightness(), megabytes=3) as server:
        status, body, _ = request(server, "GET", "/openapi.json")
        assert status == 200 and json.loads(body) == openapi_document(Limits(megabytes=3))
        for path, operations in DOCUMENT["paths"].items():
            for method, operation in operations.items():
                status, body, headers = request(server, method.upper(), path, b"x" if method == "post" else None)
                described = operation["responses"][str(status)]["content"]
                assert headers.get_content_type() in described
                if described.keys() == {"application/json"} and "$ref" in str(described):
                    check_schema(json.loads(body), str(described).rpartition("/")[2].rstrip("'}"))
    sent = {"400", "403", "404", "408", "411", "413", "415", "422", "500", "503", "200"}
    assert DOCUMENT["paths"]["/segment"]["post"]["responses"].keys() == sent - {"404"}  # another address
    [parameter] = DOCUMENT["paths"]["/segment"]["post"]["parameters"]
    assert parameter["schema"]["enum"] == list(FORMATS)


def waiting_photos(server, images):
    """Send photos that all wait while the stand-in computes the first; returns their futures."""
    segmenter = server.batcher._segmenter
    segmenter.open.clear()
    pool = concurrent.futures.ThreadPoolExecutor(32)
    futures = []
    for number, image in enumerate(images):
        futures.append(pool.submit(request, server, "POST", "/segment?format=labels", file_of(image)))
        wait_until(lambda expected=number + 1: server.waiting.taken == expected)
        wait_until(lambda expected=number: len(server.batcher._photos) == expected)  # the first is being computed
    return futures


@pytest.mark.parametrize("batches_pay", [True, False])
def test_photos_that_wait_share_batches(batches_pay):
    """Batches of 1, 2 and 4 photos of one shape where they pay, in the order of arrival; each gets its own labels."""
    segmenter = Brightness(batches_pay)
    shapes = [(8, 9), (8, 9), (5, 6), (8, 9), (8, 9), (5, 6), (8, 9), (8, 9), (5, 6)]
    images = [photo(*shape, seed=index) for index, shape in enumerate(shapes)]
    with serve(segmenter, batch_size=5) as server:
        futures = waiting_photos(server, images)
        segmenter.open.set()
        for image, future in zip(images, futures, strict=True):
            status, body, _ = future.result()
            assert status == 200
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), segmenter.labels(image))
        wait_until(lambda: server.waiting.taken == 0)
    if batches_pay:
        first, *rest = segmenter.batches
        assert first == ((8, 9), 1, 1)
        assert rest == [((8, 9), 4, 4), ((5, 6), 2, 2), ((8, 9), 1, 1), ((5, 6), 1, 1)]
    else:
        assert segmenter.batches == [(shape, 1, 1) for shape in shapes]


def test_a_bad_photo_does_not_spoil_its_batch():
    class Picky(Brightness):
        def labels(self, image):
            if image[0, 0, 0] == 0:
                raise FloatingPointError("not finite")
            return super().labels(image)

    segmenter = Picky(batches_pay=True)
    images = [np.full((4, 4, 3), value, np.uint8) for value in (50, 50, 0, 50, 50)]
    with serve(segmenter) as server:
        futures = waiting_photos(server, images)
        segmenter.open.set()
        assert [future.result()[0] for future in futures] == [200, 200, 500, 200, 200]
        assert json.loads(futures[2].result()[1])["error"] == "The photo could not be segmented: not finite"


def test_views_of_one_shape_fill_a_batch():
    """Windows of one photo are computed together."""

    class Windows(Brightness):
        def padded_shapes(self, image):
            return ((64, 96),) * 6

    segmenter = Windows(batches_pay=True)
    batcher = Batcher(segmenter, 8, lambda photos, seconds: None)
    batcher(photo(8, 8))
    assert segmenter.batches == [((8, 8), 1, 4)]
    batcher.close()
    wait_until(lambda: not batcher.is_alive)


def test_overload_is_refused_with_a_time():
    segmenter = Brightness()
    with serve(segmenter, waiting=3) as server:
        server.batcher.seconds_per_photo = 2.4
        futures = waiting_photos(server, [photo(8, 8)] * 3)
        for _ in range(3):
            status, body, headers = request(server, "POST", "/segment", file_of(photo(8, 8)))
            assert status == 503 and headers["Retry-After"] == "7"
            check_schema(json.loads(body), "Error")
        assert json.loads(request(server, "GET", "/health")[1]) == {"status": "ok", "classes": 19, "waiting": 3}
        segmenter.open.set()
        assert [future.result()[0] for future in futures] == [200] * 3
        wait_until(lambda: server.waiting.taken == 0)
        assert request(server, "POST", "/segment", file_of(photo(8, 8)))[0] == 200


def test_health_says_when_no_photo_is_segmented_any_more():
    with serve(Brightness()) as server:
        assert request(server, "GET", "/health")[0] == 200
        server.batcher.close()
        wait_until(lambda: not server.batcher.is_alive)
        status, body, _ = request(server, "GET", "/health")
        assert status == 503 and json.loads(body)["status"] == "stopped"


def test_metrics_are_what_happened():
    segmenter = Brightness(batches_pay=True)
    with serve(segmenter, connections=5) as server:
        futures = waiting_photos(server, [photo(8, 8)] * 3)
        segmenter.open.set()
        for future in futures:
            future.result()
        request(server, "POST", "/segment", b"no photo")
        request(server, "POST", "/segmentary?secret", b"x")
        for path in ("/", "/secret", "/health"):
            request(server, "GET", path)
        wait_until(lambda: server.waiting.taken == 0)
        _, text, headers = request(server, "GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    counted = {key[1:]: value for key, value in samples.items() if key[0] == "fasseg_requests_total"}
    assert counted == {
        ("/segment", "200"): 3,
        ("/segment", "415"): 1,
        ("other", "404"): 2,
        ("/", "200"): 1,
        ("/health", "200"): 1,
    }
    assert samples[("fasseg_batch_photos_count",)] == 2 and samples[("fasseg_batch_photos_sum",)] == 3
    assert samples[("fasseg_answer_seconds_count",)] == 3 and samples[("fasseg_waiting_photos",)] == 0
    assert samples[("process_resident_memory_bytes",)] > 1e7
    assert b"secret" not in text


def test_pixels_in_memory_are_bounded_and_large_photos_get_their_turn():
    budget = PixelBudget(10)
    order, running, most = [], [], []
    start = threading.Event()

    def use(name, pixels):
        with budget.hold(pixels):
            running.append(pixels)
            most.append(sum(running))
            order.append(name)
            start.wait(10)
            running.remove(pixels)

    threads = []
    for name, pixels in (("a", 4), ("b", 4), ("large", 10), ("c", 1)):
        threads.append(threading.Thread(target=use, args=(name, pixels)))
        threads[-1].start()
        wait_until(lambda name=name: name in order or budget._turn.locked())
    assert order == ["a", "b"]  # c would fit, but the large one waits before it
    start.set()
    for thread in threads:
        thread.join(10)
    assert max(most) == 10 and order.index("large") < order.index("c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_photos_in_progress_are_answered_before_the_end(number, tmp_path):
    """The program with a stand-in that takes seconds; a second signal is not needed."""
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from absl import app
from fasseg_jax.serving import __main__ as program
from fasseg_jax.inference.segmenter import Segmenter
from tests.helpers.stand_ins import Brightness
class Slow(Brightness):
    def labels(self, image):
        time.sleep(3)
        return super().labels(image)
Segmenter.from_checkpoint = lambda path, **settings: Slow()
program.define_flags()
app.run(program.main)
"""
    command = [sys.executable, "-c", program, "--checkpoint=x", "--port=0", "--device=cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # ended by conftest.py if this test fails
    with process.stdout:
        port = int(process.stdout.readline().split()[1].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/segment", file_of(photo(8, 8)))

        def photos_in_progress():
            health = http.client.HTTPConnection("127.0.0.1", port)
            health.request("GET", "/health")
            return json.loads(health.getresponse().read())["waiting"]

        wait_until(photos_in_progress)
        process.send_signal(number)
        assert connection.getresponse().status == 200
        assert process.wait(20) == 0
