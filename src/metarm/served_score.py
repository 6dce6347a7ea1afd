# SPDX-License-Identifier: Apache-2.0
"""A served reward model as a score function: an error where there is no score, never a number.

    score = ServedScore("http://127.0.0.1:8000", token=os.environ["METARM_TOKEN"])
    score(["How are you?"], ["Fine."])  # [1.25]

Plain standard library, so that any process can have it: no torch, no other package of a client's.
"""

import email.utils
import http.client
import json
import math
import os
import random
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from metarm.errors import ConfigError, ServingError
from metarm.schema import Prompt, prompt_to_json

__all__ = ["TOKEN_VARIABLE", "ServedAnswer", "ServedScore", "is_served_url"]

TOKEN_VARIABLE: Final = "METARM_TOKEN"
"""Environment variable that holds the token where none is given."""
RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be others a little later; any other is final."""
FIRST_WAIT_SECONDS: Final = 0.1
MOST_WAIT_SECONDS: Final = 10.0
MOST_ANSWER_BYTES: Final = 1 << 26
MOST_RESTARTS: Final = 5
"""How often a call begins anew because the model was swapped in the middle of it."""


@dataclass(frozen=True, slots=True)
class ServedAnswer:
    """Scores of one call, all of one model."""

    scores: list[float]
    uncertainty: list[float] | None
    """Disagreement of an ensemble's members; None for a single model."""
    version: int
    sha256: str


class ServedScore:
    """Scores of a model behind `metarm serve`; satisfies `protocols.ScoreFunction`.

    Threads may share one: each has a connection of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        sha256: str | None = None,
        batch_items: int = 64,
        timeout_seconds: float = 120.0,
        patience_seconds: float = 120.0,
    ) -> None:
        """Nothing is asked of the server yet.

        Args:
            url: `http://host:port` or `https://host`, with or without a path before the routes.
            token: The server's token; None: the environment's METARM_TOKEN, where it is set.
            sha256: The only model whose scores are taken; None: any, but one for all of a call.
            batch_items: Items of one request; the server's `max_items` must allow it.
            timeout_seconds: For one request.
            patience_seconds: For all tries of a request together, waits included.

        Raises:
            ConfigError: When the URL is none, or holds a password.
        """
        parts = urlsplit(url)
        if not is_served_url(url) or not parts.hostname:
            raise ConfigError(f"expected http://HOST:PORT of a served reward model, got {url!r}")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                f"the URL of {parts.hostname} holds a password, which would stand in saved "
                f"settings: put the token into the environment as {TOKEN_VARIABLE}"
            )
        if batch_items < 1:
            raise ConfigError(f"expected batch_items of at least 1, got {batch_items}")
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"expected a port number in {url!r}: {error}") from error
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.sha256 = sha256
        self._is_secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = f"{parts.path.rstrip('/')}/v1/score"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := token or os.environ.get(TOKEN_VARIABLE):
            self._headers["Authorization"] = f"Bearer {token}"
        self._batch_items = batch_items
        self._timeout, self._patience = timeout_seconds, patience_seconds
        self._jitter = random.Random()
        self._own = threading.local()

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Score each response, in the order given.

        Raises:
            ServingError: When the server gave no scores in time, or something else than scores.
        """
        return self.ask(prompts, responses).scores

    def ask(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> ServedAnswer:
        """The scores, the disagreement behind them, and which model gave them.

        A call is several requests where it is long; all are answered by one model, or asked again.

        Raises:
            ServingError: When the server gave no scores in time, or something else than scores.
        """
        items = [
            {"prompt": prompt_to_json(prompt), "response": response}
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        starts = range(0, len(items), self._batch_items) or [0]
        for _ in range(MOST_RESTARTS):
            answers: list[ServedAnswer] = []
            for start in starts:
                answers.append(self._exchange(items[start : start + self._batch_items]))
                if answers[-1].sha256 != answers[0].sha256:
                    break
            else:
                return _joined(answers)
        raise ServingError(
            f"{self.url}: the model was swapped {MOST_RESTARTS} times within one call; scores of "
            "different models have no common scale. Swap less often."
        )

    def _exchange(self, items: list[dict[str, Any]]) -> ServedAnswer:
        """One request, tried until it is answered for good or patience ends."""
        body = json.dumps({"items": items}).encode()
        end = time.monotonic() + self._patience
        tries = 0
        while True:
            least_wait, tries = 0.0, tries + 1
            try:
                status, headers, data = self._post(body)
            except ssl.SSLCertVerificationError as error:
                raise ServingError(
                    f"{self.url}: its certificate is not trusted: {error}"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                self._close()
                problem = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return self._read(data, len(items))
                problem = f"HTTP {status}: {_message(data)}"
                if status not in RETRIED:
                    raise ServingError(f"{self.url} gave no scores: {problem}")
                least_wait = _retry_after(headers)
            backoff = min(MOST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(tries, 10))
            wait = least_wait + self._jitter.uniform(0, backoff)
            if time.monotonic() + wait > end:
                raise ServingError(
                    f"{self.url} gave no scores in {tries} tries within {self._patience:g} s; the "
                    f"last one: {problem}. Is it running, and large enough?"
                )
            time.sleep(wait)

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """One request and its answer, on this thread's connection."""
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=self._timeout)
            self._own.connection = connection
        connection.request("POST", self._path, body, self._headers)
        response = connection.getresponse()
        data = response.read(MOST_ANSWER_BYTES + 1)
        if len(data) > MOST_ANSWER_BYTES:
            raise http.client.HTTPException(f"an answer of more than {MOST_ANSWER_BYTES} bytes")
        return response.status, dict(response.getheaders()), data

    def _close(self) -> None:
        connection: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
            self._own.connection = None

    def _read(self, data: bytes, num_items: int) -> ServedAnswer:
        """The scores in an answer, or an error: half an answer is none."""
        try:
            document = json.loads(data)
            scores, doubts, model = (document[k] for k in ("scores", "uncertainty", "model"))
            answer = ServedAnswer(
                [_finite(score) for score in scores],
                None if doubts is None else [_finite(doubt) for doubt in doubts],
                int(model["version"]),
                str(model["sha256"]),
            )
        except (KeyError, OverflowError, TypeError, ValueError, RecursionError) as error:
            raise ServingError(
                f"{self.url}: expected the scores of `metarm serve`, got something else "
                f"({type(error).__name__}). Is this its address?"
            ) from error
        doubted = answer.scores if answer.uncertainty is None else answer.uncertainty
        if {len(answer.scores), len(doubted)} != {num_items}:
            raise ServingError(
                f"{self.url}: expected {num_items} scores, got {len(answer.scores)}: none is used"
            )
        if self.sha256 is not None and answer.sha256 != self.sha256:
            raise ServingError(
                f"{self.url}: expected scores of the model {self.sha256[:12]}..., got those of "
                f"{answer.sha256[:12]}... (version {answer.version}): none is used"
            )
        return answer


def is_served_url(name: str) -> bool:
    """Whether a name is the address of a server rather than a folder, an id or a function.

    Example:
        >>> is_served_url("http://127.0.0.1:8000"), is_served_url("my_package.gold:score")
        (True, False)
    """
    return name.startswith(("http://", "https://"))


def _joined(answers: Sequence[ServedAnswer]) -> ServedAnswer:
    doubts = [answer.uncertainty for answer in answers]
    return ServedAnswer(
        [score for answer in answers for score in answer.scores],
        None if None in doubts else [doubt for own in doubts if own is not None for doubt in own],
        answers[0].version,
        answers[0].sha256,
    )


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no finite number: {type(value).__name__}")
    return float(value)


def _message(data: bytes) -> str:
    """What an error's body says, shortened."""
    try:
        error = json.loads(data)["error"]
        text = f"{error['reason']}: {error['message']}"
    except (KeyError, TypeError, ValueError, RecursionError):
        text = data[:200].decode(errors="replace")
    return text[:500]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: a number, or until a date."""
    named = {name.lower(): value for name, value in headers.items()}
    text = named.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, when.timestamp() - time.time())
