# SPDX-License-Identifier: Apache-2.0
"""Stretching labels: pseudo-labels, augmentation, averaged weights, adaptation by a few labels."""
