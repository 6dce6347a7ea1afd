# SPDX-License-Identifier: Apache-2.0
"""Policies: supervised start, sampling, and the optimisers that move them."""
