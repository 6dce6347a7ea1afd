# SPDX-License-Identifier: Apache-2.0
"""Asks a model behind a URL: many calls at once, bounded tries, caps, and every answer kept."""

import asyncio
import ipaddress
import json
import math
import os
import random
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from metarm.config_judge import EndpointSettings
from metarm.endpoint.answers import Answer, AnswerFile, TokenBound
from metarm.endpoint.budget import Budget
from metarm.endpoint.call_ledger import CallLedger
from metarm.errors import ConfigError, EndpointError, RunError
from metarm.protocols import StageProgress
from metarm.storage import fingerprint

if TYPE_CHECKING:
    import openai

__all__ = ["Asked", "Endpoint", "Question", "read_answer", "retry_after_seconds"]

CHAT: Final = "/chat/completions"
TEXT: Final = "/completions"
FIRST_WAIT_SECONDS: Final = 0.5
TEMPLATE_TOKENS: Final = 256
"""Room for what a server's chat template adds to the words of a prompt."""
FAILURES_IN_A_ROW: Final = 8
"""Questions given up one after the other, after which the endpoint is taken to be broken."""
FATAL_STATUS: Final = {401: "refuses the key", 403: "forbids it", 404: "has no such route or model"}
TRY_AGAIN_STATUS: Final = frozenset({408, 409, 425, 429})
NEVER_SENT: Final = frozenset({"ConnectError", "ConnectTimeout"})
"""Errors of the HTTP client before the server has seen anything."""


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask: a body of OpenAI's protocol, with `messages` or with a `prompt`."""

    body: Mapping[str, Any]
    max_answer_tokens: int

    @property
    def route(self) -> str:
        """Where it is asked: a conversation, or text to go on with."""
        return CHAT if "messages" in self.body else TEXT

    def key(self, model: str) -> str:
        """Equal for equal questions to one model: answers are kept under it."""
        return fingerprint(model, self.route, self.body)

    @property
    def bound(self) -> TokenBound:
        """The most tokens it can take: no tokenizer has more tokens than bytes."""
        asked = json.dumps(self.body.get("messages", self.body.get("prompt")), ensure_ascii=False)
        num_bytes = len(asked.encode("utf-8", "surrogatepass"))
        return TokenBound(num_bytes + TEMPLATE_TOKENS, self.max_answer_tokens)


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of some questions."""

    answers: tuple[Answer | None, ...]
    """In the questions' order; None where there is none."""
    failures: Mapping[str, int]
    """Why questions were given up, and how many."""
    stopped: str | None
    """Why the rest was not asked; None where all was."""
    num_new: int
    """Answers that were not in the file before."""


class _TryAgainError(Exception):
    """A call that may go better the next time."""

    def __init__(
        self, reason: str, *, may_be_billed: bool, wait_seconds: float | None = None
    ) -> None:
        super().__init__(reason)
        self.may_be_billed = may_be_billed
        self.wait_seconds = wait_seconds


class _GiveUpError(Exception):
    """A question that gets no answer, after one try or after all that are allowed."""

    def __init__(self, reason: str, *, is_after_all_tries: bool = False) -> None:
        super().__init__(reason)
        self.is_after_all_tries = is_after_all_tries


@dataclass(slots=True)
class _Asking:
    """What the workers of one asking share."""

    client: "openai.AsyncOpenAI"
    file: AnswerFile
    budget: Budget
    progress: StageProgress
    waiting: deque[tuple[str, Question]]
    failures: Counter[str] = field(default_factory=Counter)
    failed_in_a_row: int = 0
    num_new: int = 0
    not_before: float = 0.0
    """Monotonic time before which no call begins: the server has asked for it."""
    stopped: str | None = None
    error: RunError | None = None

    @property
    def is_over(self) -> bool:
        """Whether no further call may begin."""
        return self.stopped is not None or self.error is not None


class Endpoint:
    """A model behind a URL.

    Args:
        base_url: `http://127.0.0.1:8000/v1`, say: what comes before `/chat/completions`.
        model: Its name at the server.
        settings: Tries, time-outs, caps.
        ledger: Of calls that others make, too, and caps of all of them; None: there is none.

    Raises:
        ConfigError: When the URL is none, holds a password, or would send the key in the clear;
            when the openai package is not there.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        settings: EndpointSettings,
        ledger: CallLedger | None = None,
    ) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "--endpoint needs the openai package: pip install 'metarm[judge]'"
            ) from error
        self.base_url = base_url
        self.model = model
        self.settings = settings
        self._ledger = ledger
        self._key = os.environ.get(settings.api_key_variable, "")
        _check_url(base_url, settings.api_key_variable if self._key else None)

    def ask(
        self, questions: Sequence[Question], file: AnswerFile, progress: StageProgress
    ) -> Asked:
        """Ask what the file does not know yet; every answer is in it before this returns.

        Args:
            questions: In any number; equal ones are asked once.
            file: Open; answers that it has cost nothing.
            progress: Moves by one for each question, answered or given up.

        Raises:
            EndpointError: When the endpoint cannot be reached, refuses the key or the model, or
                gives nothing but failures. Answers that came before are in the file.
        """
        keys = [question.key(self.model) for question in questions]
        missing = {k: q for k, q in zip(keys, questions, strict=True) if k not in file.answers}
        progress.advance(sum(key in file.answers for key in keys))
        asking = asyncio.run(self._ask_all(missing, file, progress))
        if asking.error is not None:
            raise asking.error
        return Asked(
            tuple(file.answers.get(key) for key in keys),
            dict(asking.failures),
            asking.stopped,
            asking.num_new,
        )

    async def _ask_all(
        self, missing: Mapping[str, Question], file: AnswerFile, progress: StageProgress
    ) -> _Asking:
        import openai

        client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=self.settings.timeout_seconds,
        )
        budget = Budget(file, self.settings, self._ledger)
        asking = _Asking(client, file, budget, progress, deque(missing.items()))
        async with client, asyncio.TaskGroup() as group:
            for _ in range(min(self.settings.num_in_flight, len(missing))):
                group.create_task(self._work(asking))
        return asking

    async def _work(self, asking: _Asking) -> None:
        """Ask one question after the other until there is none, or the asking is over."""
        while asking.waiting and not asking.is_over:
            key, question = asking.waiting.popleft()
            try:
                is_answered = await self._ask_one(asking, key, question)
            except _GiveUpError as error:
                self._give_up(asking, error)
                is_answered = True
            except RunError as error:
                asking.error = asking.error or error
                return
            if is_answered:
                asking.progress.advance(1)

    def _give_up(self, asking: _Asking, error: _GiveUpError) -> None:
        """Count a question that got no answer; many of them alone mean that nothing will."""
        asking.failures[str(error)] += 1
        asking.failed_in_a_row += 1
        is_dead = error.is_after_all_tries and not asking.num_new
        if is_dead or asking.failed_in_a_row >= FAILURES_IN_A_ROW:
            asking.error = asking.error or self._error(f"gives no answer: {error}")

    async def _ask_one(self, asking: _Asking, key: str, question: Question) -> bool:
        """Try until there is an answer, which is then in the file; False where the asking is over.

        Raises:
            _GiveUpError: When no further try is worth it.
            EndpointError: When the endpoint cannot do what is asked of it at all.
        """
        reason, asked_for = "", None
        for attempt in range(self.settings.max_retries + 1):
            await self._wait_for_server(asking)
            if asking.is_over:
                return False
            begun = await asking.budget.begin(key, question.bound)
            if begun is None:
                asking.stopped = asking.stopped or asking.budget.exhausted
                return False
            # Where neither an answer nor a failure is kept, it may have taken its most.
            took = question.bound
            try:
                answer = await self._call(asking.client, question)
            except _TryAgainError as error:
                billed = error.may_be_billed
                took = asking.file.fail(begun.number, str(error), may_be_billed=billed)
                reason, asked_for = str(error), error.wait_seconds
            except (_GiveUpError, EndpointError) as error:
                took = asking.file.fail(begun.number, str(error), may_be_billed=False)
                raise
            else:
                took = asking.file.keep(begun.number, key, answer)
                if asking.budget.needs_tokens:
                    self._check_counted(answer)
                asking.num_new += 1
                asking.failed_in_a_row = 0
                return True
            finally:
                await asking.budget.end(begun, took)
            if attempt < self.settings.max_retries:
                await self._wait(asking, key, attempt, asked_for)
        num_tries = self.settings.max_retries + 1
        tries = "1 try" if num_tries == 1 else f"{num_tries} tries"
        raise _GiveUpError(f"{reason}, {tries}", is_after_all_tries=True)

    async def _wait(self, asking: _Asking, key: str, attempt: int, asked_for: float | None) -> None:
        """Wait before the next try: twice as long each time, and as long as the server asks for.

        The wait is drawn from its upper half, by the question and the try, so that calls which
        failed together do not come back together.
        """
        longest = self.settings.max_wait_seconds
        if asked_for is not None:
            if asked_for > longest:
                asking.stopped = asking.stopped or (
                    f"the server asks to wait {asked_for:.0f} s, more than "
                    f"endpoint.max_wait_seconds={longest:g}"
                )
                return
            asking.not_before = max(asking.not_before, time.monotonic() + asked_for)
        share = 0.5 + 0.5 * random.Random(f"{key}|{attempt}").random()
        await asyncio.sleep(share * min(longest, FIRST_WAIT_SECONDS * 2.0**attempt))

    async def _wait_for_server(self, asking: _Asking) -> None:
        """Where the server has asked for a pause, all calls make it."""
        while not asking.is_over and (left := asking.not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _call(self, client: "openai.AsyncOpenAI", question: Question) -> Answer:
        """One call, and what came of it, sorted into an answer and the three kinds of failure."""
        import openai

        body = {"model": self.model, **question.body}
        create = client.chat.completions if question.route == CHAT else client.completions
        try:
            # Of the whole call: the client's own time-out begins anew with every byte.
            async with asyncio.timeout(self.settings.timeout_seconds):
                raw = await create.with_raw_response.create(**body)
                return read_answer(raw.text)
        except (TimeoutError, openai.APITimeoutError) as error:
            reason = f"no answer within {self.settings.timeout_seconds:g} s"
            raise _TryAgainError(reason, may_be_billed=True) from error
        except openai.APIStatusError as error:
            raise self._status_error(error) from error
        except openai.APIConnectionError as error:
            cause = error.__cause__
            reason = f"connection lost or refused ({cause or error})"
            was_sent = type(cause).__name__ not in NEVER_SENT
            raise _TryAgainError(self._safe(reason), may_be_billed=was_sent) from error
        except ValueError as error:
            reason = f"an answer that is not of OpenAI's protocol: {error}"
            raise _TryAgainError(self._safe(reason), may_be_billed=True) from error

    def _status_error(self, error: "openai.APIStatusError") -> Exception:
        status = error.status_code
        detail = " ".join(error.response.text.split())[:200]
        if status in FATAL_STATUS:
            return self._error(f"{FATAL_STATUS[status]} (HTTP {status}: {detail})")
        if status in TRY_AGAIN_STATUS or status >= 500:
            asked_for = retry_after_seconds(error.response.headers.get("retry-after"), time.time())
            return _TryAgainError(f"HTTP {status}", may_be_billed=False, wait_seconds=asked_for)
        return _GiveUpError(self._safe(f"HTTP {status}: {detail}"))

    def _check_counted(self, answer: Answer) -> None:
        """Caps on tokens are kept by the server's counts: without them there is no saying."""
        if None in (answer.prompt_tokens, answer.answer_tokens):
            raise self._error(
                "does not say how many tokens a call took, which caps on tokens and cost need: "
                "set max_calls in place of max_total_tokens and max_cost"
            )

    def _error(self, what: str) -> EndpointError:
        return EndpointError(
            self._safe(
                f"{self.base_url}, model {self.model!r}: the endpoint {what}. Answers so far are "
                "kept: mend it and run the same command again."
            )
        )

    def _safe(self, text: str) -> str:
        """The text without the key, which servers like to repeat."""
        return text.replace(self._key, "[key]") if self._key else text


def read_answer(text: str) -> Answer:
    """The answer in a server's reply.

    Raises:
        ValueError: When the reply is not of OpenAI's protocol, or holds no text.

    Example:
        >>> read_answer('{"choices": [{"text": "yes", "finish_reason": "stop"}]}').text
        'yes'
    """
    try:
        reply = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error
    if not isinstance(reply, dict):
        raise ValueError(f"expected a JSON object, got {text[:60]!r}")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"expected choices, got {text[:60]!r}")
    choice = choices[0]
    message = choice.get("message")
    written = message.get("content") if isinstance(message, dict) else choice.get("text")
    if not isinstance(written, str):
        raise ValueError(f"expected text, got {str(choice)[:60]!r}")
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=written,
        is_finished=choice.get("finish_reason") == "stop",
        prompt_tokens=_count(counts.get("prompt_tokens")),
        answer_tokens=_count(counts.get("completion_tokens")),
        model=str(reply.get("model", "")),
    )


def _count(value: Any) -> int | None:
    """A number of tokens, where there is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks to wait; None where there is no sound one.

    Args:
        header: Seconds, or a date of HTTP.
        now: Seconds since 1970.

    Example:
        >>> retry_after_seconds("1.5", 0.0)
        1.5
        >>> retry_after_seconds("Thu, 01 Jan 1970 00:00:09 GMT", 4.0)
        5.0
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _check_url(base_url: str, key_variable: str | None) -> None:
    """Refuse what is no URL of a server, and what would give a secret away.

    Raises:
        ConfigError: With what to write instead.
    """
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"--endpoint: expected a URL such as http://127.0.0.1:8000/v1, got {base_url!r}"
        )
    if parts.username or parts.password:
        raise ConfigError(
            "--endpoint: a URL with a password would stand in reports; put the key into the "
            "environment (endpoint.api_key_variable names the variable)"
        )
    if key_variable and parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(
            f"--endpoint: {host} would be sent the key of ${key_variable} unencrypted: use https, "
            "or name a variable that is not set where the server needs no key: "
            "endpoint.api_key_variable=NO_KEY"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
