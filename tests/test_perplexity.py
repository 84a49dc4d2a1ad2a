"""perplexity, against its definition computed directly, and against what llama-perplexity said."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from random_gguf import VOCAB_ROWS

from rillm.cli.app import run as rillm
from rillm.core import Batch, load_core
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader
from rillm.models import load_model
from rillm.perplexity import (
    PerplexityError,
    Scores,
    cut_windows,
    log_softmax,
    measure,
)

sys.path.append(str(Path(__file__).parent / "golden"))
from test_smollm2 import smollm2_file

WORDS = ["GLM", "risc", "-V ", "你好", "the ", "model", ", ", "tensor\n", "is ", "42"]
TEXT = "".join(random.Random(5).choices(WORDS, k=80))  # a token a byte: some 300


def direct_nll(path, ids):
    """-log p of ids[1:], each from all before it, by one run and Python floats."""
    core = load_core()
    with core.team(1) as team, GGUFReader(path) as reader:
        model = load_model(reader, core, team, max_tokens=len(ids), max_logits=len(ids),
                           num_blocks=len(ids) // 16 + 1)  # fmt: skip
        batch = Batch(max_blocks=len(ids) // 16 + 1)
        batch.token_ids.extend(ids)
        batch.positions.extend(range(len(ids)))
        batch.slot_mapping.extend(range(len(ids)))
        batch.cu_seqlens_q.extend([0, len(ids)])
        batch.context_lens.append(len(ids))
        batch.block_tables.extend(range(batch.max_blocks))
        batch.logits_rows.extend(range(len(ids)))
        model.run(batch)
        result = []
        for row in range(len(ids) - 1):
            logits = list(model.logits(row))
            top = max(logits)
            total = math.fsum(math.exp(x - top) for x in logits)
            result.append(math.log(total) + top - logits[ids[row + 1]])
        model.close()
    return result


def byte_ids(text):
    return list(text.encode())


@pytest.mark.parametrize(("context", "stride"), [(32, 0), (33, 0), (64, 16), (50, 7)])
def test_definition(models, context, stride):
    path = models[GGMLType.F16]
    result = measure(path, TEXT, context=context, stride=stride, num_threads=1)
    ids, nll = byte_ids(TEXT), []
    if stride:
        starts, scored = range(0, len(ids) - context + 1, stride), stride
    else:
        starts, scored = range(0, len(ids) - context + 1, context), context - context // 2 - 1
    for start in starts:
        nll += direct_nll(path, ids[start : start + context])[-scored:]
    assert result.num_scored == len(nll) == len(starts) * scored
    assert result.num_chunks == len(starts)
    mean = math.fsum(nll) / len(nll)
    assert result.ppl.value == pytest.approx(math.exp(mean), rel=1e-5)
    variance = math.fsum((x - mean) ** 2 for x in nll) / len(nll) / (len(nll) - 1)
    assert result.ppl.error == pytest.approx(math.sqrt(variance) * math.exp(mean), rel=1e-3)


def test_windows():
    ids = list(range(100, 149))
    windows = cut_windows(ids, 16, bos_id=7)
    assert [window.token_ids for window in windows] == [
        [7, *range(101, 116)], [7, *range(117, 132)], [7, *range(133, 148)],
    ]  # fmt: skip
    assert {(window.first, window.num_scored) for window in windows} == {(9, 7)}
    windows = cut_windows(ids, 10, stride=3)
    scored = [id_ for window in windows for id_ in window.token_ids[window.first :]]
    assert scored == list(range(107, 149))  # every token after the first context, once
    with pytest.raises(PerplexityError, match="has 49 tokens, but two chunks of 25 are needed"):
        cut_windows(ids, 25)
    with pytest.raises(PerplexityError, match="stride 16: must be less than the context"):
        cut_windows(ids, 16, stride=16)
    with pytest.raises(PerplexityError, match="at least 4"):
        cut_windows(ids, 3)


def test_chunks_batches_and_threads_do_not_matter(models, monkeypatch):
    path = models[GGMLType.Q4_K]
    whole = measure(path, TEXT, context=48, num_threads=1)
    for batch_tokens, logits_bytes, threads in ((7, 1 << 20, 1), (128, 5 * 4 * VOCAB_ROWS, 2)):
        monkeypatch.setattr("rillm.perplexity._BATCH_TOKENS", batch_tokens)
        monkeypatch.setattr("rillm.perplexity._LOGITS_BYTES", logits_bytes)
        assert measure(path, TEXT, context=48, num_threads=threads) == whole
    seen = []
    part = measure(
        path, TEXT, context=48, max_chunks=2, num_threads=1, report=lambda *a: seen.append(a)
    )
    assert part.num_chunks == 2
    assert [a[:2] for a in seen] == [(1, 2), (2, 2)]
    assert seen[-1][2] == part.ppl.value


def test_log_softmax_and_divergence_of_distributions():
    random_ = np.random.default_rng(3)
    logits = (random_.standard_normal((40, 500)) * 8).astype(np.float32)
    other = logits + random_.standard_normal((40, 500)).astype(np.float32)
    p, q = log_softmax(logits), log_softmax(other + 100)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1))[:, None]
    np.testing.assert_allclose(p, exact, atol=2e-5)
    targets = random_.integers(0, 500, 40)
    scores = Scores()
    scores.add(q[:25], targets[:25], p[:25].astype(np.float16).astype(np.float32))
    scores.add(q[25:], targets[25:], p[25:].astype(np.float16).astype(np.float32))
    found = scores.divergence()
    p64, q64 = p.astype(np.float64), q.astype(np.float64)
    kl = (np.exp(p64) * (p64 - q64)).sum(1)
    assert found.kl.value == pytest.approx(kl.mean(), rel=2e-3)
    assert found.kl.error == pytest.approx(kl.std() / math.sqrt(39), rel=2e-3)
    assert found.kl_max == pytest.approx(kl.max(), rel=5e-3)
    assert found.kl_median == pytest.approx(np.median(kl), rel=1e-2)
    same = (p.argmax(1) == q.argmax(1)).mean()
    assert 0 < same < 1
    assert found.same_top.value == same
    assert found.same_top.error == pytest.approx(math.sqrt(same * (1 - same) / 39))
    rows = np.arange(40)
    nll, base = -q64[rows, targets], -p64[rows, targets]
    assert found.base_ppl == pytest.approx(math.exp(base.mean()), rel=1e-3)
    assert scores.perplexity().value == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert found.log_ratio.value == pytest.approx((nll - base).mean(), rel=1e-2, abs=1e-3)
    change = np.exp(-nll) - np.exp(-base)
    assert found.rms_dp == pytest.approx(math.sqrt((change**2).mean()), rel=1e-2)


@pytest.mark.parametrize("save_type", ["f16", "f32"])
def test_a_model_against_itself_and_another(models, tmp_path, save_type):
    options = {"context": 40, "num_threads": 1, "max_chunks": 3}
    base = tmp_path / "base.gguf"
    first = measure(models[GGMLType.F16], TEXT, save_logits=base, save_type=save_type, **options)
    assert first.divergence is None
    itself = measure(models[GGMLType.F16], TEXT, kl_base=base, **options)
    assert itself.ppl == first.ppl
    assert abs(itself.divergence.kl.value) < (2e-6 if save_type == "f16" else 1e-7)
    assert itself.divergence.same_top.value == pytest.approx(1, abs=0.02)
    assert itself.divergence.base_ppl == pytest.approx(first.ppl.value, rel=1e-3)
    divergences = [
        measure(models[type_], TEXT, kl_base=base, **options).divergence.kl.value
        for type_ in (GGMLType.Q8_0, GGMLType.Q6_K, GGMLType.Q4_0)
    ]
    assert 0 < divergences[0] < divergences[1] < divergences[2]


def test_bases_that_do_not_fit(models, tmp_path):
    path, base = models[GGMLType.Q8_0], tmp_path / "base.gguf"
    measure(path, TEXT, context=40, max_chunks=2, save_logits=base, num_threads=1)

    def refused(match, text=TEXT, **options):
        with pytest.raises(RillmError, match=match) as caught:
            measure(path, text, kl_base=base, num_threads=1, **{"context": 40, **options})
        assert "\n" not in str(caught.value)

    refused(r"base\.gguf: has 2 chunks, \d+ are asked for: give --chunks 2")
    refused("chunk 1 is of another text", "X" + TEXT, max_chunks=2)
    refused("chunk 1 is of another text", context=42, max_chunks=2)
    refused("chunk 1 is of another text", stride=20, max_chunks=2)
    base = path
    refused("was not written by rillm perplexity", max_chunks=2)
    with pytest.raises(RillmError, match="f16 or f32, not 'q8_0'"):
        measure(path, TEXT, context=40, save_logits=tmp_path / "x", save_type="q8_0", num_threads=1)
    assert not (tmp_path / "x").exists()


def test_an_interrupted_run_leaves_no_base(models, tmp_path):
    def interrupt(number, count, value):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(
            models[GGMLType.Q8_0], TEXT, context=40, num_threads=1,
            save_logits=tmp_path / "base.gguf", report=interrupt,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_command(models, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    command = ["perplexity", "-m", str(models[GGMLType.Q8_0]), "-f", str(text), "-c", "40"]
    command += ["-t", "1"]
    assert rillm([*command, "--save-logits", str(tmp_path / "base.gguf")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("PPL ")
    assert rillm([*command, "--kl-base", str(tmp_path / "base.gguf"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert printed.startswith(f"PPL {result['ppl']['value']:.4f} +/- {result['ppl']['error']:.5f}")
    assert result["divergence"]["same_top"]["value"] > 0.98
    text.write_bytes(b"caf\xe9")
    assert rillm(command) == 1
    assert "is not UTF-8 text" in capsys.readouterr().err
    text.write_text("short")
    assert rillm(command) == 1
    assert "the text has 5 tokens" in capsys.readouterr().err


def test_too_little_memory_is_one_line(models, tmp_path, capsys, monkeypatch):
    """As when the core cannot allocate a weight."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")

    def fail(*arguments):
        raise MemoryError("core_weight_create: out of memory")

    monkeypatch.setattr("rillm.core.library.Weight.__init__", fail)
    monkeypatch.setattr("rillm.core.library.Weight.close", lambda self: None)
    assert (
        rillm(["perplexity", "-m", str(models[next(iter(models))]), "-f", str(text), "-c", "32"])
        == 1
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory (core_weight_create: out of memory); take ")


def test_smollm2_like_llama_perplexity():
    """llama-perplexity b11669, -t 1 -c 256 on the repository's LICENSE: PPL 17.7359 +/- 1.65725."""
    path, reason = smollm2_file()
    if path is None:
        pytest.skip(reason)
    text = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    result = measure(path, text, context=256)
    assert (result.num_chunks, result.num_scored) == (8, 1016)
    assert result.ppl.value == pytest.approx(17.7359, rel=0.005)
    assert result.ppl.error == pytest.approx(1.65725, rel=0.02)
