"""Labelled files as people have them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.errors import DataError
from bot.labelled import Labelled, read


def written(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8", newline="")
    return file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'label,review\n1,"good, really"\n0,bad\n'),
        ("a.csv", '\ufefflabel,review\r\n1,"good, really"\r\n0,bad\r\n'),
        ("a.csv", 'id,review,label\n7,"good, really",1\n8,bad,0\n'),
        ("a.tsv", "text\tlabel\ngood, really\t1\nbad\t0\n"),
        ("a.txt", "good, really\t1\n\nbad\t0"),
        ("a.jsonl", '{"text": "good, really", "label": 1}\n{"label": "0", "text": "bad"}\n'),
    ],
)
def test_text_and_label_are_found_by_themselves(tmp_path: Path, name: str, content: str) -> None:
    rows = read(written(tmp_path, name, content))
    assert [(row.text, row.label) for row in rows] == [("good, really", "1"), ("bad", "0")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "title,body,mood,stars\nx,hello,+,5\n")
    assert read(file, "body", "stars") == [Labelled(2, "hello", "5")]


def test_columns_without_a_heading_have_numbers(tmp_path: Path) -> None:
    file = written(tmp_path, "a.tsv", "7\thello there\tfine\n")
    assert read(file, "2", "3") == [Labelled(1, "hello there", "fine")]


def test_characters_that_only_look_like_line_ends_stay_in_the_text(tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", "one\x85two\u2028three\t1\nx\t0\n")
    assert read(file)[0].text == "one\x85two\u2028three"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "holds no rows"),
        ("a.csv", "text,label\ngood,1\nbad\n", "row 3: 1 columns where the first row has 2"),
        ("a.csv", "text,label\ngood,1\n,0\n", "row 3: the column text is empty"),
        ("a.csv", 'text,label\n"good,1\n', "row 2"),
        ("a.jsonl", '{"text": "a", "label": 1}\nnope\n', "row 2: not JSON"),
        ("a.jsonl", "[1]\n", "row 1: not a JSON object"),
        ("a.tsv", "good\tbad\n", "--label-column"),
        ("a.csv", "a,b,label\nx,y,1\n", "--text-column"),
    ],
)
def test_a_bad_file_is_one_sentence_with_the_row(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(written(tmp_path, name, content))
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "text,label\ngood,1\n")
    with pytest.raises(DataError, match=r"no column body.*text, label"):
        read(file, "body")


def test_a_file_in_another_encoding_is_refused_with_the_row(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("label,text\n1,fine\n0,差\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"row 3: not UTF-8"):
        read(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read"):
        read(tmp_path / "nowhere.csv")


@given(st.binary())
def test_whatever_a_file_holds_it_is_rows_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        file = tmp_path_factory.getbasetemp() / name
        file.write_bytes(data)
        with contextlib.suppress(DataError):
            assert read(file)
