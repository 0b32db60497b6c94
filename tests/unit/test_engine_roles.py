import subprocess
import sys

import pytest

from engine import roles

HEAVY = ("torch", "transformers", "huggingface_hub", "numpy")


@pytest.mark.parametrize("module", ["engine.roles", "engine.types", "engine.load", "engine.history", "engine.bundled"])
def test_the_light_parts_of_the_engine_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_reply_role_knows_the_business_and_numbers_its_facts() -> None:
    system = roles.reply("蓝杯咖啡", "社区咖啡店", ["营业 8:00 到 18:00", "Latte 30 元"]).system
    assert "蓝杯咖啡" in system
    assert "社区咖啡店" in system
    assert "1. 营业 8:00 到 18:00\n2. Latte 30 元\n" in system


def test_without_a_business_the_reply_role_still_says_what_to_do() -> None:
    system = roles.reply().system
    assert "this shop" in system
    assert "Facts" not in system
    assert "do not know" in system
    assert "call a person" in system


def test_a_fact_stays_on_its_own_line() -> None:
    assert "\n1. open daily 9 to 5\n" in roles.reply(facts=["open daily\n\n 9 to 5 "]).system


def test_the_prefix_of_a_role_is_the_same_every_time() -> None:
    assert roles.reply("A", "b", ["c"]) == roles.reply("A", "b", ["c"])
    assert roles.sentiment() == roles.sentiment()


def test_the_owner_decides_how_replies_are_drawn() -> None:
    role = roles.reply("A", temperature=0.2, repetition_penalty=1.1, max_new_tokens=9)
    assert (role.temperature, role.repetition_penalty, role.max_new_tokens) == (0.2, 1.1, 9)


@pytest.mark.parametrize("role", [roles.sentiment(("好", "坏")), roles.intent(("好", "坏"))])
def test_a_label_role_names_its_labels_and_takes_the_text_once(role: roles.LabelRole) -> None:
    assert "好、坏" in role.system
    assert role.prompt.count("{text}") == 1
    assert role.labels == ("好", "坏")


def test_keywords_are_extracted_greedily() -> None:
    assert roles.keywords().temperature == 0
