"""Where a model's files are, and how they come here. Imports neither torch nor transformers.

A hub id is kept in the Hugging Face cache, in its published layout (blobs, snapshots, refs), so that other programs
find the model too. The download is our own: huggingface_hub 2.4 throws a partial file away when it is interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from bot.errors import ModelUnavailable
from engine import bundled

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

BUNDLED = "bundled"
PINNED = {"Qwen/Qwen1.5-0.5B-Chat": "4d14e384a4b037942bb3f3016665157c8bcb70ea"}
"""The revision meant when none is named; docs/decisions/0001-chat-model.md. Other models: their main branch."""

REACH_SECONDS = 3.0
STALL_SECONDS = 30.0
ATTEMPTS = 5
CHUNK = 1 << 20
INDEX = "model.safetensors.index.json"
SMALL_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    INDEX,
}

Progress = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes in all."""

T = TypeVar("T")


def resolve(model: str, revision: str = "") -> Path | None:
    """The directory with the files of `model`: a hub id, a local directory or "bundled". Never asks the network.

    None when a hub id is not, or not wholly, in the cache. Raises ModelUnavailable when a local directory lacks a file,
    when weights are damaged, and when `model` is none of the three.
    """
    if model == BUNDLED:
        return bundled.PATH
    if _is_directory(model):
        return _whole(Path(model).expanduser())
    snapshot = _cached(model, revision)
    return _whole(snapshot) if snapshot and not _missing(snapshot) else None


def weights(path: Path) -> list[Path]:
    """The safetensors files in a model's directory, as its index names them. Raises ModelUnavailable."""
    index = path / INDEX
    if not index.exists():
        return [path / "model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(index, error) from None
    return [path / name for name in sorted(names)]


def size_on_disk(path: Path) -> int:
    """Bytes of the files in a model's directory that are read when it is loaded."""
    return sum(file.stat().st_size for file in path.iterdir() if _wanted(file.name))


def _is_directory(model: str) -> bool:
    return model.startswith((".", "~")) or Path(model).is_absolute() or Path(model).is_dir()


def _wanted(name: str) -> bool:
    return name in SMALL_FILES or ("/" not in name and name.startswith("model") and name.endswith(".safetensors"))


def _missing(path: Path) -> str | None:
    if not (path / "config.json").is_file():
        return "config.json"
    absent = next((file.name for file in weights(path) if not file.is_file()), None)
    if absent:
        return absent
    has_tokenizer = (path / "tokenizer.json").is_file() or (path / "vocab.json").is_file()
    return None if has_tokenizer else "tokenizer.json"


def _whole(path: Path) -> Path:
    from safetensors import SafetensorError, safe_open

    if not path.is_dir():
        raise ModelUnavailable(
            f"engine.model names the directory {path}, which does not exist: correct it, "
            'or use a hub id such as "Qwen/Qwen1.5-0.5B-Chat" or "bundled"'
        )
    if missing := _missing(path):
        raise ModelUnavailable(f"{path} has no {missing}: a model is config.json, a tokenizer and safetensors weights")
    for file in weights(path):
        try:
            with safe_open(file, framework="numpy"):  # opening compares the header with the size of the file
                pass
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
    return path


def _damaged(file: Path, error: Exception) -> ModelUnavailable:
    return ModelUnavailable(
        f"{file} is damaged ({_reason(error)}): run `frontdesk model pull`, which replaces it, or copy the file again"
    )


def _cached(model: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json", revision=_revision(model, revision))
    except HFValidationError:
        raise ModelUnavailable(
            f'engine.model = "{model}" is neither a directory nor a hub id: '
            'use one such as "Qwen/Qwen1.5-0.5B-Chat", a directory, or "bundled"'
        ) from None
    return Path(config).parent if isinstance(config, str) else None


def _revision(model: str, revision: str) -> str:
    return revision or PINNED.get(model, "main")


# -- download --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """One file on the hub. `blob` is its name in the cache and its checksum: SHA-256, git's SHA-1 of a small file."""

    name: str
    size: int
    blob: str
    large: bool

    def matches(self, path: Path) -> bool:
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.large else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        with path.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest() == self.blob


def pull(model: str, revision: str = "", progress: Progress | None = None) -> Path:
    """Bring the files of a hub id into the cache and return their directory; what is there already is checked and kept.

    `progress` is called first with the total. An interrupted download is taken up where it ended. HF_ENDPOINT names a
    mirror, HF_HOME the cache's place. Local directories and "bundled" need no download and are resolved.
    Raises ModelUnavailable; within five seconds of the program's start when the hub does not answer.
    """
    if model == BUNDLED or _is_directory(model):
        return resolve(model) or bundled.PATH
    _cached(model, revision)  # refuses what is no hub id
    commit, files = _ask_hub(model, _revision(model, revision))
    folder = _cache() / f"models--{model.replace('/', '--')}"
    _download(model, commit, files, folder / "blobs", progress or (lambda done, total: None))
    return _whole(_link(folder, _revision(model, revision), commit, files))


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _ask_hub(model: str, revision: str) -> tuple[str, list[_File]]:
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return _within(REACH_SECONDS, lambda: _listing(model, revision))
    except RepositoryNotFoundError:
        raise ModelUnavailable(
            f"{constants.ENDPOINT} has no model {model}, or it is private: correct engine.model"
        ) from None
    except RevisionNotFoundError:
        raise ModelUnavailable(
            f"{model} has no revision {revision} on {constants.ENDPOINT}: correct engine.revision"
        ) from None
    except (httpx2.HTTPError, OSError, ValueError, TypeError) as error:
        raise ModelUnavailable(
            f"{model} is not on this disk and {constants.ENDPOINT} cannot be asked for it ({_reason(error)}): "
            "run `frontdesk model pull` when it can, set HF_ENDPOINT to a mirror, "
            'or set engine.model to a local directory or "bundled"'
        ) from None


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or TimeoutError: looking a name up obeys no time-out of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(timeout=seconds)


def _listing(model: str, revision: str) -> tuple[str, list[_File]]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=REACH_SECONDS)
    files = [_file(sibling) for sibling in info.siblings or () if _wanted(sibling.rfilename)]
    if not any(file.name.endswith(".safetensors") for file in files):
        raise ModelUnavailable(f"{model} has no safetensors weights, and no others are loaded: choose another model")
    if not info.sha:
        raise ValueError("the answer names no commit")
    return info.sha, files


def _file(sibling: RepoSibling) -> _File:
    blob = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if blob is None or sibling.size is None:
        raise ValueError("the answer names no sizes and checksums")
    return _File(sibling.rfilename, sibling.size, blob, large=sibling.lfs is not None)


def _download(model: str, commit: str, files: list[_File], blobs: Path, progress: Progress) -> None:
    import httpx2
    from huggingface_hub import hf_hub_url

    blobs.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in files)
    absent = [file for file in files if not file.matches(blobs / file.blob)]
    done = total - sum(file.size for file in absent)
    progress(done, total)
    _refuse_full_disk(blobs, total - done)
    try:
        for file in absent:
            url = hf_hub_url(model, file.name, revision=commit)
            _fetch(url, file, blobs, lambda here, before=done: progress(before + here, total))  # type: ignore[misc]
            done += file.size
    except (httpx2.HTTPError, OSError) as error:
        raise ModelUnavailable(
            f"the download of {model} stopped ({_reason(error)}): run `frontdesk model pull` again, "
            "it continues where this one ended"
        ) from None


def _refuse_full_disk(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ModelUnavailable(
            f"the model needs {needed / 1e9:.1f} GB in {directory}, where {free / 1e9:.1f} GB are free: "
            "make room, or set HF_HOME to a larger disk"
        )


def _fetch(url: str, file: _File, blobs: Path, report: Callable[[int], None]) -> None:
    """Complete blobs/NAME.incomplete, however often the connection breaks, and rename it once it is proved whole."""
    import httpx2

    part = blobs / f"{file.blob}.incomplete"
    part.touch()
    stalls = 0
    while (here := part.stat().st_size) < file.size:
        with contextlib.suppress(httpx2.TransportError):  # what counts is whether any bytes came
            _stream(url, part, here, report)
        stalls = 0 if part.stat().st_size > here else stalls + 1
        if stalls == ATTEMPTS:
            raise OSError(f"nothing more of {file.name} arrives")
        time.sleep(min(stalls, 1))
    if not file.matches(part):
        part.unlink()
        raise OSError(f"{file.name} arrived damaged")
    part.replace(blobs / file.blob)


def _stream(url: str, part: Path, here: int, report: Callable[[int], None]) -> None:
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported lazily

    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={here}-"}
    with get_session().stream("GET", url, headers=headers, timeout=STALL_SECONDS) as response:
        hf_raise_for_status(response)
        with part.open("ab" if response.status_code == 206 else "wb") as target:
            for chunk in response.iter_bytes(CHUNK):
                target.write(chunk)
                report(target.tell())


def _link(folder: Path, revision: str, commit: str, files: list[_File]) -> Path:
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in files:
        pointer = snapshot / file.name
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(Path("..", "..", "blobs", file.blob))
        except OSError:  # Windows without the right to make links
            shutil.copyfile(folder / "blobs" / file.blob, pointer)
    if revision != commit:
        reference = folder / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")
    return snapshot


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
