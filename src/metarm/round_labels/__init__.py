# SPDX-License-Identifier: Apache-2.0
"""Labels in a round: which pairs are asked, who answers, and what the answers came to."""
