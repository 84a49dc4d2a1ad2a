"""The HTTP server: llama-server's interface, and OpenAI's and Anthropic's on top of it.

    run.py            the process: port, loading, signals
    app.py            the route table
    config.py         everything that can be set
    gate.py           before every route: CORS, readiness, keys, the access log
    connection.py     limits for clients that send or read too slowly
    service.py        a loaded model, and what is running on it
    models_pool.py    several of them: loaded when asked for, unloaded when room is needed
    schema.py         the fields of requests, checked
    jobs.py           from a request to running sequences and their results
    chat_task.py      the same for chats: template, tools, thinking, constraints
    grammar.py        structured output
    sse.py            streams of events; what a client's leaving does
    errors.py         failures as the JSON that clients of llama-server expect
    ui/               the web page

One file for each family of endpoints; a handler takes Starlette's Request and returns a response.
"""

from __future__ import annotations

from rillm.server.config import ServerConfig
from rillm.server.run import serve

__all__ = ["ServerConfig", "serve"]
