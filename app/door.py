"""The door of the dashboard: whose requests are answered, and what a page in a visitor's browser may load.

A request passes if it names this server as its host (a page of a stranger's that turns its own name into our address
does not) and comes from a page of this server (another site's page in the same browser does not). Whatever a file of
results may hold, the browser loads nothing from elsewhere and sends nothing there.
"""

import hashlib
import ipaddress
import socket
import sys
from collections import OrderedDict
from pathlib import Path
from urllib.parse import urlsplit

import plotly
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose
from streamlit import config

from app.demo import EVERYWHERE, OWN

ASSETS, PLOTLY = "assets", "plotly.min.js"
FOR_EVER = {"Cache-Control": "public, max-age=31536000, immutable"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def say_who_may_look() -> None:
    """A warning where others than this machine may; nothing is served where nobody said who."""
    address = config.get_option("server.address")
    if not address:
        sys.exit(
            "the dashboard's settings (.streamlit/config.toml beside app/main.py) are missing, so that everybody could "
            "look; restore them or name --server.address"
        )
    if address not in OWN:
        name = socket.gethostname() if address in EVERYWHERE else address
        print(
            f"warning: at http://{name}:{config.get_option('server.port')} everybody who reaches this machine can look "
            "at the runs, run their models and open the data they name; there is no password (-- --data-root DIR "
            "bounds the data)",
            file=sys.stderr,
        )


def is_ours(host: str | None) -> bool:
    """Whether a request's Host header names this server: as this machine itself, by a number that others may use too
    where it listens for others, or by a name that the settings know.
    """
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    address = config.get_option("server.address")
    told = {address, config.get_option("browser.serverAddress"), *config.get_option("server.allowedHosts")}
    if address not in OWN:
        told.add(socket.gethostname().lower())
    return name in told or name in OWN or (address not in OWN and is_number(name))


def is_number(host: str | None) -> bool:
    """Whether a host is an address of four numbers, or of IPv6, which no stranger's name can be turned into."""
    try:
        return bool(ipaddress.ip_address(host or ""))
    except ValueError:
        return False


def is_from_here(origin: str | None, host: str) -> bool:
    """Whether the page that asks is one of this server's, or of one that the settings allow."""
    return origin is None or urlsplit(origin).netloc == host or origin in config.get_option("server.corsAllowedOrigins")


class Door:
    """Refuses what is not asked by a page of this server, and sends `HEADERS` with every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers, is_web = Headers(scope=scope), scope["type"] == "http"
        host = headers.get("host")
        if not (is_ours(host) and is_from_here(headers.get("origin"), host)):
            refusal = PlainTextResponse("This server is not asked by that name or from there.\n", 403)
            return await (refusal if is_web else WebSocketClose(1008))(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        return await self.app(scope, receive, with_headers)


# What a browser asks for once, however often a page is drawn

KEPT = 32  # contents, of a few MB each
_kept: OrderedDict[str, str] = OrderedDict()


def serve(content: str, suffix: str) -> str:
    """Keeps a page or a script for browsers to fetch; its name beside the page's address and beside its like."""
    name = f"{hashlib.sha256(content.encode()).hexdigest()[:32]}{suffix}"
    _kept[name] = content
    _kept.move_to_end(name)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return name


async def asset(request: Request) -> Response:
    """Plotly's library, or what `serve` keeps."""
    name = request.path_params["name"]
    if name == PLOTLY:
        return FileResponse(Path(plotly.__file__).parent / "package_data" / PLOTLY, headers=FOR_EVER)
    content = _kept.get(name)
    if content is None:
        return PlainTextResponse("This is no longer kept; load the page anew.\n", 404)
    kind = "text/html" if name.endswith(".html") else "text/javascript"
    return Response(content, media_type=kind, headers=FOR_EVER)


MIDDLEWARE = Middleware(Door)
ROUTES = [Route(f"/{ASSETS}/{{name}}", asset)]
