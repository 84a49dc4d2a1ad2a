"""Reading the tensors of a Hugging Face checkpoint, a few rows at a time.

The safetensors format is an 8-byte little-endian length, a JSON header of that length
(name -> dtype, shape, data_offsets) and the tensors' bytes. Rows are read into buffers rather than
mapped, so that a checkpoint of any size needs memory for the rows in hand only.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rillm.closing import Closing
from rillm.prepare.errors import PrepareError

MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors package

# BF16 has no numpy type: its bits are read as uint16.
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of the checkpoint lies."""

    file: str  # name of the shard
    dtype: str  # safetensors' spelling: "BF16", "F16", ...
    shape: tuple[int, ...]
    offset: int  # in the shard, bytes


class Checkpoint(Closing):
    """The configuration and tensors of a checkpoint directory.

    Raises PrepareError where the directory is no complete safetensors checkpoint. Safe to read
    from several threads.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise PrepareError(f"{self.directory}: no such folder; give a checkpoint's directory")
        self.config: dict[str, Any] = read_json(self.directory / "config.json")
        self.tensors: dict[str, StoredTensor] = {}
        for path in _shards(self.directory):
            for name, tensor in _read_header(path).items():
                if name in self.tensors:
                    other = self.tensors[name].file
                    raise PrepareError(f"{path}: {name} is also in {other}; remove a stale shard")
                self.tensors[name] = tensor
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def dtype(self, name: str) -> np.dtype[Any]:
        """The numpy type of a tensor; PrepareError for a type that is no plain float."""
        tensor = self.tensors[name]
        if tensor.dtype not in _DTYPES:
            raise PrepareError(
                f"{self.directory / tensor.file}: {name} is {tensor.dtype}; only F32, F16 and BF16 "
                "weights are converted, get the checkpoint before its quantisation"
            )
        return _DTYPES[tensor.dtype]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop of a tensor; BF16 comes as the uint16 bits.

        Raises PrepareError where the shard cannot be read.
        """
        tensor, dtype = self.tensors[name], self.dtype(name)
        path = self.directory / tensor.file
        row_bytes = int(np.prod(tensor.shape[1:], dtype=np.int64)) * dtype.itemsize
        buffer = bytearray((stop - start) * row_bytes)
        view, position = memoryview(buffer), tensor.offset + start * row_bytes
        try:
            descriptor = self._open(tensor.file)
            while view:
                count = os.preadv(descriptor, [view], position)
                if count == 0:
                    raise PrepareError(f"{path}: ends inside {name}; fetch the file again")
                view, position = view[count:], position + count
        except OSError as error:
            raise PrepareError(f"{path}: cannot read {name}: {error.strerror}") from error
        return np.frombuffer(buffer, dtype).reshape((stop - start, *tensor.shape[1:]))

    def _open(self, file: str) -> int:
        with self._lock:
            if file not in self._files:
                self._files[file] = os.open(self.directory / file, os.O_RDONLY)
            return self._files[file]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises PrepareError where it is missing or is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PrepareError(f"{path} is missing; is this a whole Hugging Face checkpoint?") from None
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # broken JSON or UTF-8
        raise PrepareError(f"{path}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise PrepareError(f"{path}: expected a JSON object; fetch the file again")
    return value


def _shards(directory: Path) -> Sequence[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise PrepareError(f"{index}: has no weight_map; fetch the file again")
        paths = [directory / str(name) for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise PrepareError(
                f"{directory}: {missing[0]} is missing ({len(missing)} of {len(paths)} shards); "
                "fetch the checkpoint again"
            )
        return paths
    found = sorted(directory.glob("*.safetensors"))
    if found:
        return found
    suffixes = (".bin", ".pt", ".pth")
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in suffixes)
    if pickles:
        raise PrepareError(
            f"{directory}: {pickles[0]} is a pickle, which can run any code when it is opened; "
            "get the model's safetensors files instead"
        )
    raise PrepareError(f"{directory}: no *.safetensors files; fetch the checkpoint's weights")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    def bad(what: str) -> PrepareError:
        return PrepareError(f"{path}: {what}; fetch the file again")

    try:
        file_size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_size < 8 or length > min(file_size - 8, MAX_HEADER_BYTES):
                raise bad("not a safetensors file, or cut short")
            text = file.read(length)
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text)
    except ValueError:
        raise bad("its header is not JSON") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    data_start = 8 + length
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise bad(f"{name} has a malformed header entry") from None
        if min((*shape, begin), default=0) < 0 or not begin <= end <= file_size - data_start:
            raise bad(f"{name} lies outside the file")
        known = _DTYPES.get(dtype)
        if known and end - begin != int(np.prod(shape, dtype=np.int64)) * known.itemsize:
            raise bad(f"{name} has {end - begin} bytes, which is not {dtype} of shape {shape}")
        tensors[name] = StoredTensor(path.name, dtype, shape, data_start + begin)
    return tensors
