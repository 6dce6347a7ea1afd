# SPDX-License-Identifier: Apache-2.0
"""Labels as files of other tools, out and in again: preference rows, raw votes, Argilla, others."""
