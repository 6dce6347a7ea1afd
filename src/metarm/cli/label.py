# SPDX-License-Identifier: Apache-2.0
"""The verbs of a label store: add pairs, import and export labels, status, verify, backup."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metarm.cli.options import (
    AsJson,
    ConfigFile,
    SettingWords,
    note,
    print_json,
    print_table,
    read_section,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metarm.labels.settings import LabelSettings
    from metarm.labels.verifying import Verified

__all__ = [
    "StorePath",
    "add_pairs_to_label",
    "back_up_labels",
    "export_labels_to",
    "import_labels_from",
    "tell_labels",
    "verify_labels",
]

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="The label store, a file.")]
LabelFormatName = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="NAME",
        help="trl-jsonl, trl-parquet, votes-jsonl, votes-csv, argilla or label-studio.",
    ),
]


def add_pairs_to_label(
    store: StorePath,
    words: SettingWords = None,
    config: ConfigFile = None,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            "--pairs",
            metavar="F",
            help="Rows of `prompt`, `first`, `second`; `known_answer` makes a gold item. Repeat "
            "it.",
        ),
    ] = None,
    groups: Annotated[
        list[Path] | None,
        typer.Option(
            "--groups",
            metavar="F",
            help="Rows of `prompt` and `responses`, compared by twos. Repeat it.",
        ),
    ] = None,
    wanted: Annotated[
        Path | None,
        typer.Option(
            "--wanted",
            metavar="F",
            help="Rows of `pair`, an id, and `wanted`, votes of people: asked for before all else. "
            "`label believe` writes them as next_votes.jsonl.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add pairs that are to be compared; the first time makes the store.

    Pairs that are there already stay as they are; --wanted has people give more votes on some of
    them next. Settings are kept in the store: those that are not given stay as they were.
    """
    from metarm.errors import ConfigError
    from metarm.labels.pair_files import (
        read_pair_file,
        read_pairs_of_groups,
        read_wanted_file,
    )
    from metarm.labels.store import LabelStore

    settings = _settings(store, config, words)
    if not pairs and not groups and not wanted and store.exists() and settings is None:
        raise ConfigError("expected --pairs, --groups or --wanted, or settings to change")
    if wanted and not pairs and not groups and not store.exists():
        raise ConfigError(f"--wanted: expected a label store with its pairs, {store} is not there")
    found = [read_pair_file(path) for path in pairs or []]
    found += [read_pairs_of_groups(path) for path in groups or []]
    asked = read_wanted_file(wanted) if wanted else {}
    with LabelStore(store, settings) as opened:
        added = sum(opened.add_pairs(one.pairs, gold=one.gold) for one in found)
        num_asked = opened.ask_next(asked)
        counts = opened.counts()
    if num_same := sum(one.num_same for one in found):
        note(f"{num_same} pairs left out: both responses are the same")
    document = {"added": added, "pairs": counts.num_pairs, "gold": counts.num_gold}
    document |= {"wanted": num_asked} if wanted else {}
    (print_json if as_json else print_table)(document)


def _settings(
    store: Path, config: Path | None, words: "Sequence[str] | None"
) -> "LabelSettings | None":
    """The settings given, over those that the store has; None where none is given."""
    from metarm.labels.reading import LabelReader
    from metarm.labels.settings import LabelSettings

    if not config and not words:
        return None
    given = read_section(config, words, LabelSettings)
    if not store.exists():
        return given
    with LabelReader(store) as reader:
        before = reader.settings
    return LabelSettings(**{**before.model_dump(), **given.model_dump(exclude_unset=True)})


def import_labels_from(
    store: StorePath,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="What to import.")],
    name: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="As `label export` has them; default: any file of preference pairs.",
        ),
    ] = "preferences",
    annotator: Annotated[
        str | None,
        typer.Option(
            "--annotator",
            metavar="NAME",
            help="Whose votes they are, where the file does not say: preferences, trl-*.",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="K", help="Of them: person, model, gold or rule.")
    ] = "person",
    data_format: Annotated[
        str | None,
        typer.Option(
            "--data-format",
            metavar="NAME",
            help="Of preference pairs (docs/data-formats.md). Default: told by the first row.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import labels: all of a file, or nothing.

    Votes that the store has already are left as they are, so that the same file twice is the same
    as once.
    """
    from dataclasses import asdict

    from metarm.errors import ConfigError
    from metarm.labels.exchange.formats import import_labels, read_labels
    from metarm.labels.store import LabelStore
    from metarm.labels.votes import ANNOTATOR_KINDS

    known = next((one for one in ANNOTATOR_KINDS if one == kind), None)
    if known is None:
        raise ConfigError(f"--kind: expected one of {', '.join(ANNOTATOR_KINDS)}, got {kind!r}")
    content = read_labels(path, name, annotator=annotator, kind=known, data_format=data_format)
    with LabelStore(store) as opened:
        imported = import_labels(opened, content)
    (print_json if as_json else print_table)(asdict(imported))


def export_labels_to(
    store: StorePath,
    name: LabelFormatName,
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="F", help="File to write; of argilla and label-studio a folder."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Export the labels, for training or for another tool, with a manifest of their SHA-256.

    It may be done while people vote: the export is one moment of the store.
    """
    from metarm.labels.exchange.formats import export_labels, find_format
    from metarm.labels.reading import LabelReader

    find_format(name)
    _check_beside(store, output)
    with LabelReader(store) as reader:
        content = reader.content()
    facts = export_labels(content, name, output)
    (print_json if as_json else print_table)({"output": str(output), "format": name, **facts})


def tell_labels(store: StorePath, as_json: AsJson = False) -> None:
    """Tell how many pairs, votes and annotators a store has, and what is left."""
    from dataclasses import asdict

    from metarm.labels.reading import LabelReader

    with LabelReader(store) as reader:
        counts, annotators, settings = reader.counts(), reader.annotators(), reader.settings
    if as_json:
        print_json(
            {
                **asdict(counts),
                "annotators": [asdict(one) for one in annotators],
                "settings": settings.model_dump(),
            }
        )
        return
    rows: dict[str, object] = {"queue": "open" if settings.is_open else "closed"} | asdict(counts)
    rows |= {f"votes of {one.name} ({one.kind})": one.num_votes for one in annotators}
    print_table(rows)


def verify_labels(
    store: StorePath,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Mend what can be mended: bring to the database what only the journal has, make a "
            "database that is gone again, and the journal where it is behind.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a label store: SQLite's own checks, and the database against its journal.

    Without --replay nothing is written, and a server may be at work.
    """
    from metarm.errors import ConfigError, RunError
    from metarm.labels.journal import journal_path
    from metarm.labels.store import LabelStore
    from metarm.labels.verifying import verify_store

    if replay and not store.exists() and not journal_path(store).exists():
        raise ConfigError(
            f"{store}: expected a label store or its journal, got neither. Make a store with "
            "`metarm label add`."
        )
    if replay:
        with LabelStore(store, replay=True) as opened:
            note(
                f"{opened.opened.num_replayed} entries from the journal, "
                f"{opened.opened.num_journalled} to the journal"
            )
    found = verify_store(store)
    (print_json if as_json else print_table)(found.to_json() if as_json else _told(found))
    if found.is_foreign_journal:
        raise RunError(
            f"{store}: the journal beside it is that of another store. Move {journal_path(store)} "
            "to its own store, and run `metarm label verify --replay` to have this one's made anew"
        )
    if not found.is_whole:
        raise RunError(
            f"{store}: the store is not whole: see above. `metarm label verify --replay` mends "
            "what database and journal can give each other; else restore a backup first."
        )


def _told(found: "Verified") -> dict[str, object]:
    """The findings as counts, and the first of each kind."""
    rows: dict[str, object] = {}
    for name, value in found.to_json().items():
        if isinstance(value, tuple):
            rows[name] = f"{len(value)}: {value[0]}" if value else 0
        else:
            rows[name] = value
    return rows


def _check_beside(store: Path, output: Path) -> None:
    """Refuse to write over a store or one of the files that are kept beside it.

    Raises:
        ConfigError: When the output is one of them.
    """
    from metarm.errors import ConfigError
    from metarm.labels.verifying import is_part_of

    if output.resolve() == store.resolve():
        raise ConfigError(f"--output: {output} is the store itself: name another file")
    if is_part_of(store, output):
        raise ConfigError(
            f"--output: {output} may belong to the store {store}, whose files are called "
            f"{store.name}.* and {store.name}-*: give it another name, or another folder"
        )


def back_up_labels(
    store: StorePath,
    output: Annotated[Path, typer.Option("--output", metavar="F", help="The copy.")],
    as_json: AsJson = False,
) -> None:
    """Copy a label store while it is in use.

    The copy is a store itself. Put back in the place of a database that is lost, it gets from the
    journal beside it what came after.
    """
    from metarm.labels.verifying import back_up

    _check_beside(store, output)
    back_up(store, output)
    (print_json if as_json else print_table)({"backup": str(output)})
