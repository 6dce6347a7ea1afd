# SPDX-License-Identifier: Apache-2.0
"""An explanation as `metarm explain` writes it down, with one text in every place of a text."""

__all__ = ["document"]


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 50}


def slice_row(kind: str, name: str, p_holm: float | None, wrong: float) -> dict:
    return {
        "kind": kind,
        "name": name,
        "num_pairs": 60,
        "num_prompts": 50,
        "accuracy": estimate(0.7),
        "confidence": 0.8,
        "overconfidence": estimate(0.1),
        "calibration_error": None,
        "confident_wrong": estimate(wrong),
        "p_value": p_holm,
        "p_holm": p_holm,
        "change": None,
        "change_p_holm": None,
        "accuracy_after": None,
        "confident_wrong_after": None,
    }


def side(text: str, score: float) -> dict:
    return {
        "pieces": [["", 0.0, "frame"], [text, 0.5, "response"], [" end", -0.01, "response"]],
        "score": score,
        "baseline_score": 0.0,
        "gap": 0.01,
        "num_steps": 16,
        "is_complete": True,
    }


def document(text: str = "word") -> dict:
    sides = {"prompt": text, "chosen": text, "rejected": text}
    behind = {"label": 3, "p": 1.0, **sides}
    attribution = {
        "difference": -1.25,
        "prompt": [[text, -2.0], [" more", 0.001]],
        "prompt_sum": -2.0,
        "first_sum": 0.49,
        "second_sum": -0.49,
        "frame_sum": 0.0,
        "length_alone": 0.6,
        "gap": 0.15,
        "is_complete": False,
        "num_steps": 64,
        "first": side(text, 0.0),
        "second": side(text, 1.25),
    }
    pair = {
        "row": 7,
        "why": "confident and wrong",
        **sides,
        "gap": -1.25,
        "gap_after": None,
        "confidence": 0.78,
        "attribution": attribution,
        "head_gap": 0.4,
        "neighbours": [{"similarity": -0.5, **behind}],
        "helpful": [{"influence": 0.1, "by_refit": 0.11, **behind}],
        "harmful": [{"influence": -0.1, "by_refit": None, **behind}],
    }
    length = {
        "slope": estimate(0.2),
        "model_prefers_longer": estimate(0.6),
        "labels_prefer_longer": estimate(0.5),
        "accuracy_controlled": None,
        "accuracy_balanced": 0.5,
    }
    return {
        "reward_model": text,
        "after": None,
        "preferences": text,
        "labelled": text,
        "seed": 0,
        "headline": [text, text],
        "num_members": 2,
        "confident_quantile": 0.75,
        "confident_above": 0.9,
        "slices": [
            slice_row("all", "all pairs", None, 0.2),
            slice_row("topic", text, 0.01, 0.4),
            slice_row("format", "list in both answers", 0.8, 0.1),
        ],
        "length": length,
        "length_after": None,
        "head": {
            "num_labels": 40,
            "penalty_per_label": 0.1,
            "correlation": None,
            "same_side_fraction": 0.9,
            "accuracy": 0.6,
            "accuracy_left_out": 0.7,
        },
        "suspects": [
            {"margin_without": -1.0, "chance_mistaken": 0.73, "self_influence": 1.0, **behind}
        ],
        "path": {"baseline": "eos"},
        "pairs": [pair],
        "text": {"prompt": text, "response": text, "attribution": side(text, 0.5)},
    }
