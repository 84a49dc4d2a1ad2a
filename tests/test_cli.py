"""The command line: help, errors and exit codes of all commands; run, convert, quantize, inspect,
bench. (chat and serve are in test_cli_chat.py.)
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny import RILLM, SECONDS, Terminal, environment, rillm, write_tiny

from rillm import LLM, SamplingParams, __version__
from rillm.cli.app import COMMANDS
from rillm.data import glm_tiny_path
from rillm.gguf import GGMLType, GGUFReader
from rillm.prepare.quantize import plan_quantize

GREEDY = ("--temp", "0", "-t", "1")
QUESTION = "What is RISC-V?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def answer(tiny: Path) -> str:
    with LLM(tiny, num_threads=1) as llm:
        return llm.chat(QUESTION, SamplingParams(temperature=0.0)).text


# ---- help and errors -------------------------------------------------------------------------


def test_help_lists_the_commands() -> None:
    run = rillm("--help")
    assert run.returncode == 0
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line.split()[0])} ", run.stdout, re.M), name
    assert "Example: rillm " in run.stdout
    assert rillm().stdout == rillm("-h").stdout == run.stdout
    assert rillm("--version").stdout == f"rillm {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str) -> None:
    run = rillm(name, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(rf"Examples?:\n +rillm {name}\b", run.stdout), run.stdout
    assert max(map(len, run.stdout.splitlines())) <= 100


def test_help_is_light() -> None:
    code = (
        "import sys; from rillm.cli.app import run; run(['--help']); "
        "print(sorted({'numpy', 'regex', 'fastapi', 'rillm.core'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("\n[]\n")


@pytest.mark.parametrize(("module", "has_jinja2"), [("rillm.llm", False), ("rillm.server", True)])
def test_jinja2_is_imported_when_a_server_starts_and_not_before_an_engine(
    module: str, has_jinja2: bool
) -> None:
    code = f"import sys, {module}; print('jinja2' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == f"{has_jinja2}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["run"], "--model"),
        (["run", "-m", "TINY"], "prompt"),
        (["run", "-m", "TINY", "one", "-p", "two"], "prompt"),
        (["run", "-m", "TINY", "hello", "--nonsense"], "--nonsense"),
        (["run", "-m", "TINY", "hello", "-n", "many"], "--predict"),
        (["run", "-m", "TINY", "hello", "-t", "0"], "--threads"),
        (["chat"], "--model"),
        (["serve"], "--model"),
        (["serve", "-m", "TINY", "-ctk", "f16", "-ctv", "q8_0"], "-ctk"),
        (["convert"], "checkpoint"),
        (["quantize", "TINY"], "TYPE"),
        (["quantize", "TINY", "a", "b", "Q8_0"], "SOURCE"),
        (["quantize", "TINY", "Q8_0", "--tensor-type", "attn_v"], "--tensor-type"),
        (["inspect"], "path"),
        (["bench"], "--dummy"),
        (["bench", "-m", "TINY", "-p", "x"], "-p"),
        (["bench", "TINY", "-t", "0"], "--threads"),
        (["bench", "TINY", "--plot", "roof.jpg"], "--plot"),
        (["bench", "TINY", "-ctk", "q4_0"], "-ctk"),
    ],
)
def test_wrong_arguments(arguments: list[str], named: str, tiny: Path) -> None:
    run = rillm(*(str(tiny) if argument == "TINY" else argument for argument in arguments))
    assert (run.returncode, run.stdout) == (2, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert " --help)" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "-m", "FILE", "hello"],
        ["chat", "-m", "FILE"],
        ["quantize", "FILE", "Q8_0"],
        ["inspect", "FILE"],
        ["bench", "-m", "FILE"],
        ["convert", "FILE"],
        ["serve", "--port", "0", "-m", "FILE"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("kind", ["nothing", "text", "half", "folder"])
def test_bad_file(arguments: list[str], kind: str, tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "[bad] file.gguf"
    if kind == "text":
        bad.write_text("this is no model")
    elif kind == "half":
        bad.write_bytes(tiny.read_bytes()[: 1 << 20])
    elif kind == "folder":
        bad.mkdir()
    run = rillm(*(str(bad) if argument == "FILE" else argument for argument in arguments))
    assert (run.returncode, run.stdout) == (1, "")
    *others, line = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(bad) in line
    # A server opens its port before it looks at the file.
    assert [text.split(":")[0] for text in others] == ["rillm"] * (arguments[0] == "serve")


def test_bad_values(tiny: Path) -> None:
    for flags, named in (
        (["--top-p", "3"], "top_p"),
        (["-ctk", "q3_k"], "q3_k"),
        (["-c", "4", "-n", "1"], "context"),
    ):
        run = rillm("run", "-m", tiny, *flags, "a question of more than four tokens")
        assert run.returncode == 1
        (line,) = run.stderr.splitlines()
        assert named in line
        assert line.startswith("error: ")


def test_a_board_without_the_workstation_packages(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(numpy=None, safetensors=None, huggingface_hub=None);"
        "from rillm.cli.app import run; sys.exit(run(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "convert", glm_tiny_path(), tmp_path / "x.gguf"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == "error: convert needs numpy: pip install 'rillm[prepare]'\n"


def test_colour_only_in_a_terminal(tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    assert "\x1b" not in rillm("inspect", missing, env={"TERM": "xterm-256color"}).stderr
    for changes, has_colour in (({}, True), ({"NO_COLOR": "1"}, False)):
        with Terminal("inspect", missing, TERM="xterm-256color", **changes) as terminal:
            assert terminal.wait() == 1
            assert ("\x1b[1;31m" in terminal.shown) == has_colour
            assert "none.gguf: cannot open" in terminal.shown


@pytest.mark.parametrize("num_bytes", [0, 1])
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--json", "TINY"],
                                       ["run", "-m", "TINY", "-t", "1", "hello"]])  # fmt: skip
def test_reader_that_goes_away(arguments: list[str], num_bytes: int, tiny: Path) -> None:
    """As in `rillm ... | head`."""
    command = [*RILLM, *(str(tiny) if argument == "TINY" else argument for argument in arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(num_bytes)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(SECONDS) in (0, 1)


# ---- run -------------------------------------------------------------------------------------


def test_run_takes_the_prompt_from_everywhere(tiny: Path, answer: str) -> None:
    expected = (0, f"{answer}\n", "")
    assert len(answer) > 10
    for arguments, text in (
        ([QUESTION], None),
        (["-p", QUESTION], None),
        (["--prompt", QUESTION], None),
        (["-"], QUESTION),
        (["-p", "-"], QUESTION),
    ):
        run = rillm("run", "-m", tiny, *GREEDY, *arguments, input=text)
        assert (run.returncode, run.stdout, run.stderr) == expected


def test_run_system_raw_and_stats(tiny: Path) -> None:
    messages = [
        {"role": "system", "content": "Answer in Chinese."},
        {"role": "user", "content": QUESTION},
    ]
    with LLM(tiny, num_threads=1) as llm:
        greedy = SamplingParams(temperature=0.0)
        chinese = llm.chat(messages, greedy).text
        (raw,) = llm.generate("[gMASK]<sop>--the_cat", greedy, n_predict=9)
    run = rillm("run", "-m", tiny, *GREEDY, "--system", "Answer in Chinese.", QUESTION)
    assert run.stdout == chinese + "\n"
    # A value that looks like an option is a value; _ in a name of an option is -.
    flags = ["--raw", "--stats", "--n_predict", "9", "-p", "[gMASK]<sop>--the_cat"]
    run = rillm("run", "-m", tiny, *GREEDY, *flags)
    assert (run.returncode, run.stdout) == (0, raw.text + "\n")
    assert re.fullmatch(
        rf"prompt {raw.num_prompt_tokens} tokens at \d+\.\d/s, "
        rf"answer {len(raw.token_ids)} tokens at \d+\.\d/s\n",
        run.stderr,
    )


def test_run_with_a_seed_is_repeatable(tiny: Path) -> None:
    texts = [
        rillm("run", "-m", tiny, "--raw", "-t", "1", "-s", seed, "--temp", "2", "-n", "24", "Once")
        for seed in (1, 1, 2)
    ]
    assert texts[0].stdout == texts[1].stdout != texts[2].stdout


def test_any_text_in_any_locale(tiny: Path, answer: str) -> None:
    """What cannot be written or read costs a character and not the run."""
    latin = {"PYTHONIOENCODING": "latin-1"}
    run = rillm("run", "-m", tiny, *GREEDY, "你好！你是谁？", env=latin)
    assert run.returncode == 0
    assert "?" in run.stdout
    strict = environment(PYTHONIOENCODING="utf-8:strict")
    done = subprocess.run(
        [*RILLM, "run", "-m", tiny, *GREEDY, "-"], input=b"\xff\xfe hello \xc3", env=strict,
        capture_output=True, timeout=SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.strip()


# ---- files -----------------------------------------------------------------------------------


def test_convert(tmp_path: Path, tiny: Path) -> None:
    run = rillm("convert", glm_tiny_path(), cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    path = tmp_path / "glm-tiny.f16.gguf"
    assert path.read_bytes() == tiny.with_name("glm-tiny.f16.gguf").read_bytes()
    assert re.match(
        r"glm-tiny.f16.gguf: chatglm, 45 tensors, 3.8 M weights, [\d.]+ MiB", run.stdout
    )
    run = rillm("convert", glm_tiny_path(), "[x].gguf", "--outtype", "BF16", cwd=tmp_path)
    assert run.stdout.startswith("[x].gguf: ")
    with GGUFReader(tmp_path / "[x].gguf") as reader:
        assert reader.tensors["output.weight"].type is GGMLType.BF16
    run = rillm("convert", glm_tiny_path(), "y.gguf", "--outtype", "q5", cwd=tmp_path)
    assert run.returncode == 1
    assert re.match(r"error: .*'q5'.* f16", run.stderr)
    assert {file.name for file in tmp_path.iterdir()} == {"glm-tiny.f16.gguf", "[x].gguf"}


def test_quantize(tmp_path: Path, tiny: Path) -> None:
    source = tmp_path / "glm-tiny.f16.gguf"
    source.symlink_to(tiny.with_name("glm-tiny.f16.gguf"))
    changes = ["--tensor-type", r"blk\.0\.attn_output=Q4_0"]
    plan = plan_quantize(source, "Q4_K_M", tensor_types=[(r"blk\.0\.attn_output", "Q4_0")])
    planned = {tensor.name: tensor.type for tensor in plan.tensors}

    run = rillm("quantize", source, "q4_k_m", *changes, "--dry-run")
    assert (run.returncode, run.stderr) == (0, "")
    shown = re.findall(r"^(\S+) +\(.*?\) +\w+ -> (\w+)", run.stdout, re.M)
    assert shown == [(name, type_.name) for name, type_ in planned.items()]
    assert "runs in 0.13 GiB with a context of 1024 tokens; fits k1:4, k1:8" in rillm(
        "quantize", source, "q4_k_m", "--dry-run", "-c", "1024"
    ).stdout  # fmt: skip
    assert list(tmp_path.iterdir()) == [source]

    run = rillm("quantize", source, "q4_k_m", *changes, "-t", "1")
    assert (run.returncode, run.stderr) == (0, "")
    with GGUFReader(tmp_path / "glm-tiny.Q4_K_M.gguf") as reader:
        assert {name: tensor.type for name, tensor in reader.tensors.items()} == planned
        assert reader.tensors["blk.0.attn_output.weight"].type is GGMLType.Q4_0
    assert "bits per weight" in run.stdout

    run = rillm("quantize", source, tmp_path / "named.gguf", "Q8_0", "--leave-output-tensor")
    assert str(tmp_path / "named.gguf") in run.stdout
    with GGUFReader(tmp_path / "named.gguf") as reader:
        assert reader.tensors["output.weight"].type is GGMLType.F16


def test_quantize_refuses(tmp_path: Path, tiny: Path) -> None:
    for arguments, reason in (
        ([tiny, tmp_path / "x.gguf", "Q8_K"], "Q8_K is a format for activations"),
        ([tiny, tmp_path / "x.gguf", "Q9_9"], "Q4_K_M"),  # lists the types
        ([tiny, tmp_path / "x.gguf", "Q4_0"], "--allow-requantize"),  # quantised already
        ([tiny, tiny, "Q4_0"], "input file"),
    ):
        run = rillm("quantize", *arguments)
        assert (run.returncode, run.stdout) == (1, "")
        (line,) = run.stderr.splitlines()
        assert reason in line
    assert list(tmp_path.iterdir()) == []
    run = rillm("quantize", tiny, tmp_path / "x.gguf", "Q4_0", "--allow-requantize", "-t", "1")
    assert run.returncode == 0
    assert (tmp_path / "x.gguf").stat().st_size < tiny.stat().st_size


def test_inspect(tiny: Path) -> None:
    run = rillm("inspect", tiny)
    assert run.returncode == 0
    assert "glm-tiny.gguf" in run.stdout
    assert "Q8_0" in run.stdout
    run = rillm("inspect", tiny, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    values = json.loads(run.stdout)
    with GGUFReader(tiny) as reader:
        assert values["metadata"]["chatglm.block_count"] == reader.metadata["chatglm.block_count"]
        assert {t["name"]: t["type"] for t in values["tensors"]} == {
            name: tensor.type.name for name, tensor in reader.tensors.items()
        }


# ---- bench -----------------------------------------------------------------------------------


def test_bench(tiny: Path) -> None:
    flags = ["-m", tiny, "-p", "8,16", "-n", "4", "--users", "1,2", "-r", "1", "-t", "1"]
    run = rillm("bench", *flags, "--json")
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 4  # two prompts, and decoding for one and for two
    assert all(result["tokens_per_second"] > 0 for result in results)
    run = rillm("bench", *flags)
    assert run.returncode == 0
    assert "tokens/s" in run.stdout
    rows = [re.split(r"  +", line)[0] for line in run.stdout.splitlines()[1:]]
    assert rows == [result["test"] for result in results]


def test_bench_over_threads_and_depths_as_csv_with_a_plot(tiny: Path, tmp_path: Path) -> None:
    plot = tmp_path / "roof.html"
    flags = ["-p", "8", "-n", "2", "--depth", "0,16", "-r", "1", "-t", "1,2", "-ctk", "q8_0"]
    run = rillm("bench", tiny, *flags, "--csv", "--plot", plot)
    assert run.returncode == 0, run.stderr
    rows = list(csv.DictReader(run.stdout.splitlines()))
    tests = ["pp8", "tg2", "pp8 d16", "tg2 d16"]
    assert [(row["test"], row["num_threads"]) for row in rows] == [
        (test, threads) for threads in ("1", "2") for test in tests
    ]
    for row in rows:
        assert float(row["limit"]) > 0
        assert row["bound"] in ("memory", "multiply")
        assert float(row["multiply_peak"]) > 1e6
    svg = plot.read_text(encoding="utf-8")
    assert svg.count("<circle") == len(rows)
    assert svg.count('stroke="#bb3333"') == 2  # a roof for each number of threads
    ElementTree.fromstring(svg[svg.index("<svg") :])
