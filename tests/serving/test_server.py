"""The server over HTTP, and its page in a browser."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.serving.server import PhotoServer
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.helpers import ROOT
from tests.helpers.browser import open_browser
from tests.helpers.stand_ins import Brightness, serve
from tests.helpers.tiny import photo, tiny_model

CLASSES = load_classes("cityscapes")


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(*tiny_model(), CLASSES)


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def request(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def segment(server, file, **headers):
    status, body, _ = request(server, "POST", "/segment", file, headers)
    return status, json.loads(body)


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_labels_are_those_of_the_segmenter(segmenter):
    image = photo(70, 100)
    labels = segmenter(image).labels
    with serve(segmenter) as server:
        status, answer = segment(server, file_of(image))
    assert status == 200 and (answer["width"], answer["height"]) == (100, 70)
    encoded = decoded(answer["labels"]).astype(int)
    np.testing.assert_array_equal(encoded[..., 0] + 256 * encoded[..., 1], labels)
    np.testing.assert_allclose(decoded(answer["photo"]).astype(int), image, atol=25)  # a JPEG
    assert [found["id"] for found in answer["classes"]] == sorted(set(labels.flat), key=lambda i: -(labels == i).sum())
    assert len(answer["classes"]) > 1
    for found in answer["classes"]:
        assert found["name"] == CLASSES.names[found["id"]]
        assert found["color"] == CLASSES.palette[found["id"]].tolist()
        assert found["share"] == pytest.approx((labels == found["id"]).mean())


def test_the_exif_orientation_is_applied_and_many_classes_fit():
    """A photo that its EXIF entry rotates; class ids above 255."""

    class Rows(Brightness):
        classes = ClassTable(tuple(f"class {i}" for i in range(600)), np.zeros((600, 3), np.uint8))

        def labels(self, image):
            return np.arange(len(image), dtype=np.uint16)[:, None].repeat(image.shape[1], 1) * 9

    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer rotates it by 90 degrees
    with serve(Rows()) as server:
        status, answer = segment(server, file_of(photo(40, 60), "JPEG", exif=exif))
    assert status == 200 and (answer["width"], answer["height"]) == (40, 60)
    encoded = decoded(answer["labels"]).astype(int)
    np.testing.assert_array_equal(encoded[..., 0] + 256 * encoded[..., 1], np.arange(60)[:, None].repeat(40, 1) * 9)


def test_bad_uploads_are_refused_in_words(segmenter):
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    eps = io.BytesIO()
    Image.fromarray(photo(20, 20)).save(eps, "EPS")
    cases = [  # file, status, what the error says
        (b"", 415, "not a photo in a known format"),
        (b"not a photo", 415, "not a photo in a known format"),
        (eps.getvalue(), 415, "not a photo in a known format"),  # Pillow would start Ghostscript
        (file_of(noise)[: 700 * 700], 422, "The photo is damaged: "),
        (file_of(noise), 413, "The file has 1 MB; the limit is 1 MB."),
        (file_of(np.zeros((1100, 1000, 3), np.uint8)), 413, "1000 x 1100 pixels; the limit is 1 million"),
    ]
    with serve(segmenter, megabytes=1, megapixels=1) as server:
        for file, status, message in cases:
            assert segment(server, file)[0] == status, message
            assert message in segment(server, file)[1]["error"]
        assert segment(server, file_of(photo(64, 96)))[0] == 200  # the server continues


def test_no_path_or_foreign_site_gets_anything(segmenter):
    with serve(segmenter) as server:
        status, page, headers = request(server, "GET", "/")
        assert status == 200 and b"<!doctype html>" in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        for path in ("/etc/passwd", "/../pyproject.toml", "//demo.py", "/demo.html", "/?x"):
            assert request(server, "GET", path)[0] == 404
        assert request(server, "POST", "/other", b"x")[0] == 404
        assert request(server, "PUT", "/segment", b"x")[0] == 501
        # Foreign names that resolve to this machine, and scripts of other sites.
        port = server.server_port
        file = file_of(photo(64, 96))
        for headers in ({"Host": f"evil.example:{port}"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
            status, answer = segment(server, file, **headers)
            assert status == 403 and "labels" not in answer
        assert request(server, "GET", "/", headers={"Host": f"localhost:{port}"})[0] == 200
        same = {"Host": f"[::1]:{port}", "Origin": f"http://[::1]:{port}"}
        assert segment(server, file, **same)[0] == 200


def test_addresses_of_both_kinds(segmenter):
    for host in ("127.0.0.1", "::1"):
        with PhotoServer(segmenter, host) as server:
            assert server.local and server.url.endswith(f":{server.server_port}")
            assert server.url.startswith("http://[::1]:" if ":" in host else "http://127.0.0.1:")


def test_unfinished_and_too_many_uploads(segmenter):
    """Bodies without a size, cut short, or that never come; and more uploads at once than the limit."""
    head = b"POST /segment HTTP/1.1\r\nHost: localhost\r\n"
    with serve(segmenter, seconds=1.5, uploads=1) as server:

        def send(data):
            connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=30)
            connection.sendall(data)
            return connection

        with send(head + b"\r\n") as connection:
            assert b" 411 " in connection.recv(1000)
        with send(head + b"Content-Length: 100\r\n\r\nabc") as connection:
            connection.shutdown(socket.SHUT_WR)
            assert b" 400 " in connection.recv(1000)
        with send(head + b"Content-Length: 100\r\n\r\nabc") as waiting:
            status, answer = None, None
            while status != 503:  # until the server waits for the rest
                status, answer = segment(server, file_of(photo(64, 96)))
            assert "Too many photos" in answer["error"]
            assert b" 408 " in waiting.recv(1000)  # after the time limit
        assert segment(server, file_of(photo(64, 96)))[0] == 200


def text_of(selector):
    return f"document.querySelector('{selector}').textContent"


@pytest.mark.slow
def test_page_in_a_browser(segmenter, tmp_path):
    image = photo(300, 400, seed=3)
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "notes.txt").write_text("no photo")
    labels = segmenter(image).labels
    idle = "document.querySelector('#busy').hidden"
    with serve(segmenter) as server, open_browser((1200, 800)) as browser:
        browser.open(server.url)
        browser.choose_file("#file", tmp_path / "notes.txt")
        browser.wait_for("!document.querySelector('#message').hidden")
        assert "not a photo in a known format" in browser.evaluate(text_of("#message"))
        browser.choose_file("#file", tmp_path / "photo.png")
        browser.wait_for(f"{idle} && !document.querySelector('#result').hidden")
        assert browser.evaluate("document.querySelector('#message').hidden")
        np.testing.assert_array_equal(browser.evaluate("Array.from(result.labels)"), labels.ravel())
        listed = browser.evaluate("[...document.querySelectorAll('#classes button')].map((b) => Number(b.dataset.id))")
        assert listed == sorted(set(labels.flat), key=lambda i: -(labels == i).sum())
        # The tip names the class under the pointer.
        box = json.loads(browser.evaluate("JSON.stringify(document.querySelector('#stage').getBoundingClientRect())"))
        assert box["width"] / box["height"] == pytest.approx(4 / 3, rel=0.01)
        for y, x in ((40, 50), (150, 200), (260, 399), (299, 30)):
            browser.point_at(box["left"] + (x + 0.5) * box["width"] / 400, box["top"] + (y + 0.5) * box["height"] / 300)
            browser.wait_for(f"lit === {labels[y, x]}")
            assert browser.evaluate(text_of("#tip")) == CLASSES.names[labels[y, x]]
        browser.screenshot(tmp_path / "page.png")
        # The saved image: the colors over the photo, in its size, without highlighting of the previous class.
        browser.point_at(5, 5)
        browser.wait_for("lit === null")
        painted = browser.evaluate("Array.from(paint(result.labels, result.width, result.height).data)")
        painted = np.array(painted).reshape(300, 400, 4)
        inner = np.ones(labels.shape, bool)
        inner[:-1] &= labels[1:] == labels[:-1]
        inner[:, :-1] &= labels[:, 1:] == labels[:, :-1]
        np.testing.assert_array_equal(painted[inner][:, :3], CLASSES.palette[labels][inner])
        assert (painted[inner][:, 3] == 140).all() and (painted[~inner] == 255).all()
        addresses = {url for url in browser.requests() if not url.startswith(("data:", "blob:", "about:"))}
        assert addresses == {f"{server.url}/", f"{server.url}/segment"}
    picture = np.asarray(Image.open(tmp_path / "page.png"))
    assert picture.shape[1] == 1200 and picture.std() > 20


@pytest.mark.slow
def test_program(tmp_path):
    """The command prints the address, serves the page and stops at Ctrl-C; a mistake ends it with one line."""
    save_checkpoint(tmp_path / "model", *tiny_model(), CLASSES)
    command = [sys.executable, "-m", "fasseg_jax.serving", "--device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *arguments], env=environment, cwd=tmp_path, **streams)

    expected = Segmenter.from_checkpoint(tmp_path / "model", inference={"round_to": 64}, dtype="bfloat16")
    with run("--checkpoint=model", "--port=0", "--round_to=64", "--dtype=bfloat16") as program:
        address = program.stdout.readline().split()[1]
        port = int(address.rpartition(":")[2])
        assert address == f"http://127.0.0.1:{port}"
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/")
        assert b"What is in a photo" in connection.getresponse().read()
        with run("--checkpoint=model", f"--port={port}") as second:
            assert second.wait(60) == 2
            assert f"cannot listen on 127.0.0.1, port {port}" in second.stderr.read()
        for image in (photo(64, 96), photo(64, 96, 1)):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/segment?format=labels", file_of(image))
            answer = connection.getresponse()
            assert answer.status == 200
            labels = np.asarray(Image.open(io.BytesIO(answer.read())))
            np.testing.assert_array_equal(labels, expected(image).labels)
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == 0
        announced = program.stderr.read()
        assert announced.startswith("Compiling the network for 64x128 pixels") and announced.count("\n") == 1
    with run("--checkpoint=absent") as program:
        assert program.wait(60) == 2
        errors = program.stderr.read()
        assert "absent: no such checkpoint" in errors and errors.count("\n") == 1
