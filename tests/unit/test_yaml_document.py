# SPDX-License-Identifier: Apache-2.0
"""The YAML reader: the known hazards of the format, and places that are right."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metarm.errors import ConfigError
from metarm.yaml_document import Place, format_yaml, parse_yaml


def value_of(text: str) -> Any:
    return parse_yaml(text.encode(), "f.yaml").value


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("0777", 777),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("'null'", "null"),
        ('"1"', "1"),
        ('""', ""),
        ("a b # c", "a b"),
        ("module:function", "module:function"),
        ("[1, [], {}]", [1, [], {}]),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    found = value_of(f"x: {scalar}")["x"]
    assert found == value
    assert type(found) is type(value)


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1", "first in line 1"),
        ("x:\n  a: 1\n  a: 2", "f.yaml:3:3", "first in line 2"),
        ("{a: 1, a: 2}", "f.yaml:1:8", "each key once"),
        ("a: 1\n'a': 2", "f.yaml:2:1", "each key once"),
        (BOMB, "f.yaml:1:5", "anchor"),
        ("a: &a [*a]", "f.yaml:1:4", "anchor"),
        ("a: *b", "f.yaml:1:4", "alias"),
        ("<<: {a: 1}", "f.yaml:1:1", "merge key"),
        ("a: !!python/object/apply:os.system [ls]", "f.yaml:1:4", "tag"),
        ("a: !foo 1", "f.yaml:1:4", "tag"),
        ("a: ! 1", "f.yaml:1:4", "tag"),
        ("%YAML 1.1\n---\na: no", "f.yaml:1:1", "directive"),
        ("# c\n%TAG ! x\n---\na: no", "f.yaml:2:1", "directive"),
        ("a: .nan", "f.yaml:1:4", "finite"),
        ("a: -.INF", "f.yaml:1:4", "finite"),
        ("a: 1e999", "f.yaml:1:4", "finite"),
        ("b: 1\na: # c\n", "f.yaml:2:1", "a: expected a value, got nothing"),
        ("a:\n  - 1\n  -\n", "f.yaml:3:4", "expected a value, got nothing"),
        ("", "f.yaml", "empty file"),
        ("# only a comment\n", "f.yaml", "empty file"),
        ("1: a", "f.yaml:1:1", "text key"),
        ("true: a", "f.yaml:1:1", "text key"),
        (": a", "f.yaml:1:1", "text key"),
        ("? [1, 2]\n: 3", "f.yaml:1:3", "text key"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1", "one document"),
        ("a:\n\tb: 1", "f.yaml:2:1", "syntax error"),
        ("a: [1", "f.yaml:1:6", "syntax error"),
        ("b: 1\na: \x07", "f.yaml:2", "syntax error"),
        ("a: " + "1" * 5000, "f.yaml:1:4", "at most 64 bits"),
        ("a: 0x" + "f" * 5000, "f.yaml:1:4", "at most 64 bits"),
        ("a: " + "[" * 3000 + "]" * 3000, "f.yaml:1:23", "deep"),
        ("a: " + "{a: " * 3000 + "}" * 3000, "f.yaml:1:80", "deep"),
    ],
)
def test_hazards_are_refused_where_they_stand(text: str, place: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value_of(text)
    assert str(caught.value).startswith(f"{place}: ")
    assert word in str(caught.value)


def test_bytes_are_utf_8_and_bounded() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: \xc3\xa9", "f").value == {"a": "\u00e9"}
    with pytest.raises(ConfigError, match="f:2: expected UTF-8, got byte 0xe9"):
        parse_yaml(b"a: 1\nb: \xe9\n", "f")
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        parse_yaml(b"a: 1 #" + b"x" * (1 << 20), "f")


def test_every_value_knows_its_place() -> None:
    document = parse_yaml(b"a: 1\nb:\n  c: [x, y]\n  d: {e: 1}\n", "f")
    found = {path: (place.line, place.column) for path, place in document.places.items()}
    assert found == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", "c"): (3, 3),
        ("b", "c", 0): (3, 7),
        ("b", "c", 1): (3, 10),
        ("b", "d"): (4, 3),
        ("b", "d", "e"): (4, 7),
    }
    assert document.place(("b", "c", 7, "z"), Place("?")) == Place("f", 3, 3)
    assert document.place(("q",), Place("?")) == Place("?")


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**16), 10**16)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["no", "1e3", "0x1", ".inf", "~", "<<", "a: b", "# c", "- a", "\u2028"])
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["1", "<<"])
trees = st.dictionaries(
    keys,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(trees)
def test_what_is_written_is_read_back(tree: dict[str, Any]) -> None:
    text = format_yaml(tree)
    again = parse_yaml(text.encode(), "f").value
    assert again == tree
    # 1 == 1.0 == True: equality alone would not notice a changed type.
    assert repr(again) == repr(tree)


@given(st.binary(max_size=60) | st.text("ab01:-[]{},\"'\\#&*!|>%?@` \n\t.~e<", max_size=40))
def test_any_input_is_read_or_refused(data: bytes | str) -> None:
    try:
        parse_yaml(data if isinstance(data, bytes) else data.encode(), "f.yaml")
    except ConfigError as error:
        if not str(error).startswith("f.yaml"):
            raise


def test_text_that_older_readers_take_for_booleans_is_quoted() -> None:
    assert format_yaml({"a": "off", "b": "Yes"}) == 'a: "off"\nb: "Yes"\n'
