# SPDX-License-Identifier: Apache-2.0
"""Reports: a run folder read, compared, drawn and put on one self-contained page (no torch)."""
