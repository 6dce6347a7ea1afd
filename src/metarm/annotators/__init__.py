# SPDX-License-Identifier: Apache-2.0
"""Annotators: whom to believe, how far, and which vote to ask for next; numpy and scipy alone."""
