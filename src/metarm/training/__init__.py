# SPDX-License-Identifier: Apache-2.0
"""Reward-model training: TRL's `RewardTrainer` with the MetaRM step."""

from metarm.training.run import GuardReport, RewardTrainingResult, train_reward_model
from metarm.training.settings import META_METRICS, MetaRewardConfig
from metarm.training.tasks import TaskReport
from metarm.training.trainer import MetaRewardTrainer

__all__ = [
    "META_METRICS",
    "GuardReport",
    "MetaRewardConfig",
    "MetaRewardTrainer",
    "RewardTrainingResult",
    "TaskReport",
    "train_reward_model",
]
