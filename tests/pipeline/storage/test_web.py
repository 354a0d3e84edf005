"""Tests web URLs: requested as they are written, and a server's final answer is one sentence after few requests."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ClipError, ErrorCode, UsageError
from pipeline.sources.expand import Source, expand_sources, normalise
from pipeline.sources.fetch import fetch_source
from pipeline.storage import object_store
from pipeline.storage.web import to_verbatim_url

DATA = os.urandom(50_000)


class Site(BaseHTTPRequestHandler):
    """Records each request's target unchanged, and answers 200 or the status and Location in `answers`."""

    targets: list[str]
    answers: dict[str, tuple[int, str | None]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.targets.append(self.requestline.split(" ", 1)[1].removesuffix(" HTTP/1.1"))
        status, location = self.answers.get(self.targets[-1], (200, None))
        body = DATA if status == 200 else b""
        self.send_response(status)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler], address: str = "127.0.0.1", tls: Any = None) -> Iterator[int]:
    family = {"address_family": socket.AF_INET6 if ":" in address else socket.AF_INET}
    server = type("Server", (ThreadingHTTPServer,), family)((address, 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    Site.targets, Site.answers = [], {}
    with serve(Site) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def shorten_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(object_store, "LONGEST_DELAY_S", 0.002)


def request_targets(url: str, scratch: Path) -> set[str]:
    """The targets that reach the server for a URL that is a source."""
    Site.targets.clear()
    (source,) = expand_sources([url])
    fetched = fetch_source(source, scratch)
    assert fetched.path.read_bytes() == DATA
    fetched.discard()
    return set(Site.targets)


TARGETS = [
    "/a.mp4?X-Amz-Credential=KEY%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=0%2b1%2F",
    "/a%2Fb%2fc.mp4",
    "/a%20b%2Bc+d.mp4?e=%20&f=+&g=%2B",
    "/a.mp4?x=1;y=2;&&z=&x=1&x&=",
    "/%C3%A4%c3%b6.mp4?q=%E2%82%AC",
    "/a//b/./c/../d.mp4?p=//x/../y",
    "/a.mp4?u=https://other.example/x?y=1&t=a::b",
    "/a;v=1/b,c@d:e!$&'()*=.mp4?~-._[]{}|^`\\",
    "/a.mp4?policy=eyJ9%3D%3d&h=%7e%41",
    "/?a.mp4",
]


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_url_can_hold_is_sent_as_given(site: str, target: str, tmp_path: Path) -> None:
    assert request_targets(site + target, tmp_path) == {target}
    assert request_targets(f"{site}{target}#t=10", tmp_path) == {target}, "a fragment is not sent"
    Site.answers["/go?here"] = (302, site + target)
    assert request_targets(f"{site}/go?here", tmp_path) == {"/go?here", target}, "a redirect to it"


legal = st.text(st.sampled_from("ab9-._~!$&'()*+,;=:@/?%"), max_size=12).map(
    # An empty query is the same as none.
    lambda text: text.replace("%", "%2f").replace("=%2f", "=%2F").rstrip("?")
)


@settings(deadline=None, max_examples=150)
@given(target=legal)
def test_any_legal_target_comes_through_every_hand(target: str) -> None:
    url = f"http://Name:Pass@Host.example:81/{target}"
    plain = f"http://Name:Pass@host.example:81/{target}"
    assert normalise(url) == normalise(plain) == normalise(f"{plain}#x") == plain
    assert str(to_verbatim_url(plain)) == plain
    assert normalise(f"x{target}", "https://h/m/n").startswith("https://h")
    assert normalise(f"../.././../{target.lstrip('/')}", "https://h/m/n").startswith("https://h")


def test_what_no_url_can_hold_is_escaped(site: str, tmp_path: Path) -> None:
    expected = "/%C3%A4%20b%25.mp4?q=%E2%82%AC%22%3C%3E&r=100%25&s=%2F"
    assert request_targets(f'{site}/ä b%.mp4?q=€"<>&r=100%&s=%2F', tmp_path) == {expected}
    Site.answers["/go?odd"] = (307, '/a b%.mp4?q="<>&s=%2F')
    assert request_targets(f"{site}/go?odd", tmp_path) == {"/go?odd", "/a%20b%25.mp4?q=%22%3C%3E&s=%2F"}
    assert to_verbatim_url("http://bücher.example/ä").raw_host == "xn--bcher-kva.example"


def test_a_host_may_be_an_ipv6_address(tmp_path: Path) -> None:
    with serve(Site, "::1") as port:
        assert request_targets(f"http://[::1]:{port}/a.mp4?x=%2F", tmp_path) == {"/a.mp4?x=%2F"}


def test_rows_of_a_manifest_on_the_web_are_urls_beside_it(tmp_path: Path) -> None:
    rows = [
        "a.mp4?sig=x%2Fy//z/../w",
        "./sub//b.mp4",
        "../c.mp4",
        "../../../d.mp4",
        "e.mp4?from=http://h/x",
        "http://h/%2F",
    ]

    class List(Site):
        def do_GET(self) -> None:
            body = "\n".join(rows).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

    with serve(List) as port:
        base = f"http://127.0.0.1:{port}"
        assert [source.uri for source in expand_sources([f"{base}/dir/list.txt?token=%2F"])] == [
            f"{base}/dir/a.mp4?sig=x%2Fy//z/../w",
            f"{base}/dir/sub//b.mp4",
            f"{base}/c.mp4",
            f"{base}/d.mp4",
            f"{base}/dir/e.mp4?from=http://h/x",
            "http://h/%2F",
        ]


def fetch_refused(url: str, scratch: Path) -> tuple[ErrorCode, str, int]:
    """The code, the sentence and the number of requests."""
    Site.targets.clear()
    with pytest.raises(ClipError) as caught:
        fetch_source(Source(url), scratch)
    assert list(scratch.iterdir()) == []
    return caught.value.code, caught.value.detail, len(Site.targets)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 418, 421, 422, 426, 431, 451])
def test_a_final_status_is_said_after_two_requests(site: str, status: int, tmp_path: Path) -> None:
    Site.answers["/go?no"] = (status, None)
    code, detail, requests = fetch_refused(f"{site}/go?no", tmp_path)
    assert code == ErrorCode.SOURCE_UNREADABLE
    assert detail.startswith(f"{site}/go?no: the server answers {status} ")
    assert requests == 2


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
def test_a_status_that_may_pass_is_asked_again(site: str, status: int, tmp_path: Path) -> None:
    Site.answers["/go?later"] = (status, None)
    code, detail, requests = fetch_refused(f"{site}/go?later", tmp_path)
    assert code == ErrorCode.STORAGE_ERROR
    assert f"failed {object_store.ATTEMPTS} times: the server answers {status}" in detail
    assert requests == 2 * object_store.ATTEMPTS


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_a_redirect_loop_is_called_one(site: str, status: int, length: int, tmp_path: Path) -> None:
    for step in range(length):
        Site.answers[f"/go?{step}"] = (status, f"/go?{(step + 1) % length}")
    code, detail, requests = fetch_refused(f"{site}/go?0", tmp_path)
    assert code == ErrorCode.SOURCE_UNREADABLE
    assert ("redirects in a circle" if length < 10 else "redirects 10 times") in detail
    assert requests == 20, "ten for HEAD and ten for GET"


@pytest.mark.parametrize(
    ("status", "location", "message"),
    [
        (302, "ftp://h/x.mp4", "the server redirects to ftp://h/x.mp4, which is not a URL of the web"),
        (302, "s3://bucket/x.mp4", "redirects to s3://bucket/x.mp4, which is not"),
        (302, "file:///etc/passwd", "redirects to file:///etc/passwd, which is not"),
        (302, "http://", "which is not a URL of the web"),
        (302, "http://h:port/x", "redirects to what is not a URL of the web"),
        (302, None, "the server answers 302 Found and does not say where the file is"),
        (300, None, "the server answers 300 Multiple Choices and does not say"),
        (304, None, "the server answers 304 Not Modified and does not say"),
    ],
)
def test_a_redirect_to_nowhere_is_one_sentence(
    site: str, status: int, location: str | None, message: str, tmp_path: Path
) -> None:
    Site.answers["/go?away"] = (status, location)
    code, detail, requests = fetch_refused(f"{site}/go?away", tmp_path)
    assert (code, requests) == (ErrorCode.SOURCE_UNREADABLE, 2)
    assert message in detail


@pytest.mark.parametrize("url", ["http://h:port/x.mp4", "http:///x.mp4", "http://[::1/x.mp4", "https://h:99999/x"])
def test_what_is_not_a_url_is_one_sentence(url: str, tmp_path: Path) -> None:
    code, detail, _ = fetch_refused(url, tmp_path)
    assert code == ErrorCode.SOURCE_UNREADABLE
    assert "not a URL" in detail


@pytest.mark.parametrize(
    ("status", "location", "message"),
    [
        (404, None, "the server answers 404 Not Found"),
        (403, None, "the server answers 403 Forbidden; the URL may need a login"),
        (451, None, "the server answers 451 Unavailable"),
        (302, "/list.csv", "the server redirects in a circle"),
    ],
)
def test_a_manifest_that_the_server_refuses_is_one_sentence(
    site: str, status: int, location: str | None, message: str
) -> None:
    Site.answers["/list.csv"] = (status, location)
    with pytest.raises(UsageError, match=f"the manifest {site}/list.csv cannot be read: {message}"):
        list(expand_sources([f"{site}/list.csv"]))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tls") / "both.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(
        ["openssl", "req", *options, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True
    )
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


def test_a_certificate_that_nobody_vouches_for_is_one_sentence(certificate: Path, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serve(Site, tls=context) as port:
        code, detail, _ = fetch_refused(f"https://127.0.0.1:{port}/a.mp4", tmp_path)
    assert code == ErrorCode.SOURCE_UNREADABLE
    assert detail.endswith(": the server's certificate is not valid: self-signed certificate")


def test_a_server_that_speaks_no_tls_is_one_sentence(site: str, tmp_path: Path) -> None:
    code, detail, _ = fetch_refused(site.replace("http", "https") + "/a.mp4", tmp_path)
    assert code == ErrorCode.SOURCE_UNREADABLE
    assert "no secure connection to the server: " in detail
