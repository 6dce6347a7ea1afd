# SPDX-License-Identifier: Apache-2.0
"""What is logged under meta/: which keys when, and each number worked out again."""

import math
import re

import pytest
import torch

from metarm.data.meta_batches import draw_group_indices
from metarm.models.reward_model import RewardModelScore
from metarm.objectives import bradley_terry_loss, difference_loss
from metarm.training import META_METRICS
from unit.reward_problem import (
    GROUP_SIZE,
    NUM_GROUPS,
    group_rows,
    load_model,
    make_trainer,
)

OF_JOINT = {"meta/J", "meta/grad_norm", "meta/weight", "meta/cosine"}
OF_GUARD = {"meta/strength", "meta/rank_correlation"}
OF_SOURCES = {name for name in META_METRICS if "<source>" in name}
OF_TOKENS = {name for name in META_METRICS if name.startswith("tokens/")}
OF_LOOK_AHEAD = set(META_METRICS) - OF_GUARD - OF_SOURCES - OF_TOKENS - {"meta/weight"}


def _logs(folder, output_dir, **options):
    trainer = make_trainer(folder, output_dir, **options)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("off", set()),
        ("joint", OF_JOINT),
        ("ascent", OF_LOOK_AHEAD),
        ("descent", OF_LOOK_AHEAD),
    ],
)
def test_the_keys_are_those_of_the_table(reward_model_dir, tmp_path, mode, expected):
    for entry in _logs(reward_model_dir, tmp_path, meta_mode=mode, logging_steps=1):
        assert {name for name in entry if name.startswith("meta/")} == expected
        assert set(entry) >= OF_TOKENS


def test_a_guarded_training_logs_the_guard_too(reward_model_dir, tmp_path):
    many = {"meta_dataset": group_rows(60)}
    logs = _logs(reward_model_dir, tmp_path, meta_mode="joint", logging_steps=1, given=many)
    for entry in logs:
        assert {name for name in entry if name.startswith("meta/")} == OF_JOINT | OF_GUARD


@pytest.mark.parametrize("options", [{"logging_steps": 4}, {"logging_steps": 0.5}])
def test_every_log_has_every_key(reward_model_dir, tmp_path, options):
    """Also where the last step before the log is no meta step; J is measured again once a log."""
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        meta_mode="ascent",
        meta_every=2,
        max_steps=8,
        share_prompts=False,
        **options,
    )
    sizes = []
    trainer.model.register_forward_hook(lambda _, __, out: sizes.append(len(out.logits)))
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == 2
    for entry in found:
        assert set(entry) >= OF_LOOK_AHEAD
    # One part of three groups, and one of the fourth.
    assert sizes.count(3 * GROUP_SIZE) == 4 + 2


def _ragged_rows():
    """Groups of three responses and of two."""
    rows = group_rows()
    return [row | {"responses": row["responses"][: 3 - i % 2]} for i, row in enumerate(rows)]


def _mean_difference(groups):
    """Each group weighs the same, whatever its size."""
    return torch.stack([difference_loss(scores.unsqueeze(0)) for scores in groups]).mean()


class _Expected:
    """The first step's quantities, from the untrained model and its own backward passes."""

    def __init__(self, folder, trainer):
        self.model = load_model(folder).eval()
        self.names = [name for name, _ in self.model.named_parameters()]
        rows = _ragged_rows()
        self.groups = [rows[i] for i in draw_group_indices(NUM_GROUPS, 4, step=0, seed=42)]
        self.encoder = trainer._encoder
        self.batch = trainer.seen

    def scores(self):
        """By the score function, one response at a time; a tensor for each group."""
        score = RewardModelScore(self.model, self.encoder, batch_size=1)
        return [
            torch.tensor(score([group["prompt"]] * len(group["responses"]), group["responses"]))
            for group in self.groups
        ]

    def gradient(self, loss):
        self.model.zero_grad()
        loss().backward()
        return [p.grad.clone().double() for p in self.model.parameters()]

    def difference(self):
        return _mean_difference(
            [
                torch.stack([self._logit(group["prompt"], r) for r in group["responses"]])
                for group in self.groups
            ]
        )

    def _logit(self, prompt, response):
        row = torch.tensor([self.encoder.encode(prompt, response)])
        return self.model(row, use_cache=False).logits[0, 0]

    def preference(self):
        logits = self.model(**self.batch, use_cache=False).logits.squeeze(-1)
        return bradley_terry_loss(*logits.chunk(2))

    def move(self, gradient, step):
        with torch.no_grad():
            for parameter, along in zip(self.model.parameters(), gradient, strict=True):
                parameter.add_(along.float(), alpha=step)


def _dot(first, second):
    return sum((a * b).sum().item() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("mode", "sign"), [("ascent", 1.0), ("descent", -1.0), ("joint", 0.0)])
def test_the_numbers_are_right(reward_model_dir, tmp_path, mode, sign):
    length = 0.05
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        given={"meta_dataset": _ragged_rows()},
        meta_mode=mode,
        meta_step_length=length,
        max_steps=1,
    )
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: trainer.__dict__.setdefault("seen", collate(rows))
    trainer.train()
    logged = trainer.state.log_history[0]
    expected = _Expected(reward_model_dir, trainer)
    before = expected.scores()
    along = expected.gradient(expected.difference)
    norm = math.sqrt(_dot(along, along))
    assert logged["meta/J"] == pytest.approx(_mean_difference(before).item(), abs=1e-6)
    assert logged["meta/grad_norm"] == pytest.approx(norm, rel=1e-4)
    expected.move(along, sign * length / norm)
    taken = expected.gradient(expected.preference)
    cosine = _dot(along, taken) / (norm * math.sqrt(_dot(taken, taken)))
    assert logged["meta/cosine"] == pytest.approx(cosine, abs=1e-4)
    assert logged["loss"] == pytest.approx(expected.preference().item(), rel=1e-5)
    if mode == "joint":
        return
    after = expected.scores()
    change = (_mean_difference(after) - _mean_difference(before)).item()
    assert sign * change > 0
    assert logged["meta/move_length"] == pytest.approx(length, rel=1e-5)
    assert logged["meta/move_realised_fraction"] == pytest.approx(1.0, abs=1e-5)
    assert logged["meta/J_change"] == pytest.approx(change, abs=1e-6)
    assert logged["meta/J_after"] == pytest.approx(_mean_difference(after).item(), abs=1e-6)
    moved = (torch.cat(after) - torch.cat(before)).abs().mean().item()
    assert logged["meta/score_change_mean"] == pytest.approx(moved, rel=1e-3)


def test_the_cosine_tells_whether_preferences_lower_j(reward_model_dir, tmp_path):
    """A small step down L lowers J where it is above 0, and raises it where it is below."""
    signs = set()
    for seed in range(6):
        options = {"meta_mode": "joint", "meta_weight": 0.0, "learning_rate": 1e-3, "seed": seed}
        trainer = make_trainer(reward_model_dir, tmp_path, max_steps=1, **options)
        trainer.train()
        cosine = trainer.state.log_history[0]["meta/cosine"]
        with torch.no_grad():
            change = (
                trainer._now.measured.difference().item() - trainer.state.log_history[0]["meta/J"]
            )
        assert math.copysign(1, cosine) == -math.copysign(1, change)
        signs.add(math.copysign(1, cosine))
    assert signs == {-1.0, 1.0}


def test_the_guide_explains_each_metric(repository):
    page = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    table = dict(
        re.findall(r"^\| `((?:meta|tokens)/[\w<>]+)` \| (.+?) \|$", page, flags=re.MULTILINE)
    )
    assert table == {name: text.replace("|", "\\|") for name, text in META_METRICS.items()}
