# SPDX-License-Identifier: Apache-2.0
"""Watching: whether a policy has moved to where its reward model no longer tells apart."""
