# SPDX-License-Identifier: Apache-2.0
"""The model that is served, and how another takes its place without a request being lost.

The place is read again on a signal, or every few seconds; nobody can name a model over the network.
A new model is loaded and tried beside the old one, which goes on serving; then one assignment
changes them. A model that cannot be loaded changes nothing.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from metarm.errors import MetarmError
from metarm.serving.counters import Counters
from metarm.serving.model_files import Signature, file_signature, find_model
from metarm.serving.served_model import ServedModel, load_served_model
from metarm.serving.settings import ServeSettings

__all__ = ["ModelSlot", "Watcher"]

logger = logging.getLogger(__name__)


class ModelSlot:
    """Holds the served model. `current` is read by any thread; `refresh` is called by one."""

    def __init__(self, place: Path, counters: Counters, settings: ServeSettings) -> None:
        """Load the first model, to be served as `settings` say.

        Raises:
            ModelError: When there is none at `place`.
        """
        self._place, self._counters, self._settings = place, counters, settings
        self._folder = find_model(place)
        self.current: ServedModel = self._load(self._folder, version=1)
        self.last_error: str | None = None
        self._seen: Signature | None = None
        self._failed: Signature | None = None

    def refresh(self, *, waits_for_quiet: bool = False) -> bool:
        """Serve what is at the place now, if it is another model; whether it was.

        Args:
            waits_for_quiet: Leave files alone that differ from those of the last look: somebody
                may be writing them.
        """
        try:
            folder = find_model(self._place)
            signature = file_signature(folder)
            if folder == self._folder and signature == self.current.signature:
                self.last_error = None
                return False
            if waits_for_quiet and signature != self._seen:
                self._seen = signature
                return False
            if waits_for_quiet and signature == self._failed:
                return False
            self._failed = signature
            version = self.current.facts.version + 1
            model = self._load(folder, version=version)
        # Files of others may be broken in any way; the old model serves on, whatever it is.
        except (
            MetarmError,
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            MemoryError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            message = f"{type(error).__name__}: {error}"
            if message != self.last_error:
                logger.warning("the old model serves on; the new one: %s", message)
                self._counters.add("metarm_swaps_total", outcome="failed")
            self.last_error = message
            return False
        self.last_error = self._failed = None
        if model.facts.sha256 == self.current.facts.sha256:
            # The same bytes under new names or times: no other model, no other version.
            self.current.signature, self._folder = signature, folder
            return False
        self._folder, self.current = folder, model
        self._counters.add("metarm_swaps_total", outcome="done")
        facts = model.facts
        logger.info("version %d: %s, sha256 %s", facts.version, facts.name, facts.sha256)
        return True

    def _load(self, folder: Path, *, version: int) -> ServedModel:
        settings = self._settings
        return load_served_model(
            folder, version=version, is_exact=settings.exact, max_tokens=settings.max_tokens
        )


class Watcher:
    """A thread that refreshes a slot: when asked, and every `seconds` if given."""

    def __init__(self, refresh: Callable[..., bool], *, seconds: float | None) -> None:
        self._refresh, self._seconds = refresh, seconds
        self._is_asked = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="metarm-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def ask(self) -> None:
        """Refresh soon; may be called from a signal handler."""
        self._is_asked.set()

    def stop(self) -> None:
        """End, without waiting for a model that is being loaded."""
        self._is_over = True
        self._is_asked.set()

    def _run(self) -> None:
        while True:
            was_asked = self._is_asked.wait(self._seconds)
            self._is_asked.clear()
            if self._is_over:
                return
            self._refresh(waits_for_quiet=not was_asked)
