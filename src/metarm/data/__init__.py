# SPDX-License-Identifier: Apache-2.0
"""Data in: files and hub data sets become checked pairs, groups, prompts and demonstrations."""
