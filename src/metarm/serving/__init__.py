# SPDX-License-Identifier: Apache-2.0
"""Serving: a reward model over HTTP, whose scores are those of a local call, bit for bit."""
