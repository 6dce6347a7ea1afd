# SPDX-License-Identifier: Apache-2.0
"""The file of answers: what was paid for stays, what was cut or changed is no answer."""

from pathlib import Path

import pytest

from metarm.endpoint.answers import Answer, AnswerFile, Spent, TokenBound
from metarm.errors import RunError

ANSWER = Answer("Verdict: A\n\u2028\ud83d", True, 10, 5, "served")


def test_answers_and_what_they_took_survive(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with AnswerFile(path) as file:
        file.keep(file.begin("one", TokenBound(100, 50)), "one", ANSWER)
        file.fail(file.begin("two", TokenBound(100, 50)), "HTTP 500", may_be_billed=False)
        file.fail(file.begin("two", TokenBound(7, 3)), "no answer", may_be_billed=True)
        file.begin("three", TokenBound(1000, 100))  # the process dies here
    with AnswerFile(path) as file:
        assert file.answers == {"one": ANSWER}
        assert file.spent == Spent(calls=4, prompt_tokens=1017, answer_tokens=108)
        number = file.begin("three", TokenBound(1, 1))
        assert number == 4, "numbers are not used twice"
        file.keep(number, "three", Answer("", False, None, None, ""))
    with AnswerFile(path) as file:
        assert file.spent == Spent(calls=5, prompt_tokens=1018, answer_tokens=109)


def test_no_flipped_bit_and_no_cut_changes_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as file:
        for key in ("one", "two"):
            file.keep(file.begin(key, TokenBound(9, 9)), key, ANSWER)
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        for changed in (
            whole[:place],
            whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :],
        ):
            path.write_bytes(changed)
            with AnswerFile(path) as file:
                assert all(answer == ANSWER for answer in file.answers.values())
                assert set(file.answers) <= {"one", "two"}


def test_a_cut_line_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path) as file:
        file.keep(file.begin("one", TokenBound(9, 9)), "one", ANSWER)
    path.write_bytes(path.read_bytes()[:-10])
    with AnswerFile(path) as file:
        assert (file.answers, file.num_damaged) == ({}, 1)
        file.keep(file.begin("one", TokenBound(9, 9)), "one", ANSWER)
    with AnswerFile(path) as file:
        assert file.answers == {"one": ANSWER}


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path), pytest.raises(RunError, match="in use by another process"):
        AnswerFile(path).__enter__()
    with AnswerFile(path) as file:
        assert not file.answers


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="cannot write"):
        AnswerFile(tmp_path / "file" / "answers.jsonl").__enter__()
