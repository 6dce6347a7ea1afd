# SPDX-License-Identifier: Apache-2.0
"""Reward models: loading, scoring, saving."""
