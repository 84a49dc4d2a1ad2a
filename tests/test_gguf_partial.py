"""A file whose writing was interrupted: gone on with where all is the same, else begun anew."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_files import pattern

from rillm.gguf import GGMLType, GGUFError, GGUFReader, GGUFWriter, bytes_left
from rillm.gguf import writer as writer_module

SIZES = {"a": 100, "b": 5000, "c": 64}
PART = ".m.gguf.partial"


def started(path: Path, made_from: str = "x", key: int = 1, last: str = "c") -> GGUFWriter:
    writer = GGUFWriter(path, {"key": key}, made_from=made_from)
    for name, size in SIZES.items():
        writer.declare(last if name == "c" else name, (size,), GGMLType.I8)
    return writer


def write_until(path: Path, num_whole: int, end: type[BaseException]) -> None:
    """Writes until so many tensors are whole; the end comes within the next, if there is one."""

    def chunks(size: int) -> Iterator[bytes]:
        yield pattern(size)[:50]
        raise end

    with started(path) as writer:
        for number, name in enumerate(SIZES):
            if name in writer.resume():
                continue
            size = SIZES[name]
            writer.write(name, [pattern(size)] if number < num_whole else chunks(size))
        raise end


def interrupt(path: Path, num_whole: int) -> None:
    """Ctrl-C."""
    with pytest.raises(KeyboardInterrupt):
        write_until(path, num_whole, KeyboardInterrupt)


def finish(writer: GGUFWriter, last: str = "c") -> list[str]:
    """Writes what is missing; the tensors that were not."""
    with writer:
        whole = writer.resume()
        for name, size in SIZES.items():
            name = last if name == "c" else name
            if name not in whole:
                writer.write(name, [pattern(size)])
    return whole


@pytest.fixture
def expected(tmp_path: Path) -> bytes:
    assert finish(started(tmp_path / "whole.gguf")) == []
    return (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("num_whole", [0, 1, 2])
def test_goes_on_after_an_interrupt(tmp_path: Path, expected: bytes, num_whole: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the previous file")
    interrupt(path, num_whole)
    assert path.read_bytes() == b"the previous file"
    assert (tmp_path / PART).exists() == (num_whole > 0)
    # Nothing is left of the tensor that was not whole: the user is told how much is kept.
    sizes = list(SIZES.values())
    data = sum(size + -size % 32 for size in sizes[:num_whole])
    header = len(expected) - sum(size + -size % 32 for size in sizes)
    assert bytes_left(path) == (header + data if num_whole else 0)
    assert finish(started(path)) == list(SIZES)[:num_whole]
    assert path.read_bytes() == expected
    assert not (tmp_path / PART).exists()


def test_interrupted_again_and_again(tmp_path: Path, expected: bytes) -> None:
    for num_whole in (1, 1, 2, 3):
        interrupt(tmp_path / "m.gguf", num_whole)
    assert finish(started(tmp_path / "m.gguf")) == list(SIZES)
    assert (tmp_path / "m.gguf").read_bytes() == expected


@pytest.mark.parametrize(
    ("made_from", "key", "last"), [("y", 1, "c"), ("x", 2, "c"), ("x", 1, "d")]
)
def test_other_work_begins_anew(tmp_path: Path, made_from: str, key: int, last: str) -> None:
    finish(started(tmp_path / "whole.gguf", made_from, key, last), last)
    interrupt(tmp_path / "m.gguf", 2)
    writer = started(tmp_path / "m.gguf", made_from, key, last)
    assert writer.resume() == []
    assert writer.left_over
    assert finish(writer, last) == []
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_killed(
    tmp_path: Path, expected: bytes, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk holds when the process ends without a word: all up to the last journal."""
    monkeypatch.setattr(writer_module, "KEEP_BYTES", keep)
    (tmp_path / "other").mkdir()
    with started(tmp_path / "m.gguf") as writer:
        writer.write("a", [pattern(100)])
        writer.write("b", [pattern(5000)])
        shutil.copy(tmp_path / PART, tmp_path / "other" / PART)
        writer.write("c", [pattern(64)])
    with pytest.raises(GGUFError, match="not a GGUF file"):
        GGUFReader(tmp_path / "other" / PART)
    other = started(tmp_path / "other" / "m.gguf")
    assert finish(other) == ([] if keep else ["a", "b"])
    assert (tmp_path / "other" / "m.gguf").read_bytes() == expected


@pytest.mark.parametrize("damage", ["shorter", "empty", "whole", "journal", "beyond"])
def test_a_damaged_part_is_not_believed(tmp_path: Path, expected: bytes, damage: str) -> None:
    interrupt(tmp_path / "m.gguf", 2)
    part = tmp_path / PART
    content = bytearray(part.read_bytes())
    if damage == "shorter":
        content = content[:4000]
    elif damage == "empty":
        content = bytearray()
    elif damage == "whole":
        content = bytearray(expected)
    elif damage == "journal":
        content[:4] = b"GGUF"
    else:
        content[4:12] = struct.pack("<Q", len(content) + 1)
    part.write_bytes(content)
    assert finish(started(tmp_path / "m.gguf")) == []
    assert (tmp_path / "m.gguf").read_bytes() == expected


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_until(tmp_path / "m.gguf", 2, ZeroDivisionError)
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file(tmp_path: Path, expected: bytes) -> None:
    first = started(tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match=r"m\.gguf: is being written by another process"):
        started(tmp_path / "m.gguf")
    assert finish(first) == []
    assert (tmp_path / "m.gguf").read_bytes() == expected


def test_a_writer_that_cannot_go_on_deletes_what_was_left(tmp_path: Path) -> None:
    interrupt(tmp_path / "m.gguf", 2)
    with GGUFWriter(tmp_path / "m.gguf", {}) as writer:
        assert sorted(os.listdir(tmp_path)) == [f".m.gguf.{os.getpid()}.partial"]
        writer.declare("t", (1,), GGMLType.I8)
        writer.write("t", [b"x"])
    assert os.listdir(tmp_path) == ["m.gguf"]
