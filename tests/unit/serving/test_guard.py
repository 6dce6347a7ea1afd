# SPDX-License-Identifier: Apache-2.0
"""Who is let in: tokens in both spellings, names with and without ports."""

import base64

import pytest

from metarm.errors import ConfigError
from metarm.serving.guard import Token
from metarm.serving.listening import listen, read_token
from metarm.serving.run import _names
from metarm.serving.settings import ServeSettings

SECRET = "correct-horse-battery-staple"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "shown", [f"Bearer {SECRET}", f"bearer  {SECRET}", basic(f":{SECRET}"), basic(f"any:{SECRET}")]
)
def test_the_token_opens(shown: str) -> None:
    assert Token(SECRET).is_shown_by(shown)


@pytest.mark.parametrize(
    "shown",
    [
        *("", "Bearer", "Bearer ", SECRET, f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}"),
        *(f"Token {SECRET}", basic(SECRET), basic(f"{SECRET}:"), "Basic %%%", "Basic /w=="),
        "Bearer \udcff",
    ],
)
def test_nothing_else_opens(shown: str) -> None:
    assert not Token(SECRET).is_shown_by(shown)


@pytest.mark.parametrize("text", ["", "short", "a b" * 10, "ä" * 20, "tab\tin" * 5])
def test_a_weak_token_is_refused(tmp_path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match="openssl rand"):
        read_token(path)


def test_white_space_around_a_token_does_not_count(tmp_path) -> None:
    (tmp_path / "token").write_text(f" {SECRET}\n")
    assert read_token(tmp_path / "token") == SECRET
    with pytest.raises(ConfigError, match="cannot read the token"):
        read_token(tmp_path / "missing")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="--token-file"):
        listen(host, 0, has_token=False, token_flag="--token-file")


def test_a_port_in_use_and_a_name_that_is_none_are_told() -> None:
    with listen("127.0.0.1", 0, has_token=False, token_flag="--token-file") as first:
        first.listen()
        with pytest.raises(ConfigError, match="Choose another --port"):
            listen(
                "127.0.0.1",
                first.getsockname()[1],
                has_token=False,
                token_flag="--token-file",
            )
    with pytest.raises(ConfigError, match="cannot find the address"):
        listen("no such name", 0, has_token=True, token_flag="--token-file")


def test_names_that_the_host_header_may_have() -> None:
    plain = ServeSettings()
    assert _names("127.0.0.1", "127.0.0.1", plain) == {"127.0.0.1", "::1", "localhost"}
    assert _names("0.0.0.0", "0.0.0.0", plain) is None
    named = ServeSettings(hosts=["Rewards.example"])
    assert "rewards.example" in _names("0.0.0.0", "0.0.0.0", named)
    assert _names("10.0.0.7", "10.0.0.7", plain) == {"10.0.0.7"}
