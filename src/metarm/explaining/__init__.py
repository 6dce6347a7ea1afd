# SPDX-License-Identifier: Apache-2.0
"""Explaining: why a reward model scores a response as it does, and where it errs."""
