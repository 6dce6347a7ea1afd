# SPDX-License-Identifier: Apache-2.0
"""What an explanation has done already, states and attributions, kept in its folder as it comes."""

from dataclasses import asdict, dataclass
from pathlib import Path

from metarm.chunk_log import ChunkLog
from metarm.explaining.attributing import Attribution, PathSettings, attribute
from metarm.models.ensemble import EnsembleScore, member_folders
from metarm.models.kept_states import KeptStates
from metarm.models.reward_model import RewardModelScore
from metarm.schema import Prompt, prompt_to_json
from metarm.storage import content_digest, fingerprint

__all__ = ["ATTRIBUTIONS_FILE", "STATES_FILE", "KeptWork"]

ATTRIBUTIONS_FILE = "attributions.log"
STATES_FILE = "states.log"


@dataclass(frozen=True, slots=True)
class KeptWork:
    """Two logs in the output folder; a process that goes on finds its parts in them."""

    attributions: ChunkLog
    states: KeptStates
    """Of the reward model."""
    states_after: KeptStates
    """Of the reward model after adaptation."""

    @classmethod
    def in_folder(cls, folder: Path, model: str, after: str | None = None) -> "KeptWork":
        """What `folder` has of these reward models.

        Raises:
            RunError: When a log is there and cannot be read.
        """
        log = ChunkLog(folder / STATES_FILE)
        return cls(
            ChunkLog(folder / ATTRIBUTIONS_FILE),
            KeptStates(log, _digest(model)),
            KeptStates(log, "" if after is None else _digest(after)),
        )

    def attribute(
        self,
        score: RewardModelScore | EnsembleScore,
        prompt: Prompt,
        response: str,
        path: PathSettings,
    ) -> Attribution:
        """`attribute` of the reward model, done once."""
        model = self.states.model
        key = fingerprint("attribution", model, prompt_to_json(prompt), response, asdict(path))
        known = self.attributions.get(key)
        if known is not None:
            return Attribution.from_json(known)
        found = attribute(score, prompt, response, path)
        self.attributions.put(key, found.to_json())
        return found


def _digest(model: str) -> str:
    return " ".join(content_digest(folder) for folder in member_folders(model))
