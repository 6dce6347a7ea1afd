# SPDX-License-Identifier: Apache-2.0
"""A search in a file: Optuna's trials in SQLite, taken up again after any end; only this knows it.

A trial depends on the search's seed and on the trials before it, not on how often the search was
stopped: with one worker, a search that was killed ends as one that was not.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from metarm.bench.space import Dimension
from metarm.bench.tuning_results import Trial
from metarm.errors import ConfigError, FingerprintError, RunError
from metarm.protocols import StageProgress
from metarm.storage import fingerprint

if TYPE_CHECKING:
    import optuna

__all__ = ["Measure", "measure_importances", "open_study", "read_trials", "run_trials"]

NAME: Final = "tune"
HEARTBEAT_SECONDS: Final = 10
GRACE_SECONDS: Final = 60
"""Without file locks: a trial whose process has been silent for so long is run again."""
LOCK_SECONDS: Final = 60
"""How long a worker waits for another one's write."""
NUM_RANDOM: Final = 10
"""Trials before the sampler leans on what it has seen, and before any is pruned."""
FEWEST_FOR_IMPORTANCES: Final = 20
TOP_TRIALS: Final = 5
"""Fewest trials that PED-ANOVA should call the best ones."""

Measure = Callable[[Mapping[str, float], int], float]
"""Settings, and the place of a seed -> the objective on that split."""


def open_study(
    path: Path, record: Mapping[str, Any], space: Mapping[str, Dimension], *, is_held: bool
) -> "optuna.Study":
    """The search in the file `path`, begun with the default setting where there is none yet.

    Args:
        path: SQLite file.
        record: What decides the result, as JSON values.
        space: The settings; their defaults are the first trial.
        is_held: Whether no other process can be at work on it: then trials that are still running
            are those of one that is gone, and are queued again.

    Raises:
        ConfigError: When the optuna package is not there.
        FingerprintError: When the search was begun with other settings.
        RunError: When the file is not a search.

    Writes:
        `path`.
    """
    study = _load(path)
    # As it comes back from the file: a tuple is a list there.
    record = json.loads(json.dumps(record))
    begun = study.user_attrs.get("settings")
    if begun is None:
        study.set_user_attr("settings", record)
    elif begun != record:
        other = sorted(k for k in {*begun, *record} if begun.get(k) != record.get(k))
        raise FingerprintError(
            f"{path} was begun with other settings ({', '.join(other)}). Use another output "
            "folder, put the old settings back, or remove the folder to begin again."
        )
    if not study.get_trials(deepcopy=False):
        defaults = {name: _typed(d, d.default) for name, d in space.items()}
        study.enqueue_trial(defaults, user_attrs={"is_default": True})
    if is_held:
        _queue_unfinished(study, len(space))
    return study


def _load(path: Path) -> "optuna.Study":
    try:
        import optuna
        import sqlalchemy
    except ImportError as error:
        raise ConfigError("tune needs the optuna package: pip install 'metarm[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # The heartbeat and its callback are marked experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                # Quoted: a folder's name may hold what has a meaning in an URL or a template.
                sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string(),
                engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=_retry(),
            )
        return optuna.create_study(
            study_name=NAME, storage=storage, direction="maximize", load_if_exists=True
        )
    except sqlalchemy.exc.DatabaseError as error:
        raise RunError(
            f"{path}: expected a search of metarm tune, got {error.orig}. Move the file away and "
            "run the same command again."
        ) from error


def _retry() -> Any:
    """What queues a trial again with the same settings."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RetryHeartbeatStaleTrialCallback()


def _typed(dimension: Dimension, value: float) -> float:
    return round(value) if dimension.is_whole else value


def _queue_unfinished(study: "optuna.Study", num_settings: int) -> None:
    """Queue what was running when its process died, and what Ctrl-C ended."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials()
    again = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    retry = _retry()
    for trial in trials:
        # One that was cut before all its settings were drawn is drawn again, and the same.
        is_whole = len(trial.params) == num_settings or trial.user_attrs.get("is_default")
        if trial.state == TrialState.FAIL and trial.number not in again and is_whole:
            retry(study, trial)


def run_trials(
    study: "optuna.Study",
    measure: Measure,
    space: Mapping[str, Dimension],
    *,
    num_seeds: int,
    count: int,
    seed: int,
    worker: int,
    prune: bool,
    deadline: float | None,
    bar: StageProgress,
) -> None:
    """Finish some more trials.

    Args:
        study: Of `open_study`.
        measure: The objective on one split.
        space: What is searched.
        num_seeds: Splits of a trial.
        count: Trials to finish.
        seed: Of the search.
        worker: Number of this process among those at work.
        prune: Whether a trial may end early.
        deadline: `time.time()` after which no trial begins.
        bar: Advances by one for each trial.
    """
    import optuna
    from optuna.trial import TrialState

    def objective(trial: "optuna.Trial") -> float:
        settings = {name: _suggest(trial, name, d) for name, d in space.items()}
        values: list[float] = []
        for place in range(num_seeds):
            values.append(measure(settings, place))
            trial.report(fmean(values), place)
            is_free = prune and not trial.user_attrs.get("is_default")
            if is_free and place < num_seeds - 1 and trial.should_prune():
                trial.set_user_attr("values", values)
                raise optuna.TrialPruned
        trial.set_user_attr("values", values)
        return fmean(values)

    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=NUM_RANDOM, n_warmup_steps=1)
    for _ in range(count):
        if deadline is not None and time.time() >= deadline:
            return
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        # A sampler of each trial's own: one for all would begin anew with each start.
        study.sampler = optuna.samplers.TPESampler(
            seed=int(fingerprint(seed, worker, len(done))[:8], 16),
            n_startup_trials=NUM_RANDOM,
            multivariate=True,
            constant_liar=True,
        )
        study.optimize(objective, n_trials=1)
        best = ""
        # Before the default is through, another worker's trials can all have been pruned.
        with suppress(ValueError):
            best = f"best {study.best_value:.3f}"
        bar.advance(1, best)


def _suggest(trial: "optuna.Trial", name: str, dimension: Dimension) -> float:
    if dimension.is_whole:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=True)
    return trial.suggest_float(name, dimension.low, dimension.high, log=True)


def read_trials(study: "optuna.Study") -> list[Trial]:
    """The trials that are finished or pruned, numbered in their order from 0."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [
        Trial(
            number=number,
            settings=dict(trial.params),
            values=tuple(trial.user_attrs["values"]),
            is_pruned=trial.state == TrialState.PRUNED,
            is_default=bool(trial.user_attrs.get("is_default")),
        )
        for number, trial in enumerate(study.get_trials(deepcopy=False, states=states))
    ]


def measure_importances(study: "optuna.Study", names: Sequence[str]) -> dict[str, float] | None:
    """Each setting's share in what tells the best tenth of the finished trials from all of them.

    The shares sum to 1. At least 5 trials are called the best ones.

    Returns:
        None from fewer than 20 finished trials, which would tell nothing.

    Source:
        PED-ANOVA, Watanabe, Bansal & Hutter 2023.
    """
    import optuna
    from optuna.trial import TrialState

    count = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if count < FEWEST_FOR_IMPORTANCES:
        return None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=max(0.1, TOP_TRIALS / count)
    )
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: found[name] for name in names}
