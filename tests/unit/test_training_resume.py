# SPDX-License-Identifier: Apache-2.0
"""A training stopped at any step ends bit for bit as one that was not, in log and weights."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, TrainerCallback

from crashes import flip_bit
from metarm.checkpoints import CheckpointPlace
from metarm.errors import CheckpointError, ModelError
from metarm.interrupts import Stopped
from metarm.models.safe_checkpoints import NEWEST
from metarm.training.plain_training import PLAIN_FILE, PLAIN_FOLDER
from tiny_models import CONTEXT, SPECIAL, WORDS
from unit.reward_problem import distance, is_same, make_double_model, make_trainer, weights

ADAM = {"optim": "adamw_torch", "learning_rate": 0.01, "lr_scheduler_type": "cosine"}
MODES: dict[str, dict[str, Any]] = {
    "off": {"meta_mode": "off"},
    "ascent": {"meta_mode": "ascent", "meta_step_length": 0.5},
    "stored": {
        "meta_mode": "descent",
        "meta_step_length": 0.5,
        "meta_every": 3,
        "meta_between": "stored",
    },
    "units": {"meta_mode": "joint", "meta_strength": "auto", "meta_guard": False},
    "guarded": {"meta_mode": "joint", "meta_strength": "auto"},
}
# Of the log: what differs between two runs of the same training as well.
CLOCKS = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def with_dropout() -> Any:
    """A GPT-2 that drops: its masks are draws of the running random state."""
    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=0,
        resid_pdrop=0.2,
        embd_pdrop=0.2,
        attn_pdrop=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2ForSequenceClassification(config)


def make(folder: Path, place: Path, mode: str, *, steps: int, **changes: Any) -> Any:
    trainer = make_trainer(
        folder,
        place / "unused",
        model=with_dropout(),
        num_groups=60,
        given={"processing_class": AutoTokenizer.from_pretrained(folder)},
        **(
            ADAM
            | {
                "max_steps": steps,
                "per_device_train_batch_size": 5,
                "gradient_accumulation_steps": 2,
                "disable_dropout": False,
                "logging_steps": 4,
                "seed": 3,
            }
            | MODES[mode]
            | changes
        ),
    )
    trainer.keep_checkpoints(CheckpointPlace(place, every=1))
    return trainer


def log_of(trainer: Any) -> list[dict[str, float]]:
    return [
        {k: v for k, v in entry.items() if k not in CLOCKS} for entry in trainer.state.log_history
    ]


class Dies(TrainerCallback):
    """The process ends right after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.step:
            raise SystemExit


STEPS = {"off": [5], "ascent": range(1, 9), "stored": [1, 2, 4, 8], "units": [5], "guarded": [3, 8]}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_it_is_exact_from_every_step(reward_model_dir: Path, tmp_path: Path, mode: str) -> None:
    """Epochs of three steps, the last one a remainder; logs every four."""
    steps = 8
    whole = make(reward_model_dir, tmp_path / "whole", mode, steps=steps)
    whole.train(NEWEST)
    for step in STEPS[mode]:
        stopped = make(reward_model_dir, tmp_path / str(step), mode, steps=steps)
        stopped.add_callback(Dies(step))
        with pytest.raises(SystemExit):
            stopped.train(NEWEST)
        # The process is another one: its random state is too.
        torch.manual_seed(step)
        random.seed(step)
        again = make(reward_model_dir, tmp_path / str(step), mode, steps=steps)
        first = []
        again.add_callback(_FirstStep(first))
        again.train(NEWEST)
        assert first == ([step] if step < steps else []), "it began anew"
        assert is_same(weights(again.model), weights(whole.model)), step
        assert log_of(again) == log_of(whole), step


class _FirstStep(TrainerCallback):
    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if not self.seen:
            self.seen.append(state.global_step)


def test_the_plain_pass_goes_on_too(reward_model_dir: Path, tmp_path: Path) -> None:
    whole = make(reward_model_dir, tmp_path / "whole", "guarded", steps=6)
    whole.train(NEWEST)
    for step in (1, 3, 6):
        place = tmp_path / str(step)
        stopped = make(reward_model_dir, place, "guarded", steps=6)
        stopped._plain_callbacks = [Dies(step)]
        with pytest.raises(SystemExit):
            stopped.train(NEWEST)
        assert not (place / PLAIN_FILE).exists()
        assert (place / PLAIN_FOLDER / f"checkpoint-{step}").is_dir()
        first: list[int] = []
        again = make(reward_model_dir, place, "guarded", steps=6)
        again._plain_callbacks = [_FirstStep(first)]
        again.train(NEWEST)
        assert first == ([step] if step < 6 else [])
        assert is_same(weights(again.model), weights(whole.model))
        assert log_of(again) == log_of(whole)
        assert again.guard == whole.guard


def test_between_both_passes_the_plain_one_is_not_done_again(
    reward_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(reward_model_dir, tmp_path / "whole", "guarded", steps=4)
    whole.train(NEWEST)
    stopped = make(reward_model_dir, tmp_path / "again", "guarded", steps=4)

    class DiesAtOnce(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            raise SystemExit

    stopped.add_callback(DiesAtOnce())
    with pytest.raises(SystemExit):
        stopped.train(NEWEST)
    again = make(reward_model_dir, tmp_path / "again", "guarded", steps=4)
    monkeypatch.setattr(again, "_train_plain", None)
    again.train(NEWEST)
    assert is_same(weights(again.model), weights(whole.model))
    # What is damaged is not used, and not needed yet either.
    stopped = make(reward_model_dir, tmp_path / "damaged", "guarded", steps=4)
    stopped.add_callback(DiesAtOnce())
    with pytest.raises(SystemExit):
        stopped.train(NEWEST)
    flip_bit(tmp_path / "damaged" / PLAIN_FILE, random.Random(1))
    again = make(reward_model_dir, tmp_path / "damaged", "guarded", steps=4)
    again.train(NEWEST)
    assert is_same(weights(again.model), weights(whole.model))


def test_a_checkpoint_holds_no_pickle_and_is_verified(
    reward_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make(reward_model_dir, tmp_path, "ascent", steps=5)
    whole.train(NEWEST)
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-5"]
    suffixes = {path.suffix for path in kept[1].iterdir()}
    assert suffixes <= {".json", ".safetensors", ".md", ".jinja"}
    draw = random.Random(0)
    flip_bit(kept[1] / "optimizer.safetensors", draw)
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: expected the bytes"):
        make(reward_model_dir, tmp_path, "ascent", steps=5).train(str(kept[1]))
    again = make(reward_model_dir, tmp_path, "ascent", steps=5)
    again.train(NEWEST)
    assert "a checkpoint is passed over" in caplog.text
    assert is_same(weights(again.model), weights(whole.model))
    (kept[0] / "MANIFEST.json").unlink()
    for path in kept:
        (path / "MANIFEST.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="expected a whole checkpoint to go on from"):
        make(reward_model_dir, tmp_path, "ascent", steps=5).train(True)


def test_a_stop_is_at_the_next_step_with_a_checkpoint(
    reward_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(reward_model_dir, tmp_path / "whole", "ascent", steps=6)
    whole.train(NEWEST)
    stopped = make(reward_model_dir, tmp_path / "again", "ascent", steps=6)
    stopped._pace.every = 100

    class Asks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == 3:
                monkeypatch.setattr("metarm.interrupts._request.number", 15)

    stopped.add_callback(Asks())
    with pytest.raises(Stopped):
        stopped.train(NEWEST)
    assert [path.name for path in (tmp_path / "again").glob("checkpoint-*")] == ["checkpoint-4"]
    again = make(reward_model_dir, tmp_path / "again", "ascent", steps=6)
    again.train(NEWEST)
    assert is_same(weights(again.model), weights(whole.model))
    assert log_of(again) == log_of(whole)


class _Memory:
    """A model that has room for so many rows."""

    def __init__(self, trainer: Any, most: int) -> None:
        self.most, self.sizes = most, []
        trainer.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, model: Any, arguments: Any, options: Any) -> None:
        rows = len(options["input_ids"])
        if rows > self.most:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 9 GiB")
        self.sizes.append(rows)


@pytest.mark.parametrize("mode", ["off", "ascent", "joint"])
def test_want_of_memory_halves_what_is_there_at_once_and_changes_nothing(
    reward_model_dir: Path, tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "meta_mode": mode,
        "meta_step_length": 0.5 if mode == "ascent" else None,
        "meta_weight": 0.5 if mode == "joint" else None,
        "share_prompts": False,
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "center_rewards_coefficient": 0.1,
        "max_steps": 3,
    }
    whole = make_trainer(reward_model_dir, tmp_path / "whole", model=make_double_model(), **options)
    whole.train()
    short = make_trainer(reward_model_dir, tmp_path / "short", model=make_double_model(), **options)
    memory = _Memory(short, 4)
    short.train()
    assert short._most_rows == 2
    assert max(memory.sizes) == 4
    assert distance(weights(short.model), weights(whole.model)) < 1e-9
    assert caplog.text.count("out of memory") == (4 if mode != "off" else 2)
    for first, second in zip(log_of(whole), log_of(short), strict=True):
        for name in ("loss", "meta/J", "grad_norm"):
            if name in first:
                assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-5)
    none = make_trainer(reward_model_dir, tmp_path / "none", **(options | {"meta_mode": "off"}))
    _Memory(none, 1)
    with pytest.raises(ModelError, match="out of memory with one example at a time"):
        none.train()


class _Breaks:
    """A model whose scores are not a number at the n-th time that gradients are asked for."""

    def __init__(self, trainer: Any, times: set[int]) -> None:
        self.times, self.count = times, 0
        trainer.model.register_forward_hook(self)

    def __call__(self, model: Any, arguments: Any, outputs: Any) -> None:
        if torch.is_grad_enabled():
            self.count += 1
            if self.count in self.times:
                outputs.logits = outputs.logits * float("nan")


OPTIONS = {"meta_mode": "ascent", "meta_step_length": 0.5, "share_prompts": False, "max_steps": 4}


@pytest.mark.parametrize(("broken", "what"), [(6, "of the loss"), (5, "of J")])
def test_a_step_that_is_not_finite_is_done_once_without_the_meta_step(
    reward_model_dir: Path, tmp_path: Path, broken: int, what: str, caplog
) -> None:
    """Two passes of J and one of pairs a step."""
    trainer = make_trainer(reward_model_dir, tmp_path / "a", meta_micro_batch_size=6, **OPTIONS)
    _Breaks(trainer, {broken})
    trainer.train()
    assert trainer.state.global_step == 4
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    bundle = next((tmp_path / "a").glob("not_finite_*.json")).read_text("utf-8")
    assert f"the gradient {what} is not finite" in bundle
    assert '"meta_batches"' in bundle
    assert "not finite" in caplog.text


def test_one_that_stays_so_is_a_clear_stop_and_no_update(
    reward_model_dir: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(reward_model_dir, tmp_path, **OPTIONS)
    before = weights(trainer.model)
    _Breaks(trainer, {2, 3})
    with pytest.raises(ModelError, match=r"not finite at step 0.*not_finite_0\.json"):
        trainer.train()
    assert is_same(weights(trainer.model), before)
