# SPDX-License-Identifier: Apache-2.0
"""Rewards of a served model for verl: the file that `custom_reward_function.path` names.

The server's address is in METARM_URL, its token, where it has one, in METARM_TOKEN. The data set's
`extra_info` must hold the prompt under `prompt`, as text or as messages: verl hands over no other.
A score that cannot be had raises; verl's own loop then stops, and no number takes its place.
"""

import os

from metarm.served_score import ServedScore
from metarm.serving.recipes import verl_reward

compute_score = verl_reward(ServedScore(os.environ["METARM_URL"]))
