# SPDX-License-Identifier: Apache-2.0
"""Labelling: the page on which people compare responses, and its owner's dashboard."""
