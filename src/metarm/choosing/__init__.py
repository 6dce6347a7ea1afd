# SPDX-License-Identifier: Apache-2.0
"""Choosing: which pairs of the policy's responses are worth a label."""
