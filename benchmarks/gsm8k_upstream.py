# SPDX-License-Identifier: Apache-2.0
"""How a real run's own reward model went blind: its accuracy along the run, from its scores.

    python benchmarks/gsm8k_upstream.py gsm8k_policy_shift.jsonl.gz

Rows of `policy`, `question`, `pred_ok` (exact-match truth) and `rm_logit` (the score). A pair is a
right and a wrong answer of one policy to one question; intervals are clustered by question.
"""

import sys
from collections import defaultdict
from pathlib import Path

from metarm.data.rows import read_rows
from metarm.metrics import accuracy_estimate, pair_accuracy


def main(path: Path) -> None:
    answers: defaultdict[str, defaultdict[str, list[tuple[bool, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in read_rows(path):
        answer = (bool(row.value("pred_ok")), row.number("rm_logit"))
        answers[row.text("policy")][row.text("question")].append(answer)
    for policy, questions in answers.items():
        gaps, clusters = [], []
        for question, found in questions.items():
            own = [right - wrong for ok, right in found if ok for no, wrong in found if not no]
            gaps += own
            clusters += [question] * len(own)
        accuracy = accuracy_estimate(pair_accuracy(gaps, [1.0] * len(gaps)), clusters)
        print(f"{policy}: {accuracy}, {len(gaps)} pairs of {accuracy.count} questions")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
