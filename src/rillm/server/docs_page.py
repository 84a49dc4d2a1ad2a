"""GET /docs: the interface as a page, written from the same description as /openapi.json.

Plain HTML without scripts and without anything from elsewhere, so it works on a board that has no
network but the cable to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.server.page import PAGE_HEADERS

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
details { border: 1px solid #8884; border-radius: 6px; margin: .4rem 0; padding: .3rem .7rem }
summary { cursor: pointer } code { font-family: ui-monospace, monospace }
table { border-collapse: collapse; margin: .5rem 0; width: 100% }
td, th { border-top: 1px solid #8884; padding: .15rem .6rem; text-align: left; vertical-align: top }
"""


async def docs(request: Request) -> Response:
    """This interface as a page."""
    document = request.app.state.openapi
    # The one style sheet is in the page; nothing else may be loaded or run.
    headers = {
        **PAGE_HEADERS,
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    }
    return Response("".join(_page(document)), media_type="text/html", headers=headers)


def _page(document: dict[str, Any]) -> Iterator[str]:
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
    yield '<p>The same for programs: <a href="openapi.json">openapi.json</a>. Unknown fields are '
    yield "ignored, null is absent. Errors are <code>{&quot;error&quot;: {&quot;code&quot;, "
    yield "&quot;message&quot;, &quot;type&quot;}}</code>.</p>"
    schemas = document["components"]["schemas"]
    for tag in ("native", "OpenAI", "Anthropic"):
        yield f"<h2>{tag}</h2>"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag in operation["tags"]:
                    yield from _operation(method, path, operation, schemas)
    yield "<h2>Fields</h2>"
    for name, schema in schemas.items():
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3>'
        yield f"<p>{escape(schema.get('description', ''))}</p>{_table(schema)}"
    yield "</body></html>"


def _operation(
    method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]
) -> Iterator[str]:
    yield f"<details><summary><code>{method.upper()} {escape(path)}</code> "
    yield f"{escape(operation['summary'])}</summary>"
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        values = f": {' | '.join(schema['enum'])}" if "enum" in schema else ""
        yield f"<p><code>{escape(parameter['name'])}</code> in the {parameter['in']}"
        yield f"{escape(values)}</p>"
    body = operation.get("requestBody")
    if body is not None:
        schema = body["content"]["application/json"]["schema"]
        names = [part["$ref"].rpartition("/")[2] for part in schema.get("allOf", [schema])]
        links = ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names)
        yield f"<p>Body: {links}</p>{_table(schemas[names[0]])}"
    yield "</details>"


def _table(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in required else repr(field.get("default", ""))
        rows.append(
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}</td>"
            f"<td>{escape(default)}</td></tr>"
        )
    head = "<tr><th>field</th><th>type</th><th>default</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>" if rows else ""


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    kind = field.get("type", "any")
    return f"{kind} of {_type(field['items'])}" if kind == "array" and "items" in field else kind
