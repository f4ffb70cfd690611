"""Who is answered, what a browser may load, which settings hold, and what an upload may be."""

import socket
import struct
import tomllib
import zlib
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from streamlit import config

from app import door, live, results
from app.text import text
from models.errors import InputError

SETTINGS = Path(door.__file__).parent / ".streamlit" / "config.toml"


@pytest.fixture
def listening(monkeypatch):
    """A server behind the door that listens at an address, as asked by a name and from a page."""

    async def answer(request):
        return PlainTextResponse("hello")

    async def stream(websocket):
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    routes = [Route("/", answer), WebSocketRoute("/stream", stream), *door.ROUTES]
    server = Starlette(routes=routes, middleware=[door.MIDDLEWARE])

    def at(address: str, host: str, origin: str | None = None) -> TestClient:
        settings = {"server.address": address, "browser.serverAddress": "localhost"}
        settings |= {"server.allowedHosts": ["lab.example"], "server.corsAllowedOrigins": []}
        monkeypatch.setattr(config, "get_option", settings.__getitem__)
        return TestClient(server, headers={"host": host} | ({"origin": origin} if origin else {}))

    return at


OPEN = [
    ("localhost", "localhost:8501", None),
    ("localhost", "127.0.0.1:8501", "http://127.0.0.1:8501"),
    ("localhost", "[::1]:8501", None),
    ("localhost", "lab.example", "https://lab.example"),
    ("0.0.0.0", "192.168.1.5:8501", "http://192.168.1.5:8501"),
    ("0.0.0.0", socket.gethostname().lower(), None),
]
SHUT = [
    ("localhost", "evil.example", None),
    ("localhost", "evil.example", "http://evil.example"),
    ("localhost", "localhost:8501", "http://evil.example"),
    ("localhost", "localhost:8501", "null"),
    ("localhost", "192.168.1.5:8501", None),
    ("0.0.0.0", "evil.example", "http://evil.example"),
    ("localhost", "localhost.evil.example", None),
    ("localhost", "[::1", None),
    ("localhost", "", None),
]


@pytest.mark.parametrize(("address", "host", "origin"), OPEN)
def test_who_names_this_server_from_one_of_its_pages_is_answered(listening, address, host, origin):
    client = listening(address, host, origin)
    answer = client.get("/")
    assert answer.text == "hello" and "default-src 'self'" in answer.headers["content-security-policy"]
    with client.websocket_connect("/stream", headers=dict(client.headers)) as stream:
        assert stream.receive_text() == "hello"


@pytest.mark.parametrize(("address", "host", "origin"), SHUT)
def test_a_forged_host_or_origin_is_refused(listening, address, host, origin):
    client = listening(address, host, origin)
    assert client.get("/").status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/stream", headers=dict(client.headers)):
        pass


def test_what_is_served_is_fetched_once_and_old_contents_go(listening):
    client = listening("localhost", "localhost")
    name = door.serve("<p>first</p>", ".html")
    answer = client.get(f"/{door.ASSETS}/{name}")
    assert answer.text == "<p>first</p>" and "immutable" in answer.headers["cache-control"]
    assert door.serve("<p>first</p>", ".html") == name
    for i in range(door.KEPT):
        door.serve(str(i), ".js")
    assert client.get(f"/{door.ASSETS}/{name}").status_code == 404
    assert client.get(f"/{door.ASSETS}/{door.PLOTLY}").status_code == 200
    assert client.get(f"/{door.ASSETS}/..%2Fmain.py").status_code == 404


def test_the_settings_lie_beside_the_script_and_go_into_the_wheel():
    settings = tomllib.loads(SETTINGS.read_text())
    assert settings["server"]["address"] == "localhost" and settings["server"]["maxUploadSize"] == 20
    assert settings["server"]["enableCORS"] and settings["server"]["enableXsrfProtection"]
    assert settings["browser"] == {"gatherUsageStats": False, "serverAddress": "localhost"}
    assert settings["client"] == {"showErrorDetails": "none", "showErrorLinks": False, "toolbarMode": "viewer"}
    project = tomllib.loads((SETTINGS.parents[2] / "pyproject.toml").read_text())
    assert ".streamlit/config.toml" in project["tool"]["setuptools"]["package-data"]["app"]


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5"])
def test_a_server_for_others_says_so(address, monkeypatch, capsys):
    monkeypatch.setattr(config, "get_option", {"server.address": address, "server.port": 8501}.get)
    door.say_who_may_look()
    assert "no password" in capsys.readouterr().err


def test_without_its_settings_nothing_is_served(monkeypatch):
    monkeypatch.setattr(config, "get_option", {}.get)
    with pytest.raises(SystemExit, match="everybody could look"):
        door.say_who_may_look()


# Uploads


def png(width: int, height: int) -> bytes:
    """A PNG of one row that claims to be this large."""

    def part(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0" * 10)) + part(b"IEND", b"")


@pytest.mark.parametrize("size", [(6400, 6400), (60000, 60000)])
def test_an_upload_of_too_many_pixels_is_refused_by_its_header(size):
    with pytest.raises(InputError, match="cannot be read as an image"):
        live.refuse_large(png(*size), "mine.png")


def test_an_upload_of_another_format_is_not_opened():
    with pytest.raises(InputError, match="none of PNG"):
        live.refuse_large(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "mine.png")


# Data that a checkpoint names


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The dashboard as started with a folder of data; the visitor has clicked on nothing."""
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "out").symlink_to("/etc")
    asked = {}
    monkeypatch.setattr(live.st, "session_state", asked)

    def with_root(name: str | None) -> Path:
        words = [] if name is None else ["--data-root", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", ["navigation.py", *words])
        return tmp_path / "data"

    return with_root


@pytest.mark.parametrize(
    "spec", ["hfds/someone/set", "folder:/etc", "torch/imagenet", "wds/a:/b", "shapesx", "shapes/x"]
)
def test_only_the_embedded_data_open_by_themselves(spec, started):
    started(None)
    assert live.may_open("shapes") and live.may_open("shapes-easy:100")
    assert not live.may_open(spec)
    live.ask_for(spec)
    assert live.may_open(spec) and not live.may_open("folder:/home")


def test_with_a_root_only_what_lies_below_it_is_opened_without_asking(started):
    data = started("data")
    assert live.may_open("shapes") and live.may_open(f"folder:{data}/mine")
    others = [
        f"folder:{data}/out",
        f"folder:{data}/../x",
        "hfds/someone/set",
        f"imagenet-s:{data}/mine@/etc",
        "folder:",
    ]
    for spec in others:
        live.ask_for(spec)
        with pytest.raises(InputError, match="--data-root"):
            live.may_open(spec)


def test_folders_of_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["navigation.py", "--runs", "a", "--data-root", "b"])
    assert results.root() == Path("a") and results.folders().data_root == Path("b")


# Text


@pytest.mark.parametrize(
    "value", ["![x](http://a/b.png)", "a_b", "<img src=x>", "$x$", "`c`", "**b**", ":red[x]", "# h"]
)
def test_text_is_markdown_that_shows_it_word_for_word(value):
    markdown = pytest.importorskip("markdown_it").MarkdownIt()
    tokens = markdown.parse(text(value))
    inline = [child for token in tokens for child in token.children or ()]
    assert "".join(child.content for child in inline) == value
    assert {child.type for child in inline} <= {"text", "text_special"} and tokens[0].type == "paragraph_open"


def test_long_text_is_cut():
    assert len(text("x" * 10**6)) < 1100
