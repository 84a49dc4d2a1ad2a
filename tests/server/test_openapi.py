"""The description of the interface, and a tool that asks everything it allows and forbids."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import running, tiny_config

from rillm.server.app import ROUTES

# Replies of 501 are what these are for, with the models that there are.
NOT_HERE = "^/(v1/)?(infill|rerank|reranking|props|models/load|models/unload)$"


def test_every_route_is_described(server):
    document = server.get("/openapi.json")
    described = {
        (method.upper(), path) for path in document["paths"] for method in document["paths"][path]
    }
    assert described == {(route.method, path) for route in ROUTES for path in route.paths}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"].endswith("."), path


def test_every_reference_is_there(server):
    document = server.get("/openapi.json")
    found = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert found == set(document["components"]["schemas"])


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.links, self.ids, self.open = "", [], set(), []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(name.startswith("on") for name in values)
        self.ids.add(values.get("id"))
        if tag == "a":
            self.links.append(values["href"])
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_no_network(server, start_server):
    reply = server.client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    page = Page()
    page.feed(reply.text)
    assert not page.open
    for route in ROUTES:
        for path in route.paths:
            assert f"{route.method} {path} " in page.text
    for link in page.links:
        assert link == "openapi.json" or link[1:] in page.ids
    assert "http" not in reply.text.replace("httpx", "")
    for name in ("dry_multiplier", "input_prefix", "encoding_format", "max_tokens"):
        assert name in page.text
    locked = start_server(api_keys=("k",))
    assert locked.client.get("/docs").status_code == 401


@pytest.mark.timeout(600)
def test_schemathesis_finds_no_server_error(model_path, tmp_path):
    """Seeded; more with RILLM_SCHEMATHESIS=EXAMPLES (an operation)."""
    config = tiny_config(
        model_path, alias="tiny", n_predict=2, max_n_predict=2, max_choices=4, metrics=True,
        embeddings=True, pooling="mean", slot_save_path=tmp_path, chat_template="glm-4-9b-chat",
    )  # fmt: skip
    with running(config) as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json",
            "--checks", "not_a_server_error", "--exclude-path-regex", NOT_HERE, "--seed", "4",
            "--phases", "examples,coverage,fuzzing", "--warnings", "off", "--no-color",
            "--max-examples", os.environ.get("RILLM_SCHEMATHESIS", "6"), "--no-shrink",
            "--generation-database", "none", "--continue-on-failure",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=550)
        report = done.stdout + done.stderr
        assert done.returncode == 0, report[-6000:]
        assert server.get("/health") == {"status": "ok"}
        assert server.service.slots.num_busy == 0
