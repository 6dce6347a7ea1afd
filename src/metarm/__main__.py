# SPDX-License-Identifier: Apache-2.0
"""`python -m metarm` is the `metarm` command."""

from metarm.cli import main

if __name__ == "__main__":
    main()
