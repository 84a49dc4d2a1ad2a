"""POST /slots/{id}?action=save|restore|erase: keys and values of a prefix, kept in a file.

What a slot held lies in the prefix cache, where any sequence may find it. Saving copies it from
there into a file; restoring puts it back into the cache, so that the next prompt that begins alike
need not be computed, also after a restart.

File: "RILLMKV1", a JSON header's length (uint32) and the header, token ids (int32), then the cache
blocks, each of block_bytes. Only a server with the same model and cache settings takes it back.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import time
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rillm.engine.engine import Engine
from rillm.engine.sequence import Sequence
from rillm.server.errors import ApiError, FieldError
from rillm.server.json_io import JSONReply, read_object
from rillm.server.service import Service
from rillm.server.slots import Slot
from rillm.server.state import service_for, state_of

_MAGIC = b"RILLMKV1"
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")


@dataclass(slots=True)
class _Prefix:
    """Tokens and the cache blocks that hold them; the last block may be begun only."""

    token_ids: array[int]
    blocks: list[bytes | bytearray]


async def slot_action(request: Request) -> Response:
    """Saves, restores or erases a slot."""
    folder = state_of(request).config.slot_save_path
    if folder is None:
        raise ApiError(
            501, "This server does not support slots action. Start it with `--slot-save-path`"
        )
    action = request.query_params.get("action", "")
    body = await read_object(request) if action in ("save", "restore") else {}
    service = await service_for(request, body)
    slot = _slot(service, request.path_params["slot_id"])
    if slot.ticket is not None:
        raise ApiError(503, f"slot {slot.slot_id} is busy")
    if action == "erase":
        num_erased = len(slot.token_ids)
        slot.token_ids = array("i")
        return JSONReply({"id_slot": slot.slot_id, "n_erased": num_erased})
    if action not in ("save", "restore"):
        raise FieldError("action", "must be save, restore or erase")
    filename = body.get("filename")
    if not isinstance(filename, str) or not _is_plain(filename):
        raise FieldError("filename", "Invalid filename: a plain name is needed, without folders")
    act = _save if action == "save" else _restore
    return JSONReply(await act(service, slot, Path(folder), filename))


def _slot(service: Service, text: str) -> Slot:
    slots = service.slots.slots
    if not (text.isdecimal() and len(text) < 10 and int(text) < len(slots)):
        raise FieldError("id_slot", f"{text!r:.20} is not a slot: they are 0 to {len(slots) - 1}")
    return slots[int(text)]


def _is_plain(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not name.startswith(".") and name == name.strip()


async def _save(service: Service, slot: Slot, folder: Path, filename: str) -> dict[str, Any]:
    started = time.perf_counter()
    wanted = slot.token_ids
    prefix = await asyncio.wrap_future(
        service.engine.thread.call(lambda engine: _read_blocks(service, engine, wanted))
    )
    num_written = await asyncio.to_thread(_write_file, service, folder, filename, prefix)
    return {
        "id_slot": slot.slot_id,
        "filename": filename,
        "n_saved": len(prefix.token_ids),
        "n_written": num_written,
        "timings": {"save_ms": 1000 * (time.perf_counter() - started)},
    }


async def _restore(service: Service, slot: Slot, folder: Path, filename: str) -> dict[str, Any]:
    started = time.perf_counter()
    prefix, num_read = await asyncio.to_thread(_read_file, service, folder, filename)
    await asyncio.wrap_future(
        service.engine.thread.call(lambda engine: _write_blocks(service, engine, prefix))
    )
    slot.token_ids = prefix.token_ids
    return {
        "id_slot": slot.slot_id,
        "filename": filename,
        "n_restored": len(prefix.token_ids),
        "n_read": num_read,
        "timings": {"restore_ms": 1000 * (time.perf_counter() - started)},
    }


# ---- in the engine's thread, between two steps -------------------------------------------


def _read_blocks(service: Service, engine: Engine, token_ids: array[int]) -> _Prefix:
    """What the cache still holds of these tokens."""
    match = engine.blocks.match_prefix(_sequence(token_ids))
    cache = service.loaded.model.kv_cache
    num_tokens = len(match.blocks) * engine.blocks.block_size + match.num_partial_tokens
    blocks: list[bytes | bytearray] = [cache.read(block) for block in match.blocks]
    if match.num_partial_tokens:
        blocks.append(cache.read(match.partial_block))
    return _Prefix(token_ids[:num_tokens], blocks)


def _write_blocks(service: Service, engine: Engine, prefix: _Prefix) -> None:
    """Puts a prefix into the cache, as if it had just been computed."""
    if not prefix.token_ids:
        return
    sequence = _sequence(prefix.token_ids)
    match = engine.blocks.match_prefix(sequence)
    # Others may need a block in the next step: the last ones stay theirs.
    if not engine.blocks.allocate(sequence, match, reserve=len(engine.scheduler.running)):
        raise ApiError(503, "the cache has no room for it now")
    is_written = False
    try:
        cache = service.loaded.model.kv_cache
        for index in range(len(match.blocks), len(prefix.blocks)):
            cache.write(sequence.block_table[index], prefix.blocks[index])
        sequence.num_computed_tokens = len(prefix.token_ids)
        is_written = True
    finally:
        engine.blocks.free(sequence, keep=is_written)


def _sequence(token_ids: array[int]) -> Sequence:
    # The last token of a sequence is never looked for in the cache: add one.
    return Sequence(-1, [*token_ids, 0])


# ---- files -------------------------------------------------------------------------------


def _header(service: Service) -> dict[str, Any]:
    """What has to agree for blocks to be taken back."""
    loaded = service.loaded
    digest = blake2b(digest_size=16)
    for name, tensor in loaded.reader.tensors.items():
        digest.update(f"{name} {tensor.shape} {tensor.type}".encode())
        digest.update(tensor.data[:256])
    return {
        "model": digest.hexdigest(),
        "cache_type": service.config.cache_type,
        "block_size": loaded.cache_plan.block_size,
        "block_bytes": loaded.model.cache_block_bytes,
    }


def _write_file(service: Service, folder: Path, filename: str, prefix: _Prefix) -> int:
    header = json.dumps({**_header(service), "num_tokens": len(prefix.token_ids)}).encode()
    temporary = folder / f".{filename}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            file.write(_MAGIC + struct.pack("<I", len(header)) + header)
            file.write(prefix.token_ids.tobytes())
            for block in prefix.blocks:
                file.write(block)
            num_written = file.tell()
        os.replace(temporary, folder / filename)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ApiError(500, f"{filename} cannot be written: {error.strerror}") from None
    return num_written


def _read_file(service: Service, folder: Path, filename: str) -> tuple[_Prefix, int]:
    expected = _header(service)
    wrong = FieldError("filename", f"{filename} is not a saved slot, or it is damaged")
    try:
        descriptor = os.open(folder / filename, os.O_RDONLY | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            start = file.read(len(_MAGIC) + 4)
            if len(start) < len(_MAGIC) + 4 or not start.startswith(_MAGIC):
                raise wrong
            (header_size,) = struct.unpack("<I", start[len(_MAGIC) :])
            if header_size > 4096:
                raise wrong
            header = json.loads(file.read(header_size))
            num_tokens = header.pop("num_tokens")
            if header != expected:
                raise FieldError("filename", f"{filename} was saved with another model or cache")
            num_blocks = -(-num_tokens // expected["block_size"])
            body_size = 4 * num_tokens + num_blocks * expected["block_bytes"]
            if num_tokens < 0 or size != len(start) + header_size + body_size:
                raise wrong
            token_ids = array("i", file.read(4 * num_tokens))
            blocks: list[bytes | bytearray] = [
                file.read(expected["block_bytes"]) for _ in range(num_blocks)
            ]
    except OSError as error:
        raise FieldError("filename", f"{filename} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise wrong from None
    vocab_size = service.loaded.engine.vocab_size
    if any(not 0 <= token < vocab_size for token in token_ids):
        raise wrong
    return _Prefix(token_ids, blocks), size
