"""The GGUF writer: against the gguf package, against our reader, and when something goes wrong.

Longer than most: one table per kind of bad input.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from gguf_files import EVERY_VALUE, every_key, gguf, key, pattern, save, some_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rillm.gguf import GGMLType, GGUFError, GGUFReader, GGUFWriter, Typed, ValueType, WriterValue

METADATA: dict[str, WriterValue] = {
    "general.architecture": "glm4",
    "glm4.block_count": 61,
    "glm4.context_length": 2**32 - 1,
    "glm4.parameter_count": 2**32,
    "glm4.below_zero": -5,
    "glm4.far_below_zero": -(2**31) - 1,
    "glm4.attention.layer_norm_rms_epsilon": 2.0**-17,
    "glm4.attention.causal": True,
    "tokenizer.ggml.tokens": ["你好", "", "Ġa", "\0"],
    "tokenizer.ggml.token_type": [1, 3, 4, -1],
    "glm4.rope.dimension_sections": [16, 24, 0],
    "tokenizer.ggml.scores": [0.0, -1.5, float("inf")],
    "flags": [True, False],
    "wide": [2**31, 0],
    "wider": [-1, 2**31],
    "widest": [2**64 - 1],
    "typed.scalar": Typed(ValueType.INT8, -128),
    "typed.double": Typed(ValueType.FLOAT64, 0.1),
    "typed.whole": Typed(ValueType.FLOAT32, 3),
    "typed.array": Typed(ValueType.UINT16, [1, 2, 65535]),
    "typed.text": Typed(ValueType.STRING, "x"),
}

V = reference.GGUFValueType
EXPECTED_TYPES = {
    "general.architecture": [V.STRING],
    "glm4.block_count": [V.UINT32],
    "glm4.context_length": [V.UINT32],
    "glm4.parameter_count": [V.UINT64],
    "glm4.below_zero": [V.INT32],
    "glm4.far_below_zero": [V.INT64],
    "glm4.attention.layer_norm_rms_epsilon": [V.FLOAT32],
    "glm4.attention.causal": [V.BOOL],
    "tokenizer.ggml.tokens": [V.ARRAY, V.STRING],
    "tokenizer.ggml.token_type": [V.ARRAY, V.INT32],
    "glm4.rope.dimension_sections": [V.ARRAY, V.INT32],
    "tokenizer.ggml.scores": [V.ARRAY, V.FLOAT32],
    "flags": [V.ARRAY, V.BOOL],
    "wide": [V.ARRAY, V.UINT32],
    "wider": [V.ARRAY, V.INT64],
    "widest": [V.ARRAY, V.UINT64],
    "typed.scalar": [V.INT8],
    "typed.double": [V.FLOAT64],
    "typed.whole": [V.FLOAT32],
    "typed.array": [V.ARRAY, V.UINT16],
    "typed.text": [V.STRING],
}


def plain(value: WriterValue) -> object:
    return value.value if isinstance(value, Typed) else value


def random_tensors(seed: int) -> list[tuple[str, tuple[int, ...], GGMLType, bytes]]:
    """One tensor of each storable type, with 1 to 4 dimensions."""
    rng = random.Random(seed)
    tensors = []
    for number, kind in enumerate(GGMLType):
        dims = [rng.randint(1, 5) for _ in range(number % 4)]
        shape = (*dims, kind.block_size * rng.randint(1, 3))
        nbytes = kind.row_bytes(shape[-1])
        for dim in dims:
            nbytes *= dim
        tensors.append((f"blk.{number}.{kind.name}", shape, kind, rng.randbytes(nbytes)))
    rng.shuffle(tensors)
    return tensors


def write_file(
    path: Path,
    metadata: Mapping[str, WriterValue],
    tensors: list[tuple[str, tuple[int, ...], GGMLType, bytes]],
    alignment: int = 32,
) -> None:
    with GGUFWriter(path, metadata, alignment) as writer:
        for name, shape, kind, _ in tensors:
            writer.declare(name, shape, kind)
        for name, _, _, data in tensors:
            middle = len(data) // 3
            writer.write(name, iter([data[:middle], b"", memoryview(data)[middle:]]))


# Against the gguf package


@pytest.mark.parametrize("kind", [t for t in GGMLType if t in list(reference.GGMLQuantizationType)])
def test_block_sizes(kind: GGMLType) -> None:
    if kind is GGMLType.Q8_1:  # the package says 40, but ggml has had two halves here since 2024
        assert (kind.block_size, kind.block_bytes) == (32, 36)
        return
    same = reference.GGMLQuantizationType(kind)
    assert same.name == kind.name
    assert (kind.block_size, kind.block_bytes) == reference.GGML_QUANT_SIZES[same]


def test_value_types() -> None:
    assert {kind.name: kind.value for kind in V} == {kind.name: kind.value for kind in ValueType}


@pytest.mark.parametrize("alignment", [32, 64, 8, 256])
def test_package_reads_what_we_write(tmp_path: Path, alignment: int) -> None:
    known = {kind.value for kind in reference.GGMLQuantizationType} - {GGMLType.Q8_1}
    tensors = [tensor for tensor in random_tensors(alignment) if tensor[2] in known]
    path = tmp_path / "model.gguf"
    write_file(path, METADATA, tensors, alignment)
    found = reference.GGUFReader(path)
    expected_types = dict(EXPECTED_TYPES)
    if alignment != 32:
        expected_types["general.alignment"] = [V.UINT32]
    names = [name for name in found.fields if not name.startswith("GGUF.")]
    assert names == list(expected_types)
    for name, types in expected_types.items():
        # an array's type is repeated per string by the package
        assert found.fields[name].types[: len(types)] == types
        if name in METADATA:
            assert found.fields[name].contents() == plain(METADATA[name])
    assert [tensor.name for tensor in found.tensors] == [name for name, *_ in tensors]
    for ours, theirs in zip(tensors, found.tensors, strict=True):
        assert tuple(theirs.shape) == ours[1][::-1]
        assert theirs.tensor_type == ours[2]
        assert theirs.data.tobytes() == ours[3]


def package_file(path: Path, tensors: int, **arguments: int) -> reference.GGUFWriter:
    """A file by the package, with numpy tensors and every kind of metadata it can write."""
    writer = reference.GGUFWriter(path, "glm4", **arguments)
    writer.add_block_count(61)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["你好", "Ġa"])
    writer.add_token_types([1, 3])
    writer.add_token_scores([-1.5, 0.0])
    writer.add_add_bos_token(False)
    writer.add_uint64("big", 2**63)
    writer.add_float64("double", 0.1)
    writer.add_chat_template("{{ messages }}\n")
    rng = np.random.default_rng(tensors)
    for number in range(tensors):
        shape = (*rng.integers(1, 9, size=1 + number % 3).tolist(), 32)
        data = rng.standard_normal(shape).astype([np.float32, np.float16][number % 2])
        if number % 3 == 2:
            kind = reference.GGMLQuantizationType.Q5_1
            data = reference.quantize(data.astype(np.float32), kind)
            writer.add_tensor(f"t{number}", data, raw_dtype=kind)
        else:
            writer.add_tensor(f"t{number}", data)
    return writer


def finish(writer: reference.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_we_read_what_the_package_writes_and_rewrite_it_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    finish(package_file(path, 7))
    theirs = reference.GGUFReader(path)
    with GGUFReader(path) as reader:
        for name, value in reader.metadata.items():
            assert value == theirs.fields[name].contents()
            assert reader.value_types[name].value == theirs.fields[name].types[0].value
        assert len(reader.metadata) == len(theirs.fields) - 3
        assert len(reader.tensors) == len(theirs.tensors) == 7
        for info, tensor in zip(reader.tensors.values(), theirs.tensors, strict=True):
            assert info.name == tensor.name
            assert info.shape == tuple(tensor.shape.tolist())[::-1]
            assert info.type == tensor.tensor_type
            assert info.data == tensor.data.tobytes()
    assert rewrite(path, tmp_path / "ours.gguf") == path.read_bytes()


def test_we_read_the_split_files_of_the_package(tmp_path: Path) -> None:
    finish(package_file(tmp_path / "m.gguf", 7, split_max_tensors=3))
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    expected = [tensor for part in parts for tensor in reference.GGUFReader(part).tensors]
    for part in parts:
        with GGUFReader(part) as reader:
            assert list(reader.tensors) == [tensor.name for tensor in expected]
            for tensor in expected:
                assert reader.tensors[tensor.name].data == tensor.data.tobytes()
            assert reader.metadata["glm4.block_count"] == 61


# Against our reader


def rewrite(source: Path, target: Path) -> bytes:
    with (
        GGUFReader(source) as reader,
        GGUFWriter(target, reader.copy_metadata(), reader.alignment) as writer,
    ):
        for tensor in reader.tensors.values():
            writer.declare(tensor.name, tensor.shape, tensor.type)
        for tensor in reader.tensors.values():
            writer.write(tensor.name, [tensor.data])
    return target.read_bytes()


def test_copied_metadata_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    keys = [
        *every_key(),
        key(b"nan", ValueType.FLOAT32, b"\x01\x00\x80\x7f"),  # signalling, with a payload
        key(b"minus zero", ValueType.FLOAT64, struct.pack("<d", -0.0)),
    ]
    content = gguf(keys, some_tensors())
    assert rewrite(save(tmp_path, content), tmp_path / "copy.gguf") == content
    version_2 = save(tmp_path, gguf(keys, some_tensors(), version=2))
    assert rewrite(version_2, tmp_path / "copy.gguf") == content


def test_copied_metadata_can_be_changed(tmp_path: Path) -> None:
    with GGUFReader(save(tmp_path, gguf(every_key(), []))) as reader:
        metadata = reader.copy_metadata(drop=["a.uint8", "b.nested"]) | {"a.int8": 18}
    write_file(tmp_path / "copy.gguf", metadata, [])
    expected = {name: value for name, _, _, value in EVERY_VALUE} | {"a.int8": 18}
    del expected["a.uint8"], expected["b.nested"]
    with GGUFReader(tmp_path / "copy.gguf") as reader:
        assert reader.metadata == expected
        assert list(reader.metadata) == list(expected)
        assert reader.value_types["a.int8"] is ValueType.UINT32
        assert reader.value_types["a.int64"] is ValueType.INT64


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(),
)
ARRAYS = st.one_of(
    st.lists(st.booleans(), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.integers(0, 2**64 - 1), min_size=1),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    st.lists(st.text(), min_size=1),
    st.lists(st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")), min_size=1),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    # the prefix: a key like split.count or general.alignment would have a meaning
    st.dictionaries(st.text().map(lambda text: "k" + text), st.one_of(SCALARS, ARRAYS)),
    st.sampled_from([8, 32, 4096]),
)
def test_random_metadata_comes_back(
    tmp_path: Path, metadata: dict[str, WriterValue], alignment: int
) -> None:
    tensors = random_tensors(len(metadata))
    write_file(tmp_path / "model.gguf", metadata, tensors, alignment)
    with GGUFReader(tmp_path / "model.gguf") as reader:
        found = dict(reader.metadata)
        assert found.pop("general.alignment", 32) == alignment
        assert found == metadata
        assert list(map(type, found.values())) == list(map(type, metadata.values()))
        for name, shape, kind, data in tensors:
            info = reader.tensors[name]
            assert (info.shape, info.type, bytes(info.data)) == (shape, kind, data)


def test_numpy_chunks_and_enum_values(tmp_path: Path) -> None:
    class FileType(IntEnum):
        MOSTLY_Q6_K = 18

    rows = np.arange(96, dtype=np.float16).reshape(3, 32)
    with GGUFWriter(tmp_path / "m.gguf", {"general.file_type": FileType.MOSTLY_Q6_K}) as writer:
        writer.declare("t", rows.shape, GGMLType.F16)
        writer.write("t", (row for row in rows))
    with GGUFReader(tmp_path / "m.gguf") as reader:
        assert reader.metadata["general.file_type"] == 18
        assert reader.value_types["general.file_type"] is ValueType.UINT32
        assert reader.tensors["t"].data == rows.tobytes()


def test_one_chunk_at_a_time(tmp_path: Path) -> None:
    class Chunk(bytearray):  # a bytearray that can be referred to weakly
        pass

    made: list[weakref.ref[Chunk]] = []

    def make(number: int) -> Chunk:
        assert not [chunk for chunk in made if chunk() is not None]
        chunk = Chunk(pattern(4096, number))
        made.append(weakref.ref(chunk))
        return chunk

    with GGUFWriter(tmp_path / "m.gguf", {}) as writer:
        writer.declare("t", (20, 4096), GGMLType.I8)
        writer.write("t", map(make, range(20)))
    with GGUFReader(tmp_path / "m.gguf") as reader:
        assert reader.tensors["t"].data == b"".join(pattern(4096, n) for n in range(20))


# What is refused


BAD_METADATA: list[tuple[str, object, str]] = [
    ("k", [], r"metadata key 'k': an empty list has no element type; use Typed\(type, \[\]\)"),
    ("k", [1, 2.0], "a list of float, int has no element type"),
    ("k", [1, True], "a list of bool, int has no element type"),
    ("k", ["a", 1], "a list of int, str has no element type"),
    ("k", [[1], [2]], "list is no metadata value"),
    ("k", [None], "NoneType is no metadata value"),
    ("k", None, "NoneType is no metadata value"),
    ("k", b"raw", "bytes is no metadata value"),
    ("k", np.float32(1), "float32 is no metadata value"),
    ("k", 2**64, "no integer type of GGUF"),
    ("k", -(2**63) - 1, "no integer type of GGUF"),
    ("k", [-1, 2**63], "no integer type of GGUF"),
    ("k", 1e39, "does not fit into FLOAT32"),
    ("k", "\ud800", "cannot be written as UTF-8"),
    ("k", Typed(ValueType.UINT8, 256), "does not fit into UINT8"),
    ("k", Typed(ValueType.UINT8, [0, -1]), "does not fit into UINT8"),
    ("k", Typed(ValueType.UINT32, -1), "does not fit into UINT32"),
    ("k", Typed(ValueType.UINT32, 1.5), "a value is not of type UINT32"),
    ("k", Typed(ValueType.UINT32, True), "a value is not of type UINT32"),
    ("k", Typed(ValueType.BOOL, 1), "a value is not of type BOOL"),
    ("k", Typed(ValueType.STRING, 1), "a value is not of type STRING"),
    ("k", Typed(ValueType.INT32, ["1"]), "a value is not of type INT32"),
    ("k", Typed(ValueType.ARRAY, [1]), "state the type of the elements"),
    ("", 1, "metadata key '': is empty"),
    ("general.alignment", 64, "pass the alignment as an argument"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_METADATA)
def test_bad_metadata(tmp_path: Path, name: str, value: WriterValue, message: str) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(GGUFError, match=f"{path}: .*{message}"):
        GGUFWriter(path, {name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alignment", [0, -32, 4, 24, 1 << 21])
def test_bad_alignment(tmp_path: Path, alignment: int) -> None:
    with pytest.raises(GGUFError, match=f"alignment {alignment} is not a power of two"):
        GGUFWriter(tmp_path / "m.gguf", {}, alignment)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "shape", "kind", "message"),
    [
        ("t", (), GGMLType.F32, "must have 1 to 4 dimensions"),
        ("t", (1,) * 5, GGMLType.F32, "must have 1 to 4 dimensions"),
        ("t", (3, 0), GGMLType.F32, "of at least 1"),
        ("t", (-1, 4), GGMLType.F32, "of at least 1"),
        ("t", (32, 40), GGMLType.Q4_0, "row of 40 weights is not a multiple of the Q4_0 block"),
        ("", (1,), GGMLType.F32, "the name must have 1 to 63 bytes"),
        ("你" * 21 + "x", (1,), GGMLType.F32, "the name must have 1 to 63 bytes"),
        ("first", (1,), GGMLType.F32, "is declared twice"),
    ],
)
def test_bad_declaration(
    tmp_path: Path, name: str, shape: tuple[int, ...], kind: GGMLType, message: str
) -> None:
    with GGUFWriter(tmp_path / "m.gguf", {}) as writer:
        writer.declare("first", (1,), GGMLType.F32)
        with pytest.raises(GGUFError, match=message):
            writer.declare(name, shape, kind)
        writer.write("first", [bytes(4)])
    with GGUFReader(tmp_path / "m.gguf") as reader:
        assert list(reader.tensors) == ["first"]


def started(path: Path) -> GGUFWriter:
    writer = GGUFWriter(path, {"a": 1})
    writer.declare("t", (4, 32), GGMLType.Q8_0)
    writer.declare("u", (100_000,), GGMLType.I8)
    return writer


@pytest.mark.parametrize(
    ("name", "chunks", "message"),
    [
        ("t", [bytes(135)], "'t': got 135 bytes of the declared 136"),
        ("t", [], "'t': got 0 bytes of the declared 136"),
        ("t", [bytes(130), bytes(7)], "'t': got more than the declared 136 bytes"),
        ("u", [bytes(100_000)], "'u': is out of turn; the next tensor to write is 't'"),
        ("v", [b""], "'v': is out of turn"),
        ("t", [memoryview(bytes(272))[::2]], "'t': a chunk is not contiguous"),
    ],
)
def test_wrong_data_leaves_nothing_behind(
    tmp_path: Path, name: str, chunks: list[bytes], message: str
) -> None:
    path = save(tmp_path, b"the previous file")
    writer = started(path)
    with pytest.raises(GGUFError, match=message):
        writer.write(name, chunks)
    with pytest.raises(GGUFError, match="closed"):
        writer.write(name, chunks)
    with pytest.raises(GGUFError, match="earlier failure"):
        writer.close()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the previous file"


def test_forgotten_tensor(tmp_path: Path) -> None:
    with (
        pytest.raises(GGUFError, match="'u': was declared but not written"),
        started(tmp_path / "m.gguf") as writer,
    ):
        writer.write("t", [bytes(136)])
    assert not list(tmp_path.iterdir())


def test_calls_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with started(path) as writer:
        writer.write("t", [pattern(136)])
        with pytest.raises(GGUFError, match="'w': must be declared before the first write"):
            writer.declare("w", (1,), GGMLType.F32)
        writer.write("u", [pattern(100_000)])
    content = path.read_bytes()
    writer.close()
    with pytest.raises(GGUFError, match="closed"):
        writer.write("u", [])
    writer.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, ZeroDivisionError, OSError(5, "their disk")]
)
@pytest.mark.parametrize("inside", [True, False])
def test_exceptions_pass_and_leave_nothing_behind(
    tmp_path: Path, failure: type[BaseException] | BaseException, inside: bool
) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(100)
        assert [entry.name for entry in tmp_path.iterdir()] == [f".m.gguf.{os.getpid()}.partial"]
        raise failure

    def write() -> None:
        if inside:  # the writer cleans up without the help of a context, too
            started(tmp_path / "m.gguf").write("t", chunks())
        with started(tmp_path / "m.gguf") as writer:
            writer.write("t", [bytes(136)])
            raise failure

    with pytest.raises(failure if isinstance(failure, type) else type(failure)) as caught:
        write()
    assert not isinstance(caught.value, GGUFError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [60, 10_000, 90_000])
def test_full_disk(tmp_path: Path, limit: int) -> None:
    """A limit on the file size makes the kernel refuse the write, as a full disk does."""
    path = save(tmp_path, b"the previous file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> None:
        with started(path) as writer:
            writer.write("t", [bytes(136)])
            writer.write("u", (bytes(100) for _ in range(1000)))

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(GGUFError, match=rf"^{path}: cannot write: File too large$"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the previous file"


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="is a folder"):
        GGUFWriter(tmp_path, {})
    with pytest.raises(GGUFError, match="is a folder"):
        GGUFWriter(f"{tmp_path}/new/", {})
    with pytest.raises(GGUFError, match=r"absent/m\.gguf: cannot write: No such file or directory"):
        GGUFWriter(tmp_path / "absent" / "m.gguf", {})


def test_leftover_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, b"leftover", f".m.gguf.{os.getpid()}.partial")
    write_file(tmp_path / "m.gguf", METADATA, random_tensors(1))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]
    with GGUFReader(tmp_path / "m.gguf") as reader:
        assert reader.metadata["glm4.block_count"] == 61


def test_leftovers_of_any_killed_process_are_deleted(tmp_path: Path) -> None:
    """But not the file of one that is at work, nor what only resembles a leftover."""
    code = (
        "import sys; from rillm.gguf import *; w = GGUFWriter(sys.argv[1], {});"
        "w.declare('t', (9,), GGMLType.F32); print(flush=True); sys.stdin.read()"
    )
    kept = {".m.gguf.0123456789ab.partial", ".other.gguf.17.partial", ".m.gguf.x.partial"}
    for name in (*kept, ".m.gguf.17.partial", ".m.gguf.4194303.partial"):
        save(tmp_path, b"something", name)
    command = [sys.executable, "-c", code, str(tmp_path / "m.gguf")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        working = f".m.gguf.{other.pid}.partial"
        assert {entry.name for entry in tmp_path.iterdir()} == kept | {working}
        write_file(tmp_path / "m.gguf", METADATA, random_tensors(1))
        assert {entry.name for entry in tmp_path.iterdir()} == {*kept, working, "m.gguf"}
        other.kill()
    write_file(tmp_path / "m.gguf", METADATA, random_tensors(1))
    assert {entry.name for entry in tmp_path.iterdir()} == {*kept, "m.gguf"}


def test_file_can_be_rewritten_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = gguf(every_key(), some_tensors())
    path = save(tmp_path, content)
    with GGUFReader(path) as reader:
        assert rewrite(path, Path("model.gguf")) == content
        assert reader.tensors["output.weight"].data == some_tensors()[3].data
