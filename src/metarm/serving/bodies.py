# SPDX-License-Identifier: Apache-2.0
"""What every gate holds bodies to: of JSON, of a size, and not too many in memory together."""

from collections.abc import Mapping

__all__ = ["HeldBodies", "is_declared_larger", "is_json"]


class HeldBodies:
    """Bytes of all bodies that are in memory now.

    Args:
        most_bytes: That there may be.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.num_bytes = 0

    def hold(self, num_bytes: int) -> bool:
        """Count bytes that came, negative: that went; whether there was room for them.

        Example:
            >>> held = HeldBodies(10)
            >>> held.hold(8), held.hold(3), held.hold(-8), held.hold(10), held.num_bytes
            (True, False, True, True, 10)
        """
        if num_bytes > 0 and self.num_bytes + num_bytes > self._most_bytes:
            return False
        self.num_bytes += num_bytes
        return True


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether a body is declared as JSON, in whatever character set.

    Example:
        >>> is_json({"content-type": "Application/JSON; charset=utf-8"}), is_json({})
        (True, False)
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json"


def is_declared_larger(headers: Mapping[str, str], most_bytes: int) -> bool:
    """Whether a body says of itself that it is larger; one that says nothing is counted later.

    Example:
        >>> is_declared_larger({"content-length": "11"}, 10), is_declared_larger({}, 10)
        (True, False)
    """
    length = headers.get("content-length", "")
    # Twenty digits are enough to be too many, and to be read at once.
    return length.isascii() and length.isdigit() and int(length[:20]) > most_bytes
