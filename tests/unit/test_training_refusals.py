# SPDX-License-Identifier: Apache-2.0
"""What the trainer cannot do, it refuses with one error that says what to do instead."""

from types import SimpleNamespace

import datasets
import peft
import pytest
import torch
from accelerate import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy
from trl import RewardConfig

from metarm.errors import ConfigError, DataError, PrecisionError
from metarm.training import MetaRewardConfig, MetaRewardTrainer
from metarm.training.support import refuse_unsupported
from unit.reward_problem import (
    load_model,
    load_tokenizer,
    make_trainer,
    meta_options,
    pair_rows,
    plain_options,
)

LORA = {"task_type": "SEQ_CLS", "r": 2, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"meta_mode": "decsent"}, ["meta_mode", "decsent", "did you mean 'descent'"]),
        ({"meta_order": "second"}, ["meta_order", "second", "exact"]),
        ({"meta_learning_rate": -1e-6}, ["meta_learning_rate", "-1e-06", "meta_mode"]),
        ({"meta_learning_rate": float("nan")}, ["meta_learning_rate", "nan"]),
        ({"meta_step_length": -0.1}, ["meta_step_length", "-0.1"]),
        ({"meta_weight": float("inf")}, ["meta_weight", "inf"]),
        ({"meta_reward_fraction": -0.5}, ["meta_reward_fraction", "-0.5"]),
        ({"meta_batch_size": 0}, ["meta_batch_size", "at least 1", "0"]),
        ({"meta_group_size": 1}, ["meta_group_size", "at least 2", "1"]),
        ({"meta_every": 0}, ["meta_every", "at least 1", "0"]),
    ],
)
def test_a_bad_setting_is_named(tmp_path, option, words):
    with pytest.raises(ConfigError) as raised:
        MetaRewardConfig(**meta_options(tmp_path, **option))
    for word in words:
        assert word in str(raised.value)


def test_a_meta_mode_needs_a_meta_data_set(reward_model_dir, tmp_path):
    without = {"meta_dataset": None}
    with pytest.raises(DataError, match=r"meta_dataset.*`prompt`.*`responses`.*meta_mode='off'"):
        make_trainer(reward_model_dir, tmp_path, given=without)
    make_trainer(reward_model_dir, tmp_path, given=without, meta_mode="off")


def test_trl_s_own_configuration_is_refused(reward_model_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"MetaRewardConfig, got a RewardConfig"):
        MetaRewardTrainer(
            load_model(reward_model_dir),
            RewardConfig(**plain_options(tmp_path)),
            train_dataset=datasets.Dataset.from_list(pair_rows()),
            processing_class=load_tokenizer(reward_model_dir),
        )


@pytest.mark.parametrize("mode", ["ascent", "descent", "joint"])
def test_parameters_in_bf16_are_refused(reward_model_dir, tmp_path, mode):
    model = load_model(reward_model_dir, dtype=torch.bfloat16)
    with pytest.raises(PrecisionError, match=r"float32, got \['torch.bfloat16'\].*dtype=float32"):
        make_trainer(reward_model_dir, tmp_path, model=model, meta_mode=mode)
    make_trainer(reward_model_dir, tmp_path, model=model, meta_mode="off")


def test_an_adapter_in_bf16_is_refused(reward_model_dir, tmp_path):
    base = load_model(reward_model_dir, dtype=torch.bfloat16)
    config = peft.LoraConfig(**LORA)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    with pytest.raises(PrecisionError, match="float32 LoRA adapter"):
        make_trainer(reward_model_dir, tmp_path, model=model)


def test_a_float32_adapter_and_head_on_a_bf16_base_are_taken(reward_model_dir, tmp_path):
    base = load_model(reward_model_dir, dtype=torch.bfloat16)
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA))
    for parameter in model.parameters():
        if parameter.requires_grad:  # peft leaves its copy of the score head in the base's type
            parameter.data = parameter.data.float()
    trainer = make_trainer(
        reward_model_dir,
        tmp_path,
        model=model,
        meta_mode="ascent",
        meta_step_length=0.1,
        bf16=True,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["meta/move_realised_fraction"] == pytest.approx(1.0, abs=1e-4)
    assert logged["meta/move_length"] == pytest.approx(0.1, rel=1e-4)


def test_fp16_is_refused(reward_model_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"fp16.*bf16=True"):
        make_trainer(reward_model_dir, tmp_path, fp16=True)


def test_reentrant_checkpointing_is_refused(reward_model_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"'use_reentrant': False"):
        make_trainer(
            reward_model_dir,
            tmp_path,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )


DDP = {"distributed_type": DistributedType.MULTI_CPU}
FSDP2 = {
    "distributed_type": DistributedType.FSDP,
    "is_fsdp2": True,
    "plugin": {"fsdp_version": 2, "cpu_offload": None, "activation_checkpointing": False},
}


@pytest.mark.parametrize(
    ("accelerator", "options", "words"),
    [
        (FSDP2 | {"is_fsdp2": False}, {}, r"DDP and FSDP2, got FSDP1.*fsdp2_one_node\.yaml"),
        (
            {"distributed_type": DistributedType.DEEPSPEED, "zero_stage": 2},
            {},
            r"got DeepSpeed ZeRO-2, .*For a model.*use FSDP2",
        ),
        (
            {"distributed_type": DistributedType.DEEPSPEED, "zero_stage": 3},
            {},
            r"got DeepSpeed ZeRO-3, .*use FSDP2",
        ),
        ({"distributed_type": DistributedType.MEGATRON_LM}, {}, "got MEGATRON_LM"),
        (DDP | {"parallel": {"tp_size": 2}}, {}, r"got tensor parallelism\."),
        (
            DDP | {"parallel": {"cp_size": 2, "sp_size": 2}},
            {},
            r"got context parallelism and sequence parallelism\.",
        ),
        (DDP | {"parallel": {"dp_replicate_size": 2}}, {}, "got a parallelism_config"),
        (DDP, {"meta_order": "exact"}, "'first' with DDP"),
        (FSDP2, {"meta_order": "exact"}, "FSDP2 the meta step does not support meta_order='exact'"),
        (FSDP2, {"meta_parameters": "head"}, r"meta_parameters='head'.*use 'all'"),
        (
            FSDP2 | {"plugin": FSDP2["plugin"] | {"activation_checkpointing": True}},
            {"meta_strength": "auto", "meta_guard": True},
            "gradient_checkpointing=True instead",
        ),
        (
            FSDP2 | {"plugin": FSDP2["plugin"] | {"cpu_offload": CPUOffloadPolicy()}},
            {},
            "fsdp_offload_params",
        ),
    ],
)
def test_what_the_meta_step_cannot_be_part_of_is_refused_by_name(
    reward_model_dir, tmp_path, accelerator, options, words
):
    """Packages that are not installed are told of by what accelerate's state says of them."""
    trainer = make_trainer(reward_model_dir, tmp_path)
    for name, value in options.items():
        setattr(trainer.args, name, value)
    stage = accelerator.get("zero_stage")
    state = SimpleNamespace(
        deepspeed_plugin=None if stage is None else SimpleNamespace(zero_stage=stage),
        fsdp_plugin=SimpleNamespace(**accelerator.get("plugin", {})),
    )
    parallel = accelerator.get("parallel")
    stand_in = SimpleNamespace(
        distributed_type=accelerator["distributed_type"],
        is_fsdp2=accelerator.get("is_fsdp2", False),
        parallelism_config=None if parallel is None else SimpleNamespace(**parallel),
        state=state,
    )
    with pytest.raises(ConfigError, match=words):
        refuse_unsupported(trainer.args, stand_in, trainer.model)


def test_fsdp2_is_not_refused(reward_model_dir, tmp_path):
    trainer = make_trainer(reward_model_dir, tmp_path)
    stand_in = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        is_fsdp2=True,
        parallelism_config=None,
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**FSDP2["plugin"])),
    )
    refuse_unsupported(trainer.args, stand_in, trainer.model)


def test_exact_refuses_attention_that_cannot_be_differentiated_twice(reward_model_dir, tmp_path):
    with pytest.raises(ConfigError, match="attn_implementation='eager'"):
        make_trainer(reward_model_dir, tmp_path, meta_mode="descent", meta_order="exact")


def test_off_refuses_nothing_of_this(reward_model_dir, tmp_path):
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": True}, "fp16": True}
    make_trainer(reward_model_dir, tmp_path, meta_mode="off", **options)


def test_a_model_by_name_is_loaded_in_float32(reward_model_dir, tmp_path):
    stored = tmp_path / "half"
    load_model(reward_model_dir, dtype=torch.bfloat16).save_pretrained(stored)
    load_tokenizer(reward_model_dir).save_pretrained(stored)
    trainer = make_trainer(stored, tmp_path, model=str(stored), meta_mode="ascent")
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    trainer.train()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the default fits an accelerator")
def test_defaults_without_an_accelerator_say_what_to_set(reward_model_dir):
    data = datasets.Dataset.from_list(pair_rows())
    with pytest.raises(ValueError, match="use_cpu"):
        MetaRewardTrainer(str(reward_model_dir), train_dataset=data, meta_dataset=[])


def test_training_that_diverged_is_stopped(reward_model_dir, tmp_path):
    trainer = make_trainer(reward_model_dir, tmp_path, meta_mode="ascent")
    with torch.no_grad():
        trainer.model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        trainer.train()
