# SPDX-License-Identifier: Apache-2.0
"""The embedded world: a small artificial language whose true reward is known."""
