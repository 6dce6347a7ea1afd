# SPDX-License-Identifier: Apache-2.0
"""The page of an explanation: where the reward model errs, and some pairs word by word."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from metarm.reports.explain_figure import draw_slices
from metarm.reports.rendering import page_environment, picture
from metarm.schema import Estimate
from metarm.storage import write_text

__all__ = ["shade", "write_explain_page"]

SHADES: Final = (0.05, 0.2, 0.45, 0.7)
"""Lower bounds of the four shades, as shares of the largest value that is shown."""
LEAST_TOLD: Final = 10
"""Prompts, below which an interval of a mean is wider than the page."""
SURE: Final = 0.99
UNSPACED: Final = (range(0x0E00, 0x0F00), range(0x2E80, 0xA000), range(0xF900, 0xFB00))
"""Thai, Lao; Han and kana."""
MAX_CHARACTERS: Final = 1200
NUM_STRONGEST: Final = 8
SHOWN_FACTS: Final = ("reward_model", "after", "preferences", "labelled", "seed")

Row = Mapping[str, Any]


def write_explain_page(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the page and return its path.

    Args:
        document: As `explain.json` has it: slices and pairs, a text, or both.
        folder: Gets `explain.html`.

    Writes:
        `explain.html` in `folder`: no script, nothing loaded from elsewhere; texts stand in it as
        text alone.
    """
    slices = document.get("slices", [])
    context = {
        "title": _title(document),
        "headline": document.get("headline", []),
        "figure": picture(draw_slices(slices)) if len(slices) > 1 else None,
        "has_after": any(row["change"] is not None for row in slices),
        "quantile": f"{1 - document['confident_quantile']:.0%}" if slices else "",
        "sure": _sure(document["confident_above"]) if slices else "",
        "slices": [_slice_row(row) for row in slices],
        "length": _length_rows(document),
        "pairs": [_pair(row) for row in document.get("pairs", [])],
        "text": _single(document["text"]) if "text" in document else None,
        "head": _head(document.get("head")),
        "suspects": [_suspect(row) for row in document.get("suspects", [])],
        "members": document.get("num_members", 1),
        "facts": _facts(document),
    }
    path = folder / "explain.html"
    write_text(path, page_environment().get_template("explain.html.j2").render(context))
    return path


def shade(value: float, largest: float) -> str:
    """The class of a stretch of text: `p1` to `p4` where it adds, `n1` to `n4` where it takes.

    Args:
        value: Its attribution.
        largest: The largest absolute one that is shown beside it.

    Example:
        >>> shade(1.0, 1.0), shade(-0.1, 1.0), shade(0.01, 1.0)
        ('p4', 'n1', '')
    """
    level = sum(abs(value) >= bound * largest for bound in SHADES) if largest > 0 else 0
    return f"{'p' if value > 0 else 'n'}{level}" if level else ""


def _title(document: Row) -> str:
    name = Path(str(document["reward_model"])).name or str(document["reward_model"])
    after = document.get("after")
    return f"{name} before and {Path(after).name} after adaptation" if after else name


def _slice_row(row: Row) -> dict[str, Any]:
    error = row["calibration_error"]
    return {
        "kind": row["kind"],
        "name": row["name"],
        "pairs": f"{row['num_pairs']:,}",
        "accuracy": _percent(row["accuracy"]),
        "confidence": f"{row['confidence']:.0%}",
        "over": _points(row["overconfidence"] if row["num_prompts"] >= LEAST_TOLD else None),
        "ece": "-" if error is None else f"{100 * error:.1f}",
        "wrong": _percent(row["confident_wrong"]),
        "p": "-" if row["p_holm"] is None else _p_value(row["p_holm"]),
        "is_found": row["p_holm"] is not None and row["p_holm"] <= 0.05,
        "after": _percent(row["accuracy_after"]),
        "change": _points(row["change"]),
        "change_p": "-" if row["change_p_holm"] is None else _p_value(row["change_p_holm"]),
        "is_moved": row["change_p_holm"] is not None and row["change_p_holm"] <= 0.05,
    }


def _length_rows(document: Row) -> list[tuple[str, list[str]]]:
    found = [one for one in (document.get("length"), document.get("length_after")) if one]
    balanced = [one["accuracy_balanced"] for one in found]
    rows = [
        ("the reward model prefers the longer answer", "model_prefers_longer"),
        ("the labels prefer the longer answer", "labels_prefer_longer"),
        ("accuracy at equal length (logistic model)", "accuracy_controlled"),
    ]
    told = [(label, [_percent(one[name]) for one in found]) for label, name in rows]
    told.append(
        (
            "mean of the accuracies where the better answer is longer and shorter",
            ["-" if value is None else f"{value:.0%}" for value in balanced],
        )
    )
    slopes = [one["slope"] for one in found]
    told.append(
        (
            "reward for 100 characters more (logits)",
            [
                "-" if s is None else f"{s['value']:+.3f} [{s['low']:+.3f}, {s['high']:+.3f}]"
                for s in slopes
            ],
        )
    )
    return told if found else []


def _pair(row: Row) -> dict[str, Any]:
    own = row["attribution"]
    prompt = _words(own["prompt"])
    chosen = _words(_of_response(own["first"], 1.0))
    rejected = _words(_of_response(own["second"], -1.0))
    values = [abs(value) for _, value in (*prompt, *chosen, *rejected)]
    largest = max(values, default=0.0)
    terms = [
        ("words of the better answer", own["first_sum"]),
        ("words of the worse answer", own["second_sum"]),
        ("words of the prompt, which both have", own["prompt_sum"]),
        ("lengths alone: no words on either side", own["length_alone"]),
        ("left over (completeness gap)", own["gap"]),
    ]
    difference = own["difference"]
    side = "better" if difference > 0 else "worse"
    lead = (
        f"It gives the {side} answer {abs(difference):.2f} more: {_sure(row['confidence'])}, and "
        f"{'right' if difference > 0 else 'wrong'} by the label."
    )
    if row["gap_after"] is not None:
        lead += f" After adaptation: {row['gap_after']:+.2f} for the better answer."
    if row["head_gap"] is not None:
        head_side = "better" if row["head_gap"] > 0 else "worse"
        lead += f" A head fitted to the labels would give the {head_side} answer more."
    return {
        "row": row["row"],
        "why": row["why"],
        "lead": lead,
        "prompt": _spans(prompt, largest),
        "sides": [
            ("Better answer, by its label", _spans(chosen, largest)),
            ("Worse answer, by its label", _spans(rejected, largest)),
        ],
        "terms": [(name, f"{value:+.3f}") for name, value in terms],
        "difference": f"{difference:+.3f}",
        "is_complete": own["is_complete"],
        "steps": own["num_steps"],
        "strongest": _strongest([*prompt, *chosen, *rejected]),
        "neighbours": [_neighbour(near) for near in row["neighbours"]],
        "influences": [
            ("Labels that taught it the better answer", row["helpful"]),
            ("Labels that taught it the worse answer", row["harmful"]),
        ],
        "told": {
            name: [
                {
                    "label": one["label"],
                    "figure": _influence(one),
                    **_label(one),
                }
                for one in row[name]
            ]
            for name in ("helpful", "harmful")
        },
    }


def _single(row: Row) -> dict[str, Any]:
    own = row["attribution"]
    prompt, response = (
        _words([(text, value) for text, value, part in own["pieces"] if part == name])
        for name in ("prompt", "response")
    )
    largest = max((abs(value) for _, value in (*prompt, *response)), default=0.0)
    return {
        "prompt": _spans(prompt, largest),
        "response": _spans(response, largest),
        "terms": [
            ("reward of the text without its words", f"{own['baseline_score']:+.3f}"),
            ("words of the prompt", f"{sum(value for _, value in prompt):+.3f}"),
            ("words of the response", f"{sum(value for _, value in response):+.3f}"),
            ("left over (completeness gap)", f"{own['gap']:+.3f}"),
        ],
        "score": f"{own['score']:+.3f}",
        "is_complete": own["is_complete"],
        "steps": own["num_steps"],
    }


def _of_response(side: Row, sign: float) -> list[tuple[str, float]]:
    return [(text, sign * value) for text, value, part in side["pieces"] if part == "response"]


def _words(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces of a word as one, with their sum; scripts without spaces stay in pieces."""
    found: list[tuple[str, float]] = []
    for text, value in pieces:
        if found and text and found[-1][0] and _is_one_word(found[-1][0][-1], text[0]):
            found[-1] = (found[-1][0] + text, found[-1][1] + value)
        else:
            found.append((text, value))
    return found


def _is_one_word(before: str, after: str) -> bool:
    return all(
        character.isalnum() and not any(ord(character) in block for block in UNSPACED)
        for character in (before, after)
    )


def _spans(words: Sequence[tuple[str, float]], largest: float) -> list[tuple[str, str, str]]:
    """Texts with their class and figure; stretches of no shade, and space around words, are one."""
    found: list[tuple[str, str, str]] = []
    for text, value in words:
        own = shade(value, largest)
        body = text.strip()
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        parts = [("", before), (own, body), ("", after)] if own and body else [(own, text)]
        for shown, part in parts:
            if not shown and found and not found[-1][0]:
                found[-1] = ("", "", found[-1][2] + part)
            elif part:
                found.append((shown, f"{value:+.3f}" if shown else "", part))
    # Blank lines around a text are no part of what is read.
    while found and not found[0][2].strip():
        del found[0]
    while found and not found[-1][2].strip():
        del found[-1]
    if found:
        found[0] = (*found[0][:2], found[0][2].lstrip())
        found[-1] = (*found[-1][:2], found[-1][2].rstrip())
    return found


def _strongest(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str, str]]:
    """The words that count most, by class, figure and text."""
    largest = max((abs(value) for _, value in pieces), default=0.0)
    order = sorted((p for p in pieces if p[0].strip()), key=lambda piece: -abs(piece[1]))
    return [
        (shade(value, largest), f"{value:+.3f}", text.strip())
        for text, value in order[:NUM_STRONGEST]
        if value
    ]


def _influence(one: Row) -> str:
    refit = one["by_refit"]
    checked = "" if refit is None else f" (by a fit without it: {refit:+.3f})"
    return f"{one['influence']:+.3f}{checked}"


def _neighbour(near: Row) -> dict[str, Any]:
    like = near["similarity"]
    return {
        "label": near["label"],
        "figure": f"{like:+.2f}",
        "says": _says(like * (2.0 * near["p"] - 1.0)),
        **_label(near),
    }


def _says(value: float) -> str:
    if value == 0:
        return "speaks for neither answer"
    return f"speaks for the {'better' if value > 0 else 'worse'} answer"


def _suspect(row: Row) -> dict[str, Any]:
    return {
        "label": row["label"],
        "figure": f"{row['chance_mistaken']:.0%}",
        **_label(row),
    }


def _head(head: Row | None) -> dict[str, str] | None:
    if head is None:
        return None
    correlation = head["correlation"]
    return {
        "labels": f"{head['num_labels']:,}",
        "same": f"{head['same_side_fraction']:.0%}",
        "correlation": "-" if correlation is None else f"{correlation:.2f}",
        "accuracy": f"{head['accuracy']:.0%}",
        "left_out": f"{head['accuracy_left_out']:.0%}",
    }


def _facts(document: Row) -> list[tuple[str, str]]:
    facts = [
        (name.replace("_", " "), str(document[name]))
        for name in SHOWN_FACTS
        if document.get(name) is not None
    ]
    return facts + [
        (f"path: {name.replace('_', ' ')}", str(value))
        for name, value in document.get("path", {}).items()
    ]


def _label(row: Row) -> dict[str, Any]:
    """The texts of a label, and what it says of either side."""
    p = row["p"]
    names = ("labelled better", "labelled worse")
    if p < 1:
        names = (f"better with probability {p:.2f}", f"better with probability {1 - p:.2f}")
    texts = [_cut(row[name]) for name in ("chosen", "rejected")]
    return {"prompt": _cut(row["prompt"]), "answers": list(zip(names, texts, strict=True))}


def _cut(text: str) -> str:
    text = text.strip()
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} [... {len(text) - MAX_CHARACTERS} more characters]"


def _sure(confidence: float) -> str:
    return "over 99% sure" if confidence > SURE else f"{confidence:.0%} sure"


def _percent(row: Row | None) -> str:
    if row is None:
        return "-"
    one = Estimate(**row)
    return f"{one.value:.0%} [{100 * one.low:.0f}, {100 * one.high:.0f}]"


def _points(row: Row | None) -> str:
    if row is None:
        return "-"
    value, low, high = (100 * row[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
