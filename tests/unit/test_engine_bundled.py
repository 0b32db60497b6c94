import json
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine import bundled
from engine.bundled.make import make

ROOT = Path(__file__).parents[2]
QWEN = ROOT / "../shared/qwen1.5-0.5b-chat"
MADE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def test_the_bundled_model_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    make(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(MADE)
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (bundled.PATH / name).read_bytes(), name


def test_the_bundled_model_is_small() -> None:
    assert sum((bundled.PATH / name).stat().st_size for name in MADE) < 2_000_000


def test_config_and_card_say_that_the_weights_are_random() -> None:
    assert bundled.is_random()
    assert "weights are random" in (bundled.PATH / "card.md").read_text(encoding="utf-8")


def test_every_file_of_the_bundled_model_is_package_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package_data = project["tool"]["setuptools"]["package-data"]
    globs = [*package_data.get("engine.bundled", []), *package_data.get("*", [])]
    files = [file.name for file in bundled.PATH.iterdir() if file.is_file() and file.suffix != ".py"]
    assert all(any(fnmatch(name, glob) for glob in globs) for name in files)


def test_the_label_words_are_single_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled.PATH)
    words = json.loads((bundled.PATH / "words.json").read_text(encoding="utf-8"))["labels"]
    for label in " ".join(words).split():
        assert len(tokenizer.encode(label)) == 1


def test_qwens_special_tokens_come_after_the_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled.PATH)
    config = json.loads((bundled.PATH / "config.json").read_text(encoding="utf-8"))
    assert tokenizer.get_added_vocab() == {"<|endoftext|>": 2045, "<|im_start|>": 2046, "<|im_end|>": 2047}
    assert config["vocab_size"] == len(tokenizer)
    assert config["eos_token_id"] == tokenizer.eos_token_id == 2047


@pytest.mark.skipif(not QWEN.is_dir(), reason="the real Qwen tokenizer is not on this machine")
@pytest.mark.parametrize("speakers", [["user"], ["system", "user"], ["system", "user", "assistant", "user", "user"]])
def test_the_chat_template_renders_what_qwens_own_renders(speakers: list[str]) -> None:
    messages = [{"role": speaker, "content": f" 第{number} line\n"} for number, speaker in enumerate(speakers)]
    ours, theirs = (
        AutoTokenizer.from_pretrained(path).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for path in (bundled.PATH, QWEN)
    )
    assert ours == theirs


@pytest.mark.skipif(not QWEN.is_dir(), reason="the real Qwen tokenizer is not on this machine")
def test_text_is_split_as_qwen_splits_it() -> None:
    text = "I'll pay 1234 元,\r\n  ok?  好的…  don't!!\n\n"
    ours, theirs = (
        AutoTokenizer.from_pretrained(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        for path in (bundled.PATH, QWEN)
    )
    assert ours == theirs
