# SPDX-License-Identifier: Apache-2.0
"""The bench: any methods on any shifts, with paired splits and intervals."""
