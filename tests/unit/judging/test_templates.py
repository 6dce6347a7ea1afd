# SPDX-License-Identifier: Apache-2.0
"""What judges are asked and what they say: texts stand whole in their place, nothing is guessed."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.errors import ConfigError
from metarm.judging.templates import TEMPLATES, fill_template, load_template, read_verdict
from metarm.schema import prompt_text
from strategies import prompts, texts


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Verdict: A", "first"),
        ("verdict: b.", "second"),
        ("A is longer, B is right.\n\n**Verdict:** B\n", "second"),
        ("## Final verdict: **tie**", "tie"),
        ("Verdict: [[A]]", "first"),
        ("Verdict = response B", "second"),
        ("B", "second"),
        (" tie. ", "tie"),
        ("<think>Verdict: A?</think>Verdict: B", "second"),
        ("Verdict: A\nI say it again.\nVerdict: A", "first"),
        ("", "malformed"),
        ("Verdict: A\nVerdict: B", "malformed"),
        ("Verdict: A or B", "malformed"),
        ("Verdict: C", "malformed"),
        ("Verdict:", "malformed"),
        ("Response A is better.", "malformed"),
        ("A B", "malformed"),
        ("I cannot say that the verdict: A is right", "malformed"),
        ("<think>Verdict: A", "malformed"),
        ("Verdict: \u00e4A", "malformed"),
        ("Verdict: T\u0131E", "malformed"),
        ("Verdict: 0.5", "malformed"),
    ],
)
def test_verdicts_are_read_and_never_guessed(answer: str, verdict: str) -> None:
    assert read_verdict(answer) == verdict


@given(st.text(max_size=200))
def test_text_without_a_choice_is_malformed(answer: str) -> None:
    if read_verdict(answer) != "malformed":
        assert re.search(r"(?<![a-z])(a|b|tie)(?![a-z])", answer, re.IGNORECASE)


@given(texts().filter(lambda text: "think>" not in text), st.sampled_from(["A", "B", "tie"]))
def test_one_line_says_it_whatever_stands_before(reasons: str, choice: str) -> None:
    found = read_verdict(f"{reasons}\nVerdict: {choice}")
    said = {"A": "first", "B": "second", "tie": "tie"}[choice]
    assert found == said or "verdict" in reasons.lower()


def test_long_answers_are_read_in_no_time() -> None:
    assert read_verdict("*" * 200_000 + "x") == "malformed"
    assert read_verdict("verdict" + ":" * 1 + " " * 200_000 + "x") == "malformed"


@pytest.mark.parametrize("name", TEMPLATES)
@given(prompt=prompts(), first=texts(), second=texts())
def test_texts_stand_whole_in_their_own_place(name, prompt, first, second) -> None:
    filled = fill_template(TEMPLATES[name], prompt, first, second)
    (mark,) = set(re.findall(r"^\[(\w{16}) prompt begins\]$", filled, re.MULTILINE))
    for label, text in (("prompt", prompt_text(prompt)), ("response A", first)):
        assert f"[{mark} {label} begins]\n{text}\n[{mark} {label} ends]" in filled
    assert f"\n{second}\n[{mark} response B ends]" in filled


def test_places_in_a_response_are_not_filled() -> None:
    filled = fill_template(TEMPLATES["overall-1"], "p", "{{second}} {{mark}} {{prompt}}", "secret")
    assert filled.count("secret") == 1
    assert "{{second}} {{mark}} {{prompt}}" in filled


def test_the_forms_that_are_asked_for_are_those_that_are_read() -> None:
    for template in TEMPLATES.values():
        forms = [line for line in template.text.splitlines() if line.startswith("Verdict:")]
        assert [read_verdict(form) for form in forms] == ["first", "second", "tie"]


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("{{prompt}} | {{first}} | {{second}}", encoding="utf-8")
    template = load_template(str(path))
    assert fill_template(template, "p", "a", "b") == "p | a | b"
    path.write_text("{{prompt}} / {{first}} / {{second}}", encoding="utf-8")
    assert load_template(str(path)).name != template.name, "another wording has another name"
    path.write_text("{{prompt}} {{first}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape("expected {{second}} in it")):
        load_template(str(path))
    with pytest.raises(ConfigError, match="did you mean 'overall-1'"):
        load_template("overal-1")
