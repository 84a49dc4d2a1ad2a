"""/infill, with a random model whose vocabulary has the tokens for it; /rerank, which none has."""

from __future__ import annotations

import pytest
from conftest import running
from fake_model import FIRST_SPECIAL, SPECIALS
from random_gguf import write_random_glm

from rillm.core import load_core
from rillm.gguf import GGMLType
from rillm.server.config import ServerConfig

FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
PRE, SUF, MID = (FIRST_SPECIAL + len(SPECIALS) + i for i in range(3))


@pytest.fixture(scope="module", params=["spelled", "keys", "with files"])
def coder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("fim") / "fim.gguf"
    names = FIM if request.param == "spelled" else ["<x>", "<y>", "<z>"]
    keys = {}
    if request.param != "spelled":
        keys = {
            f"tokenizer.ggml.fim_{name}_token_id": token
            for name, token in (("pre", PRE), ("suf", SUF), ("mid", MID))
        }
    if request.param == "with files":
        names = [*names, "<|repo_name|>", "<|file_sep|>"]
    write_random_glm(path, load_core(), GGMLType.F16, specials=names, metadata=keys)
    config = ServerConfig(
        path, port=0, num_threads=1, parallel=2, context_length=200, access_log=False
    )
    with running(config) as server:
        yield request.param, server


def prompt_of(server, **fields):
    """The prompt's token ids, as bytes and the three marks."""
    reply = server.post("/infill", {"n_predict": 1, "temperature": 0, **fields})
    (slot,) = [slot for slot in server.service.slots.slots if slot.last is not None][-1:]
    assert reply["tokens_evaluated"] == slot.last.num_prompt_tokens
    marks = {PRE: "[PRE]", SUF: "[SUF]", MID: "[MID]", MID + 1: "[REPO]", MID + 2: "[FILE]"}
    ids = slot.last.token_ids[: slot.last.num_prompt_tokens]
    return "".join(chr(token) if token < 256 else marks[token] for token in ids)


def test_the_parts_are_put_together(coder):
    _, server = coder
    fields = {"input_prefix": "def f():\n", "input_suffix": "\nprint(1)", "prompt": "  retu"}
    assert prompt_of(server, **fields) == "[PRE]def f():\n  retu[SUF]\nprint(1)[MID]"
    # What a text spells is no mark.
    text = prompt_of(server, input_prefix="<|fim_suffix|>", input_suffix="")
    assert text == "[PRE]<|fim_suffix|>[SUF][MID]"


def test_other_files_come_first(coder):
    name, server = coder
    text = prompt_of(
        server, input_prefix="a", input_suffix="b", input_extra=[{"filename": "f.py", "text": "x"}]
    )
    if name == "with files":
        assert text == "[REPO]myproject\n[FILE]f.py\nx[FILE]filename\n[PRE]a[SUF]b[MID]"
    else:
        assert text == "\n\n--- snippet ---\n\nx[PRE]a[SUF]b[MID]"


def test_long_texts_are_cut_at_the_far_ends(coder):
    _, server = coder
    prefix, suffix = "p" * 500 + "NEAR", "NEAR" + "s" * 500
    extra = [{"text": "z" * 1000}]
    text = prompt_of(server, input_prefix=prefix, input_suffix=suffix, input_extra=extra)
    before, after = text.replace("[MID]", "").removeprefix("[PRE]").split("[SUF]")
    assert before.endswith("pppNEAR")
    assert after.startswith("NEARsss")
    assert 2.5 < len(before) / len(after) < 3.5
    assert 180 < len(before) + len(after) < 200
    error = server.post("/infill", {"prompt": "x" * 300}, 400)["error"]
    assert "prompt" in error["message"]


def test_it_takes_the_parameters_of_completion(coder):
    _, server = coder
    body = {"input_prefix": "a", "input_suffix": "b", "n_predict": 4, "ignore_eos": True}
    reply = server.post("/infill", {**body, "return_tokens": True})
    assert len(reply["tokens"]) == 4
    events = server.stream("/infill", body)
    assert events[-1]["stop"] is True
    server.post("/infill", {**body, "input_extra": [{"text": 5}]}, 400)
    server.post("/infill", {**body, "temperature": "x"}, 400)


def test_models_without_the_tokens(server):
    error = server.post("/infill", {"input_prefix": "a", "input_suffix": "b"}, 501)["error"]
    assert error["type"] == "not_supported_error"
    assert "prefix token is missing" in error["message"]


def test_no_architecture_here_can_rerank(server):
    for path in ("/rerank", "/v1/rerank"):
        error = server.post(path, {"query": "a", "documents": ["b"]}, 501)["error"]
        assert error["type"] == "not_supported_error"
