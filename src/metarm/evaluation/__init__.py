# SPDX-License-Identifier: Apache-2.0
"""Evaluation: what a reward model and a policy are worth, in numbers."""
