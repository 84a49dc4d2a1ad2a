"""`rillm chat` through a pipe and in a terminal; `rillm serve` from start to signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
import random_gguf
from tiny import RILLM, SECONDS, Terminal, environment, rillm, write_tiny

from rillm import LLM, SamplingParams
from rillm.core import load_core
from rillm.gguf import GGMLType

GREEDY = ("--temp", "0", "-t", "1")
QUESTIONS = ("My name is Anna.", "What is my name?")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for a million tokens."""
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_gguf, "CONTEXT", 1 << 20)
        return random_gguf.write_random_glm(path, load_core(), GGMLType.Q8_0)


def conversation(tiny: Path, *questions: str) -> list[dict[str, str]]:
    """What the Python API makes of the same questions."""
    messages: list[dict[str, str]] = []
    with LLM(tiny, num_threads=1) as llm:
        for question in questions:
            messages.append({"role": "user", "content": question})
            text = llm.chat(messages, SamplingParams(temperature=0.0)).text
            messages.append({"role": "assistant", "content": text})
    return messages


def test_two_turns_through_a_pipe(tiny: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk[1].json"
    lines = [QUESTIONS[0], "", QUESTIONS[1], f"/save {saved}", "/stats"]
    run = rillm("chat", "-m", tiny, *GREEDY, input="\n".join(lines))
    assert run.returncode == 0, run.stderr
    expected = conversation(tiny, *QUESTIONS)
    assert run.stdout == f"{expected[1]['content']}\n{expected[3]['content']}\n"
    assert json.loads(saved.read_text(encoding="utf-8")) == expected
    assert f"(saved 4 messages to {saved})" in run.stderr
    # The second prompt begins with the first one and its answer, which need no computing again.
    found = re.search(r"prompt (\d+) tokens \(\+(\d+) cached\) at [\d.]+/s, answer", run.stderr)
    assert found is not None, run.stderr
    assert int(found[2]) >= 16
    assert list(tmp_path.iterdir()) == [saved]


def test_commands_through_a_pipe(tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    lines = [
        "/stats", "/help", "Hello", "/reset", f"/save {first}",
        "/system Answer in Chinese.", "What is \\", "RISC-V?", f"/save {second}",
        "/reset", f"/load {second}", f"/save {first}", "/exit", "not reached",
    ]  # fmt: skip
    run = rillm("chat", "-m", tiny, *GREEDY, input="\n".join(lines))
    assert run.returncode == 0
    assert "(no answer has ended yet)" in run.stderr
    assert all(f"/{name}" in run.stderr for name in ("system", "reset", "save", "load", "stats"))
    assert "(saved 0 messages" in run.stderr
    assert "(loaded 3 messages)" in run.stderr
    assert len(run.stdout.splitlines()) == 2
    messages = json.loads(second.read_text(encoding="utf-8"))
    assert messages[0] == {"role": "system", "content": "Answer in Chinese."}
    assert messages[1] == {"role": "user", "content": "What is \nRISC-V?"}
    assert json.loads(first.read_text(encoding="utf-8")) == messages


def test_a_failed_command_is_told_and_the_talk_goes_on(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no JSON")
    (tmp_path / "list").write_text('[{"role": "user"}]')
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    lines = ["/load text", "/load list", "/load bytes", "/load nothing", "/load", "/save",
             f"/save {tmp_path}/no/folder", "/nonsense", "hello " * 3000, "Hello"]  # fmt: skip
    run = rillm("chat", "-m", tiny, *GREEDY, input="\n".join(lines), cwd=tmp_path)
    assert run.returncode == 0
    messages = run.stderr.splitlines()
    assert messages[:8] == [
        "error: text: not a JSON file",
        "error: list: not a list of messages with role and content",
        "error: bytes: not a JSON file",
        "error: nothing: cannot read: No such file or directory",
        "/load needs the name of a file",
        "/save needs the name of a file",
        f"error: {tmp_path}/no/folder: cannot write: No such file or directory",
        "no such command: /nonsense (/help lists them)",
    ]
    assert "context size (2048 tokens)" in messages[8]
    assert run.stdout == conversation(tiny, "Hello")[1]["content"] + "\n"


def test_system_prompt_option(tiny: Path, tmp_path: Path) -> None:
    lines = ["Hello", "/reset", "/save saved"]
    run = rillm("chat", "-m", tiny, "--system", "Be brief.", input="\n".join(lines), cwd=tmp_path)
    assert run.returncode == 0
    saved = json.loads((tmp_path / "saved").read_text(encoding="utf-8"))
    assert saved == [{"role": "system", "content": "Be brief."}]


def test_two_turns_in_a_terminal(tiny: Path, tmp_path: Path) -> None:
    expected = conversation(tiny, *QUESTIONS)
    with Terminal("chat", "-m", tiny, *GREEDY) as terminal:
        terminal.expect(r"glm-tiny.gguf, context 2048 tokens. /help for commands.")
        for index, question in enumerate(QUESTIONS):
            terminal.expect("> $")
            terminal.send(question + "\n")
            terminal.expect(re.escape(expected[2 * index + 1]["content"]))
        terminal.expect("> $")
        terminal.send(f"/save {tmp_path}/saved\n")
        terminal.expect("saved 4 messages")
        terminal.expect("> $")
        terminal.send("\x04")  # Ctrl-D
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.shown
    assert json.loads((tmp_path / "saved").read_text(encoding="utf-8")) == expected


def test_ctrl_c_stops_the_answer_and_not_the_program(endless: Path, tmp_path: Path) -> None:
    with Terminal("chat", "-m", endless, "-c", 100_000, *GREEDY) as terminal:
        for turn in range(2):
            terminal.expect("> $")
            terminal.send("go on\n")
            terminal.expect(r"go on\r\n(.|\n)+")
            terminal.send("\x03")
            terminal.expect(r"\[stopped\]")
            terminal.expect("> $")
            terminal.send(f"/save {tmp_path}/{turn}\n")
            terminal.expect(f"saved {2 * turn + 2} messages")
        terminal.expect("> $")
        terminal.send("half a line")
        terminal.expect("half a line$")  # input() may miss a Ctrl-C before it waits for keys
        terminal.send("\x03")  # Ctrl-C at the prompt drops the line
        terminal.expect("> $")
        terminal.send("/stats\n")
        terminal.expect(r"\(no answer has ended yet\)")
        terminal.expect("> $")
        terminal.send("/exit\n")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.shown
    (_, first), (_, second) = (
        [message["content"] for message in json.loads((tmp_path / turn).read_text())[-2:]]
        for turn in "01"
    )
    assert first  # what was said before Ctrl-C stays in the conversation
    assert second


def test_ctrl_c_ends_run(endless: Path) -> None:
    with Terminal("run", "-m", endless, "-n", -1, "-c", 100_000, *GREEDY, "hello") as terminal:
        terminal.expect("(.|\n){20}")
        terminal.send("\x03")
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_and_stops(number: signal.Signals, tiny: Path) -> None:
    command = [*RILLM, "serve", "-m", str(tiny), "--port", "0", "--ctx_size", "256", "-t", "1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, encoding="utf-8", env=environment(LLAMA_ARG_N_PREDICT="7")
    ) as process:
        try:
            assert process.stderr is not None
            log = ""
            while (found := re.search(r"ready on (http://\S+)", log)) is None:
                line = process.stderr.readline()
                assert line, log
                log += line
            prompt = "[gMASK]<sop>Once upon a time"
            body = json.dumps({"prompt": prompt, "temperature": 0}).encode()
            with urllib.request.urlopen(f"{found[1]}/completion", body, SECONDS) as reply:
                answer = json.load(reply)
            with urllib.request.urlopen(f"{found[1]}/props", timeout=SECONDS) as reply:
                props = json.load(reply)
            os.kill(process.pid, number)
            rest = process.stderr.read()
            assert process.wait(SECONDS) == 0, rest
        finally:
            process.kill()
    assert answer["tokens_predicted"] == 7  # the environment's -n
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert "Traceback" not in rest
    with LLM(tiny, num_threads=1) as llm:
        (expected,) = llm.generate(prompt, SamplingParams(temperature=0.0), n_predict=7)
    assert answer["content"] == expected.text
