# SPDX-License-Identifier: Apache-2.0
"""Tables that stand on pages of docs/ between marks, and how a change is written in them."""

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["points", "with_tables"]

BLOCK: Final = re.compile(r"<!-- ([\w: ]+) -->\n.*?<!-- end -->", re.DOTALL)


def points(change: Mapping[str, float] | None, absent: str = "") -> str:
    """A change with its interval, in points; bold where the interval leaves out zero.

    Args:
        change: `value`, `low` and `high`, as shares: 0.012 is +1.2 points.
        absent: What is said where there is no change to tell of.

    Example:
        >>> points({"value": 0.012, "low": 0.004, "high": 0.02})
        '**+1.2 [+0.4, +2.0]**'
    """
    if change is None:
        return absent
    value, low, high = (100 * change[key] for key in ("value", "low", "high"))
    text = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text if low <= 0 <= high else f"**{text}**"


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables made anew, each between `<!-- NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: When the page has no place for one of them.
    """
    lacking = set(tables) - {block[1] for block in BLOCK.finditer(page)}
    if lacking:
        raise ValueError(f"the page has no place for {sorted(lacking)}: write its two marks there")

    def fill(block: re.Match[str]) -> str:
        name = block[1]
        return f"<!-- {name} -->\n{tables[name]}\n<!-- end -->" if name in tables else block[0]

    return BLOCK.sub(fill, page)
