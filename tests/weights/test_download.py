"""Files by their address: a server that cuts connections, other checksums, and what is refused."""

import hashlib
import re

import numpy as np
import pytest

from fasseg_jax.weights import download as download_module
from fasseg_jax.weights.download import RemoteError, download
from tests.helpers.hub import serve

CONTENT = np.random.default_rng(0).bytes(300_000)
CHECKSUM = hashlib.sha256(CONTENT).hexdigest()
PATH = "/me/model/resolve/main/weights.pth"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("FASSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download_module, "CHUNK", 10_000)
    with serve() as hub:
        hub.repositories["me/model"] = {"weights.pth": CONTENT}
        hub.address = f"{hub.url}{PATH}#sha256={CHECKSUM}"
        yield hub


def test_a_file_is_downloaded_once(hub):
    file = download(hub.address)
    assert file.name == "weights.pth" and file.read_bytes() == CONTENT
    assert download(hub.address) == file
    assert hub.requests == [("GET", PATH, 0)]


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub):
    hub.cut_after, hub.cuts = 70_000, 2
    assert download(hub.address).read_bytes() == CONTENT
    assert [begin for _, _, begin in hub.requests] == [0, 70_000, 140_000]


def test_it_also_goes_on_in_another_process(hub):
    hub.cut_after, hub.cuts = 70_000, 1
    folder = download_module.cache_folder() / hashlib.sha256(f"{hub.url}{PATH}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True)
    assert not download_module._attempt(f"{hub.url}{PATH}", folder / "weights.pth.partial", 0)
    assert download(hub.address).read_bytes() == CONTENT
    assert [begin for _, _, begin in hub.requests] == [0, 70_000]


def test_a_file_that_changed_in_between_begins_again(hub, monkeypatch):
    hub.cut_after, hub.cuts = 70_000, 1
    changed = CONTENT[::-1]
    original = download_module._attempt

    def attempt(url, partial, begin):
        done = original(url, partial, begin)
        hub.repositories["me/model"]["weights.pth"] = changed
        return done

    monkeypatch.setattr(download_module, "_attempt", attempt)
    file = download(f"{hub.url}{PATH}#sha256={hashlib.sha256(changed).hexdigest()}")
    assert file.read_bytes() == changed


def test_without_a_version_of_the_file_it_begins_again(hub):
    hub.tags, hub.cut_after, hub.cuts = False, 70_000, 1
    assert download(hub.address).read_bytes() == CONTENT
    assert [begin for _, _, begin in hub.requests] == [0, 0]


def test_a_server_that_always_cuts_is_given_up(hub, monkeypatch):
    hub.cut_after, hub.cuts = 0, 1000
    with pytest.raises(RemoteError, match="weights.pth: the connection was cut$"):
        download(hub.address)
    hub.cut_after, hub.cuts = 70_000, 1
    original, attempts = download_module._attempt, []

    def attempt(url, partial, begin):
        attempts.append(begin)
        if len(attempts) > 1:
            raise OSError("no route to host")
        return original(url, partial, begin)

    with monkeypatch.context() as patch:
        patch.setattr(download_module, "_attempt", attempt)
        with pytest.raises(RemoteError, match=r"\(no route to host\) after 0.1 MB; the same command goes on from ther"):
            download(hub.address)
    assert download(hub.address).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_deleted(hub):
    wrong = "0" * 64
    with pytest.raises(RemoteError, match=f"its sha256 is {CHECKSUM}, not {wrong}; the download is deleted"):
        download(f"{hub.url}{PATH}#sha256={wrong}")
    file = download(hub.address)
    file.write_bytes(b"damaged")  # in the cache
    with pytest.raises(RemoteError, match="the download is deleted"):
        download(hub.address)
    assert download(hub.address).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host/file.pth", "without https anyone may change the file on its way; add #sha256="),
        ("https://host/file.pth#sha256=12", "after # it must say sha256= and 64 hexadecimal digits, not 'sha256=12'"),
        ("https://host/file.pth#md5=12", "after # it must say sha256="),
        ("https://host/", "names no file"),
        ("https:///file.pth", "names no file"),
        ("https://host/a/..", "names no file"),
        ("https://127.0.0.1:9/file.pth", r"cannot be reached \(.*refused"),
    ],
)
def test_refusals(address, message, tmp_path, monkeypatch):
    monkeypatch.setenv("FASSEG_CACHE", str(tmp_path))
    with pytest.raises(RemoteError, match=message) as caught:
        download(address)
    assert "\n" not in str(caught.value) and re.match("https?:", str(caught.value))


@pytest.mark.parametrize(
    ("status", "message"), [(404, "no such file"), (401, "login"), (403, "forbidden"), (503, "ref")]
)
def test_refusals_of_the_server(hub, status, message):
    hub.refusal = status
    with pytest.raises(RemoteError, match=rf"{message}.*\(HTTP {status}\)"):
        download(hub.address)
