# SPDX-License-Identifier: Apache-2.0
"""Who wins, and how sure it is: judges, win rates, agreement, ratings, blind sheets."""
