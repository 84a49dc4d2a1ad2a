"""GET / and /ui/NAME: the web page, plain files of this package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.errors import ApiError

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, no script in the page itself: what a model writes cannot run.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {"Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}


@cache
def page_files() -> dict[str, bytes]:
    """The files by the path they are served under."""
    folder = files("rillm.server").joinpath("ui")
    found = {
        f"/ui/{item.name}": item.read_bytes()
        for item in folder.iterdir()
        if item.name.rpartition(".")[2] in _TYPES
    }
    found["/"] = found.pop("/ui/index.html")
    return found


async def page(request: Request) -> Response:
    """One file."""
    data = page_files().get(request.url.path)
    if data is None or not request.app.state.server.config.ui:
        raise ApiError(404, "File Not Found")
    kind = request.url.path.rpartition(".")[2] if request.url.path != "/" else "html"
    headers = {**PAGE_HEADERS, "Content-Security-Policy": _POLICY}
    return Response(data, media_type=_TYPES[kind], headers=headers)
