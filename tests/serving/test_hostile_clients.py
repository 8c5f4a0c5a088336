"""The server against slow, malformed and vanishing clients: raw sockets, and a stand-in for the network."""

import contextlib
import http.client
import io
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.serving.limits import Limits
from tests.helpers.stand_ins import Brightness, serve

HOST = b"Host: localhost\r\n"
HEAD = b"POST /segment HTTP/1.1\r\n" + HOST


def connect(server, data=b""):
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
    connection.sendall(data)
    return connection


def answer(connection):
    """The status and the sentence of an answer; the status is None if the connection ends without one."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
    except (http.client.BadStatusLine, ConnectionError):
        return None, ""
    body = response.read()
    return response.status, json.loads(body).get("error", "") if body else ""


def exchange(server, data):
    with connect(server, data) as connection:
        return answer(connection)


def reset(connection):
    """Close a connection as a program does that was killed: by a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def upload(height=20, width=30):
    file = io.BytesIO()
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)).save(file, "PNG")
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(file.getvalue()) + file.getvalue()


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def busy(server):
    """How many uploads, waiting photos and connections the server has."""
    return server.uploads.taken, server.waiting.taken, server.connections.taken


MALFORMED = [  # request, status, what the error says
    (HEAD + b"\r\n", 411, "does not state the size"),
    *(
        (HEAD + b"Content-Length: " + length + b"\r\n\r\nabcde", 400, "Content-Length must be a whole number")
        for length in (b"-5", b"+5", b"five", b"5.0", b"5 5", b"5, 5", b"0x5", b"5_0", b"", b"\xb2", b"1e3", b"5\r\n 0")
    ),
    *(
        (HEAD + b"Content-Length: " + length + b"\r\n\r\nabcde", 413, "the limit is 40 MB")
        for length in (b"99999999", b"9" * 20, b"9" * 5000, b"0" * 10 + b"9" * 400)
    ),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400, "more than one header Content-Length"),
    (HEAD + b"Content-Length: 5\r\ncontent-length: 6\r\n\r\nabcde", 400, "more than one header Content-Length"),
    *(
        (HEAD + length + b"Transfer-Encoding: " + kind + b"\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", 400, "Transfer-Encoding")
        for kind in (b"chunked", b"gzip, chunked", b"xchunked", b"identity", b"")
        for length in (b"", b"Content-Length: 5\r\n")
    ),
    (HEAD + b"no colon here\r\nContent-Length: 5\r\n\r\nabcde", 400, "without a name and a colon"),
    (HEAD + b"Content-Length : 5\r\n\r\nabcde", 400, "without a name and a colon"),
    (b"POST /segment HTTP/1.1\r\n folded: 1\r\n" + HOST + b"\r\n", 400, "without a name and a colon"),
    (HEAD + HOST + b"Content-Length: 5\r\n\r\nabcde", 400, "more than one header Host"),
    (HEAD + b"X: " + b"x" * 70_000 + b"\r\n\r\n", 431, "Line too long"),
    (HEAD + b"".join(b"X%d: x\r\n" % i for i in range(200)) + b"\r\n", 431, "Too many headers"),
    (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "URI"),
    (b"POST /segment HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde", 403, "only address"),
    (b"GET /\r\n" + HOST + b"\r\n", 400, "version of HTTP"),
    (b"POST /segment\r\n\r\n", 400, "HTTP/0.9"),
    (b"GET / HTTP/x\r\n\r\n", 400, "version"),
    (b"GET / HTTP/2.0\r\n\r\n", 505, "version"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "Bad request"),  # a browser that tries https
    (b"a b c d e\r\n\r\n", 400, ""),
    *(
        (method + b" /segment HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nabcde", 501, "Unsupported method")
        for method in (b"PUT", b"DELETE", b"OPTIONS", b"post", b"_check_host", b"\xe9")
    ),
    (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nabcde", 404, "send photos to /segment"),
    (b"GET /segment HTTP/1.1\r\n" + HOST + b"\r\n", 404, "the page is at /"),
    (b"GET http://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n", 404, "the page is at /"),
    (b"GET /\xff%00 HTTP/1.1\r\n" + HOST + b"\r\n", 404, "the page is at /"),
]


def test_malformed_requests_are_refused_in_words(capsys):
    with serve() as server:
        for request, status, message in MALFORMED:
            got, error = exchange(server, request)
            assert got == status and message in error, (request[:80], got, error)
        assert exchange(server, upload())[0] == 200  # the server continues
        wait_until(lambda: busy(server) == (0, 0, 0))
    assert capsys.readouterr().err == ""


def test_a_refusal_arrives_although_the_client_still_sends():
    """Closing with unread bytes would reset the connection, and the client would lose the answer."""
    with serve() as server, connect(server, HEAD + b"Content-Length: 50000000\r\n\r\n") as connection:
        for _ in range(50):
            connection.sendall(bytes(10**6))
        assert answer(connection)[0] == 413


def test_slow_uploads_end_at_a_deadline():
    """Clients that send a byte now and then take all slots: others hear so at once, and the slots come back."""
    with serve(uploads=2, seconds=1) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server, HEAD + b"Content-Length: 1000\r\n\r\n")) for _ in range(2)]
        wait_until(lambda: server.uploads.taken == 2)
        begin = time.monotonic()
        status, error = exchange(server, upload())
        assert status == 503 and "Too many photos at once" in error
        statuses = []
        while not statuses:  # a read with its own time limit would wait for ever
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
            time.sleep(0.1)
            assert time.monotonic() < begin + 10
            if server.uploads.taken == 0:
                statuses = [answer(connection) for connection in slow]
        assert statuses == [(408, "The photo did not arrive within 1 s.")] * 2
        assert exchange(server, upload())[0] == 200


def test_slow_clients_keep_nobody_out():
    """Uploads that come slower than allowed end early, and take no place of the photos that wait."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 70, 3), np.uint8)).save(file, "PNG")
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(file.getvalue()) + file.getvalue()
    with serve(uploads=3, waiting=1, patience=0.5, bytes_per_second=5000) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server, request[:200])) for _ in range(2)]
        wait_until(lambda: server.uploads.taken == 2)
        assert [exchange(server, request)[0] for _ in range(5)] == [200] * 5
        assert {answer(connection) for connection in slow} == {
            (408, "The photo arrived at less than 5000 bytes per second.")
        }
        with connect(server, request[:200]) as connection:  # 5 parts of 20 kB/s, after the half second
            for start in range(200, len(request), 4000):
                time.sleep(0.2)
                connection.sendall(request[start : start + 4000])
            assert answer(connection)[0] == 200 and len(request) > 12_000


def test_slow_headers_end_at_a_deadline(capsys):
    with serve(patience=0.5) as server:
        for beginning in (b"", b"POST", HEAD, HEAD + b"Content-Len"):
            with connect(server, beginning) as connection, contextlib.suppress(OSError):
                end = time.monotonic() + 10
                while connection.send(b"x") and time.monotonic() < end:
                    time.sleep(0.05)
                    if select_readable(connection):
                        break
                assert time.monotonic() < end and connection.recv(100) == b""
        wait_until(lambda: busy(server) == (0, 0, 0))
    assert capsys.readouterr().err == ""


def select_readable(connection):
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(20)
    return True


def test_connections_are_bounded():
    with serve(connections=3) as server:
        held = [connect(server) for _ in range(3)]
        wait_until(lambda: server.connections.taken == 3)
        with connect(server) as connection:
            assert answer(connection)[0] == 503
        held.pop().close()
        wait_until(lambda: server.connections.taken == 2)
        assert exchange(server, upload())[0] == 200
        for connection in held:
            connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_vanishes_frees_its_slot(leave, capsys):
    request = upload()
    segmenter = Brightness()
    with serve(segmenter, uploads=2) as server:
        beginnings = (b"", b"\r", request[:7], HEAD, HEAD + b"Content-L", request[: len(request) // 2], request[:-1])
        for beginning in beginnings:  # before the request, within its line, its headers and its body
            leave(connect(server, beginning))
            wait_until(lambda: busy(server) == (0, 0, 0))
        segmenter.open.clear()
        first, second = connect(server, request), connect(server, request)
        wait_until(lambda: server.waiting.taken == 2)
        assert segmenter.entered.acquire(timeout=20)
        leave(second)  # while it waits for its turn
        leave(first)  # while the network computes
        segmenter.open.set()
        wait_until(lambda: busy(server) == (0, 0, 0))
        for request in (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", upload(2000, 1500)):  # while it reads the answer
            connection = connect(server, request)
            assert len(connection.recv(5)) == 5
            leave(connection)
            wait_until(lambda: busy(server) == (0, 0, 0))
        leave(connect(server, HEAD + b"Content-Length: 99999999\r\n\r\nabc"))  # while the server reads what it refused
        wait_until(lambda: busy(server) == (0, 0, 0))
        assert exchange(server, upload())[0] == 200
    assert capsys.readouterr().err == ""


def test_an_error_is_one_line(capsys):
    """Of the network, and of the server itself."""

    class Broken(Brightness):
        def labels(self, image):
            raise TimeoutError("the device\ndid not answer")

    with serve(Broken()) as server:
        status, error = exchange(server, upload())
        assert status == 500 and "did not answer" in error
    assert capsys.readouterr().err == "TimeoutError: the device did not answer\n"
    with serve() as server:
        server.limits = None
        assert exchange(server, upload())[0] is None
        wait_until(lambda: server.connections.taken == 0)
        server.limits = Limits()
        assert exchange(server, upload())[0] == 200
    errors = capsys.readouterr().err
    assert errors.startswith("AttributeError: ") and errors.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux lists them")
def test_many_requests_leave_nothing_behind():
    """Threads and descriptors after 200 requests, good, refused and abandoned."""
    with serve() as server:

        def serve_some(count):
            for index in range(count):
                if index % 4 == 3:
                    reset(connect(server, upload()[:200]))
                else:
                    request = (upload(200, 300), b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", HEAD + b"\r\n")[index % 4]
                    with connect(server, request) as connection:
                        assert connection.recv(12) == b"HTTP/1.0 " + (b"200", b"200", b"411")[index % 4]
            wait_until(lambda: busy(server) == (0, 0, 0))
            wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
            wait_until(lambda: threading.active_count() <= threads)

        descriptors, threads = len(os.listdir("/proc/self/fd")) + 2, threading.active_count() + 1
        serve_some(10)
        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        serve_some(200)
