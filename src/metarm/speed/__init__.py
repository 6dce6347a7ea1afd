# SPDX-License-Identifier: Apache-2.0
"""`metarm bench`: what an optimiser step costs, beside TRL, other packages, and the law."""
