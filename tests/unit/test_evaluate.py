"""`frontdesk eval`: the figures against counts made by hand, and the command on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bot.cli import app
from bot.errors import DataError, ModelUnavailable
from bot.evaluate import Judged, calibration_error, chosen, fitted_threshold, measure, reliability, truths
from bot.labelled import Labelled
from engine import roles
from engine.types import LabelScores

GLAD, SAD = LABELS = ("正面", "负面")


def judged(*pairs: tuple[str, float]) -> Judged:
    """Pairs of the true label and the odds of the negative one."""
    scores = tuple(LabelScores({GLAD: 1 - odds, SAD: odds}) for _, odds in pairs)
    return Judged(LABELS, tuple(label for label, _ in pairs), scores)


FOUR = judged((SAD, 0.9), (SAD, 0.6), (SAD, 0.2), (GLAD, 0.7), (GLAD, 0.1), (GLAD, 0.1), (GLAD, 0.3), (GLAD, 0.4))


def test_the_figures_are_those_counted_by_hand() -> None:
    figures = measure(FOUR, [1.0, 2.0, 3.0], SAD, 0.8)
    assert figures.n == 8
    assert figures.confusion == [[4, 1], [1, 2]]
    assert figures.accuracy == 6 / 8
    assert figures.per_class[SAD]["precision"] == pytest.approx(2 / 3)
    assert figures.per_class[SAD]["recall"] == pytest.approx(2 / 3)
    assert figures.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert figures.negative_recall_at_threshold == pytest.approx(1 / 3)
    assert figures.latency_ms["p50"] == 2.0


def test_the_calibration_error_is_the_weighted_gap_between_confidence_and_being_right() -> None:
    pair = judged((SAD, 0.95), (GLAD, 0.95), (GLAD, 0.35))
    assert reliability(pair) == [(0.65, 1.0, 1), (0.95, 0.5, 2)]
    assert calibration_error(pair) == pytest.approx(0.35 / 3 + 0.45 * 2 / 3)


def test_a_judge_who_is_always_right_and_sure_is_calibrated() -> None:
    assert calibration_error(judged((SAD, 1.0), (GLAD, 0.0))) == 0


def test_the_fitted_threshold_is_the_lowest_that_is_precise_enough() -> None:
    assert fitted_threshold(FOUR, SAD, 1.0) == (0.9, pytest.approx(1 / 3))
    assert fitted_threshold(FOUR, SAD, 0.6) == (0.6, pytest.approx(2 / 3))


def test_a_precision_that_no_threshold_reaches_gives_none() -> None:
    assert fitted_threshold(judged((GLAD, 0.9), (SAD, 0.8)), SAD, 0.9) is None


def test_balanced_draws_as_many_of_each_label_and_always_the_same() -> None:
    rows = [Labelled(number, "x", "1" if number % 4 else "0") for number in range(100)]
    drawn = chosen(rows, 20, True)
    assert [row.label for row in drawn].count("0") == [row.label for row in drawn].count("1") == 10
    assert drawn == chosen(rows, 20, True)
    assert len(chosen(rows, None, True)) == 50
    assert len(chosen(rows, 7, False)) == 7
    assert chosen(rows, None, False) == rows


@pytest.mark.parametrize(("label", "means"), [("0", SAD), ("NEG", SAD), ("差评", SAD), ("1", GLAD), ("正面", GLAD)])
def test_labels_of_other_peoples_files_are_understood(label: str, means: str) -> None:
    assert truths(Path("f"), [Labelled(1, "x", label)], roles.sentiment(), SAD) == [means]


def test_a_label_that_means_nothing_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match=r"f\.csv, row 9: the label 'meh' is unknown"):
        truths(Path("f.csv"), [Labelled(9, "x", "meh")], roles.sentiment(), SAD)


def test_another_role_takes_its_own_labels_only() -> None:
    assert truths(Path("f"), [Labelled(1, "x", "物流")], roles.intent(), "") == ["物流"]
    with pytest.raises(DataError, match="known are 订单"):
        truths(Path("f"), [Labelled(1, "x", "0")], roles.intent(), "")


def test_the_command_judges_a_file_with_the_bundled_model(tmp_path: Path) -> None:
    file = tmp_path / "moods.csv"
    lines = [
        "这个杯子很漂亮，我很喜欢,1",
        "太差了，再也不买了,0",
        "Works well and looks great,1",
        "It broke after a day,0",
    ]
    file.write_text("\n".join(["text,label", *lines * 10]), encoding="utf-8")
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    command = ["eval", str(file), "--model", "bundled", "--json", str(out), "--plot", str(picture)]
    done = CliRunner().invoke(app, [*command, "--fit-threshold", "0.9", "--config", str(tmp_path / "none.toml")])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["n"], figures["accuracy"], figures["confusion"]) == (40, 1.0, [[20, 0], [0, 20]])
    wanted = {"n", "accuracy", "macro_f1", "negative_recall_at_threshold", "ece", "latency_ms", "confusion"}
    assert wanted <= set(figures)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "macro F1" in done.output
    assert "escalation.threshold = " in done.output


def test_the_bundled_model_tells_what_a_message_is_about(tmp_path: Path) -> None:
    file = tmp_path / "intents.tsv"
    rows = [
        "请给我开发票\t发票",
        "I want my money back for the shoes\t退款",
        "how much is it\t价格",
        "tell me a joke\t其他",
    ]
    file.write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
    out = tmp_path / "out.json"
    command = ["eval", str(file), "--role", "intent", "--model", "bundled", "--json", str(out)]
    done = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "none.toml")])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["accuracy"] == 1.0
    assert figures["negative_recall_at_threshold"] is None


def test_a_model_that_is_not_here_is_not_downloaded_for_an_evaluation_without_saying_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    file = tmp_path / "moods.csv"
    file.write_text("text,label\nfine,1\n", encoding="utf-8")
    done = CliRunner().invoke(
        app, ["eval", str(file), "--model", "some/model", "--config", str(tmp_path / "none.toml")]
    )
    assert isinstance(done.exception, ModelUnavailable)
