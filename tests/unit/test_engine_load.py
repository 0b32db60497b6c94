import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from bot.errors import ModelUnavailable
from engine import bundled, load
from engine.model import read
from engine.quantize import fp32_linear

Change = Callable[[Path], object]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled.PATH, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refusal(action: Callable[[], object]) -> str:
    """The sentence of the ModelUnavailable that `action` raises."""
    with pytest.raises(ModelUnavailable) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def cached(cache: Path, model: Path, commit: str, ref: str = "") -> Path:
    repository = cache / "models--shop--tiny"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(model, snapshot)
    if ref:
        (repository / "refs").mkdir()
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def test_bundled_and_directories_resolve_to_their_path(model: Path) -> None:
    assert load.resolve("bundled") == bundled.PATH
    assert load.resolve(str(model)) == model


def test_a_hub_id_resolves_to_its_cached_revision(cache: Path, model: Path) -> None:
    snapshot = cached(cache, model, "a" * 40, ref="main")
    assert load.resolve("shop/tiny") == snapshot
    assert load.resolve("shop/tiny", "main") == snapshot
    assert load.resolve("shop/tiny", "a" * 40) == snapshot
    assert load.resolve("shop/tiny", "b" * 40) is None


def test_a_model_that_is_not_cached_or_only_in_part_is_not_there(cache: Path, model: Path) -> None:
    assert load.resolve("shop/tiny") is None
    snapshot = cached(cache, model, "a" * 40, ref="main")
    (snapshot / "model.safetensors").unlink()
    assert load.resolve("shop/tiny") is None


def test_the_default_model_means_its_pinned_revision(cache: Path, model: Path) -> None:
    name, commit = next(iter(load.PINNED.items()))
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    shutil.copytree(model, snapshot)
    assert load.resolve(name) == snapshot


def test_size_on_disk_counts_what_is_loaded(model: Path) -> None:
    before = load.size_on_disk(model)
    (model / "pytorch_model.bin").write_bytes(b"x" * 1000)
    assert load.size_on_disk(model) == before > (model / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_directory_that_lacks_a_file_is_refused_with_its_name(model: Path, name: str) -> None:
    (model / name).unlink()
    sentence = refusal(lambda: load.resolve(str(model)))
    assert f"{model} has no {name}" in sentence


def test_a_missing_shard_is_named(model: Path) -> None:
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(shards))
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    assert "has no model-2.safetensors" in refusal(lambda: load.resolve(str(model)))


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: load.resolve(str(tmp_path / "nowhere")))


def test_what_is_neither_hub_id_nor_directory_is_refused() -> None:
    assert "neither a directory nor a hub id" in refusal(lambda: load.resolve("not a model!"))


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights_are_refused_with_the_name_of_the_file(model: Path, cache: Path, keep: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is damaged" in refusal(lambda: load.resolve(str(model)))
    snapshot = cached(cache, model, "a" * 40, ref="main")
    assert f"{snapshot / 'model.safetensors'} is damaged" in refusal(lambda: load.resolve("shop/tiny"))


def test_a_damaged_index_is_refused(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{")
    assert "index.json is damaged" in refusal(lambda: load.resolve(str(model)))


# -- reading what was found ------------------------------------------------------------------------


def test_reading_reports_its_progress_from_zero_to_one(model: Path) -> None:
    shares: list[float] = []
    read(model, fp32_linear, shares.append)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)
    assert len(shares) > 10


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}))


def _drop_a_tensor(model: Path) -> None:
    with safe_open(model / "model.safetensors", framework="pt") as weights:
        kept = {name: weights.get_tensor(name) for name in weights.keys() if name != "model.norm.weight"}  # noqa: SIM118 - no mapping
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


BROKEN: list[tuple[Change, str]] = [
    (lambda model: _rewrite(model / "config.json", model_type="llama"), "do not fit each other"),
    (lambda model: (model / "config.json").write_text("{"), "config.json cannot be read"),
    (_drop_a_tensor, "lack model.norm.weight"),
    (lambda model: _rewrite(model / "config.json", hidden_size=32, num_attention_heads=2), "cannot be loaded"),
    (lambda model: _rewrite(model / "tokenizer_config.json", chat_template=None), "no chat template"),
    (lambda model: (model / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    (lambda model: (model / "model.safetensors").write_bytes(b"\0" * 100), "cannot be loaded"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_what_cannot_be_served_is_refused_in_one_sentence(model: Path, change: Change, words: str) -> None:
    change(model)
    sentence = refusal(lambda: read(model, fp32_linear, lambda share: None))
    assert words in sentence
    assert str(model) in sentence


def test_a_tokenizer_of_another_model_is_refused(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    extra = {**tokenizer["added_tokens"][-1], "id": 8000, "content": "<|extra|>"}
    _rewrite(model / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], extra])
    assert "belong to two models" in refusal(lambda: read(model, fp32_linear, lambda share: None))
