"""Packed files: the same logits as the file they were made from, in every variant, and refusals."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from random_gguf import VOCAB_ROWS, write_random_glm
from tiny import environment, rillm

from rillm.core import Batch, CoreError, load_core, supported_variants
from rillm.errors import RillmError
from rillm.gguf import GGMLType, GGUFReader, GGUFWriter
from rillm.models import ModelError, load_model
from rillm.prepare.errors import PrepareError
from rillm.prepare.pack import pack
from rillm.prepare.quantize import quantize

CORE = load_core()
IDS = [3, 250, 0, 17, 17, 8, 30, 99, 101]
WEIGHT_TYPES = [GGMLType(fmt.ggml_type) for fmt in CORE.formats if fmt.can_quantize]
# One variant of every layout.
VARIANTS = [
    "scalar", "x86_avx2", "x86_avx512", "riscv_rvv128", "riscv_rvv256", "riscv_rvv512",
    "riscv_rvv1024",
]  # fmt: skip


def logits(path):
    """Of a prompt and of a token after it, as bytes."""
    with GGUFReader(path) as reader, CORE.team(2) as team:
        model = load_model(reader, CORE, team, max_tokens=16, max_logits=16, num_blocks=4)
        try:
            rows = []
            for start, stop in ((0, len(IDS) - 1), (len(IDS) - 1, len(IDS))):
                batch = Batch.alone(IDS, start, stop, block_size=16, wants_logits=True)
                model.run(batch)
                rows += [bytes(model.logits(row)) for row in range(stop - start)]
            return rows
        finally:
            model.close()


def packed(source, out, variant=None):
    with CORE.team(2) as team:
        return pack(source, out, CORE, team, variant)


def untied(source, out):
    """The file without its output head: the embedding is that, too."""
    with GGUFReader(source) as reader:
        tensors = [tensor for name, tensor in reader.tensors.items() if name != "output.weight"]
        with GGUFWriter(out, reader.copy_metadata()) as writer:
            for tensor in tensors:
                writer.declare(tensor.name, tensor.shape, tensor.type)
            for tensor in tensors:
                writer.write(tensor.name, [tensor.data])
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "source.gguf"
    return write_random_glm(path, CORE, GGMLType.Q4_K, architecture="glm4")


@pytest.fixture(scope="module")
def native(source):
    return packed(source, source.with_name("native.gguf"))


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES, ids=lambda kind: kind.name)
def test_logits_are_the_same_bits(tmp_path, weight_type):
    source = write_random_glm(tmp_path / "source.gguf", CORE, weight_type)
    assert logits(packed(source, tmp_path / "packed.gguf")) == logits(source)


def test_a_tied_head_is_packed_beside_the_embedding(tmp_path, source):
    tied = untied(source, tmp_path / "tied.gguf")
    path = packed(tied, tmp_path / "packed.gguf")
    assert logits(path) == logits(tied)
    with GGUFReader(path) as reader:
        assert reader.tensors["output.weight"].is_packed
        assert not reader.tensors["token_embd.weight"].is_packed


def test_what_a_packed_file_says_of_itself(source, native):
    with GGUFReader(source) as before, GGUFReader(native) as after:
        assert after.packing is not None
        assert before.packing is None
        assert after.packing.variant == CORE.variant
        assert after.metadata["general.architecture"] == "glm4"
        for name, tensor in before.tensors.items():
            copy = after.tensors[name]
            assert (copy.type, copy.shape) == (tensor.type, tensor.shape)
            assert copy.is_packed == (len(tensor.shape) == 2 and name != "token_embd.weight")
            assert copy.offset % 4096 == 0
        kept = {key: value for key, value in after.metadata.items() if "packed" not in key}
        del kept["general.alignment"]
        assert kept == before.metadata


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_that_of_the_variant_and_zero(tmp_path, source, variant):
    with GGUFReader(packed(source, tmp_path / "packed.gguf", variant)) as reader:
        tensor = reader.tensors["output.weight"]
        tile = CORE.tile_rows(variant)
        rows = -(-VOCAB_ROWS // tile) * tile
        assert tensor.nbytes == rows * tensor.type.row_bytes(tensor.shape[1])
        # Halfs come first in a tile: the d of every row, those of the padding at its end.
        last_tile = bytes(tensor.data[(rows // tile - 1) * tile * tensor.nbytes // rows :])
        padding = rows - VOCAB_ROWS
        assert last_tile[2 * (tile - padding) : 2 * tile] == bytes(2 * padding)


def test_every_layout_has_its_own_id():
    """And each variant of the core computes the same ids for all of them."""
    types = [GGMLType.Q4_K, GGMLType.Q6_K]
    ids = [CORE.layout_id(variant, types) for variant in VARIANTS]
    assert len(set(ids)) == len(VARIANTS)
    assert CORE.layout_id("riscv_rvv256_f16", types) == CORE.layout_id("riscv_rvv256", types)
    assert CORE.layout_id("riscv_xthead", types) == CORE.layout_id("riscv_rvv128", types)
    assert CORE.layout_id("x86_amx", types) == CORE.layout_id("x86_avx512", types)
    assert CORE.layout_id("x86_avx2", types[:1]) != CORE.layout_id("x86_avx2", types)
    code = (
        "from rillm.core import load_core; core = load_core();"
        f"print(*(core.layout_id(name, {[int(kind) for kind in types]}) for name in {VARIANTS}))"
    )
    for variant in supported_variants():
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=environment(RILLM_ISA=variant.name),
        )  # fmt: skip
        assert run.stdout.split() == ids


@pytest.mark.parametrize("variant", [one.name for one in supported_variants()])
def test_packed_for_a_variant_by_another(tmp_path, source, variant):
    """It gives that variant's own logits, and another variant refuses it."""
    path = packed(source, tmp_path / "packed.gguf", variant)
    code = (
        "import sys, hashlib, test_packed as t;"
        "print(*(hashlib.sha256(b''.join(t.logits(path))).hexdigest() for path in sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path, source], capture_output=True, text=True, check=True,
        env=environment(RILLM_ISA=variant, PYTHONPATH=str(Path(__file__).parent)),
    )  # fmt: skip
    ours, plain = run.stdout.split()
    assert ours == plain
    if variant != CORE.variant:
        with pytest.raises(ModelError, match=f"is packed for {variant}, and this is .*--pack"):
            logits(path)


def test_an_older_layout_is_refused(tmp_path, native, monkeypatch):
    monkeypatch.setattr(type(CORE), "layout_id", lambda *_: "0123456789abcdef")
    with pytest.raises(ModelError, match="by another version of rillm: pack the GGUF file"):
        logits(native)


def test_nothing_else_takes_a_packed_file_for_blocks(tmp_path, native):
    with pytest.raises(PrepareError, match="is packed already"):
        packed(native, tmp_path / "again.gguf")
    with pytest.raises(PrepareError, match="is packed for"):
        quantize(native, tmp_path / "q8.gguf", "Q8_0", allow_requantize=True)
    with pytest.raises(CoreError, match="no variant of rillm is called 'x86_sse'"):
        packed(native.with_name("source.gguf"), tmp_path / "sse.gguf", "x86_sse")
    assert list(tmp_path.iterdir()) == []


def test_a_packed_tensor_where_the_model_wants_rows(tmp_path, native):
    """A file whose keys say that the embedding is packed, too."""
    data = bytearray(native.read_bytes())
    with GGUFReader(native) as reader:
        names = list(reader.tensors)
        rows = reader.tensors["token_embd.weight"].shape[0]
        spans = reader._mappings[0].header.spans
    at = names.index("token_embd.weight")
    types, counts = (spans[f"rillm.packed.{key}"].start + 12 for key in ("types", "rows"))
    data[types + 4 * at : types + 4 * at + 4] = int(GGMLType.Q4_K).to_bytes(4, "little")
    data[counts + 8 * at : counts + 8 * at + 8] = rows.to_bytes(8, "little")
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(RillmError, match=r"'token_embd\.weight': is Q4_K"):
        logits(path)


def test_damage_is_an_error_or_another_number(tmp_path, native):
    """Bytes of the header changed at random, or the end cut off: one line, or a model that runs."""
    good = native.read_bytes()
    with GGUFReader(native) as reader:
        spans = reader._mappings[0].header.spans
        keys = [span for key, span in spans.items() if key.startswith("rillm.packed.")]
        end = min(tensor.offset for tensor in reader.tensors.values())
        last = max(tensor.offset + tensor.nbytes for tensor in reader.tensors.values())
    source = random.Random(0)
    path = tmp_path / "damaged.gguf"
    refused = []
    for turn in range(300):
        data = bytearray(good)
        if turn % 10 == 0:
            data = data[: source.randrange(last)]
        else:  # mostly where it says what is packed
            span = source.choice(keys)
            where = source.choice([range(span.start, span.stop), range(end - 20000, end)])
            for _ in range(source.randint(1, 3)):
                data[source.choice(where)] ^= source.randint(1, 255)
        path.write_bytes(data)
        try:
            logits(path)
        except (RillmError, MemoryError) as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert not any("\n" in message for message in refused)


def test_the_command(tmp_path, source):
    out = tmp_path / "out.gguf"
    run = rillm("quantize", source, out, "--pack", "native")
    assert run.returncode == 0, run.stderr
    assert f"packed for {CORE.variant}" in run.stdout
    assert logits(out) == logits(source)
    shown = rillm("inspect", out)
    assert shown.returncode == 0, shown.stderr
    assert f"packed for {CORE.variant} (runs in rillm only)" in shown.stdout
    other = rillm("quantize", source, tmp_path / "board.gguf", "--pack", "riscv_rvv256")
    assert other.returncode == 0, other.stderr
    ran = rillm("run", "-m", tmp_path / "board.gguf", "-p", "a", "-n", "1")
    assert ran.returncode == 1
    assert "is packed for riscv_rvv256" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    wrong = rillm("quantize", source, out, "Q4_K_M", "--pack", "native")
    assert wrong.returncode == 2
    assert os.path.getsize(out) > 0
