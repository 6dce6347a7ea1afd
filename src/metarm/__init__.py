# SPDX-License-Identifier: Apache-2.0
"""metarm keeps reward models sharp while the policy they train moves away from their data.

Names are imported from their modules (`from metarm.training import MetaRewardTrainer`); this file
re-exports nothing, so that `metarm --help` and `metarm.reports` start without torch.
"""

__version__ = "0.1.0"
