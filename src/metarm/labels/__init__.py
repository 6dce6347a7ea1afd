# SPDX-License-Identifier: Apache-2.0
"""Labels: pairs that somebody is to compare, the votes on them, and the store that keeps both."""
