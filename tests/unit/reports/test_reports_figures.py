# SPDX-License-Identifier: Apache-2.0
"""Figures draw the numbers of the run, fit their text, and cope with any arms."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from metarm.errors import EmptySetError
from metarm.reports.comparisons import summary_of
from metarm.reports.drawing import arm_colours
from metarm.reports.figures import draw_figures, headline_figure, write_picture
from metarm.reports.panels import (
    _smoothed,
    gold_against_kl,
    histograms,
    saw_tooth,
    two_tasks,
    win_bars,
)
from metarm.reports.read_run import Cell, read_run
from metarm.schema import Histogram


def line_of(axes, colour, length):
    """The points of the only line of this colour and length."""
    (line,) = [
        line
        for line in axes.lines
        if line.get_color() == colour and len(line.get_xdata()) == length
    ]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_saw_tooth_goes_down_by_optimisation_and_up_by_retraining(full_run):
    run = read_run(full_run)
    figure = saw_tooth(run)
    assert figure is not None
    axes = figure.axes[run.trained_arms.index("plain")]
    xs, ys = line_of(axes, arm_colours(run)["plain"], 6)
    assert xs.tolist() == [0, 1, 1, 2, 2, 3]
    for place, (name, r) in enumerate(
        (name, r) for r in (1, 2, 3) for name in ("accuracy_before", "accuracy_shifted")
    ):
        summary = summary_of(run, name, "plain", r)
        assert summary is not None
        assert ys[place] == pytest.approx(summary.value)


def test_accuracy_panel_starts_at_sft_and_ends_at_the_last_round(full_run):
    run = read_run(full_run)
    axes = headline_figure(run).axes[0]
    _, ys = line_of(axes, arm_colours(run)["labels"], 4)
    expected = [summary_of(run, "accuracy_shifted", "labels", r) for r in range(4)]
    assert ys == pytest.approx([summary.value for summary in expected if summary is not None])


def test_histograms_are_pooled_densities(make_run, tmp_path):
    def change(card):
        counts = (card.seed, 0, 2) if card.arm == "plain" else (1, 2, 1)
        return replace(card, gap_histogram=Histogram((-2.0, -1.0, 1.0, 2.0), counts))

    arms = ("sft", "plain")
    run = read_run(make_run(tmp_path / "run", arms=arms, rounds=1, seeds=(2, 4), change=change))
    figure = histograms(run)
    assert figure is not None
    start, after = [patch.get_data() for patch in figure.axes[0].patches]
    assert start.values == pytest.approx([0.25, 0.25, 0.25])
    assert after.values == pytest.approx([0.6, 0.0, 0.4])


def test_gold_is_drawn_at_its_kl(full_run):
    run = read_run(full_run)
    figure = gold_against_kl(run)
    assert figure is not None
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    kl, gold = (summary_of(run, name, "plain", 3) for name in ("kl_nats", "gold_score"))
    assert kl is not None
    assert gold is not None
    last = max(marks, key=lambda line: line.get_markersize())
    assert last.get_xdata()[0] == pytest.approx(kl.value)
    assert last.get_ydata()[0] == pytest.approx(gold.value)


def test_gold_against_kl_is_of_the_task_that_was_optimised(make_run, tmp_path):
    """The optimisation's own curve is of the new task: marks of another would not lie on it."""

    def farther(card):
        return replace(card, kl_nats=replace(card.kl_nats, value=card.kl_nats.value + 7.0))

    arms = ("sft", "plain")
    old = read_run(make_run(tmp_path / "old", arms=arms, rounds=1))
    new = read_run(make_run(tmp_path / "new", arms=arms, rounds=1, change=farther))
    run = replace(old, new_task=new)
    figure = gold_against_kl(run)
    assert figure is not None
    marks = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    # The others are the start, at 0, and an interval's ends.
    mark = max(marks, key=lambda line: line.get_markersize())
    assert mark.get_xdata()[0] == pytest.approx(summary_of(new, "kl_nats", "plain", 1).value)
    told = {drawn.title: drawn for drawn in draw_figures(run)}
    assert "on the new task" in told["Gold against KL"].caption
    assert (
        told["Gold against KL"].alt
        != {d.title: d for d in draw_figures(old)}["Gold against KL"].alt
    )


def test_two_tasks_show_the_arms_that_are_there(make_run, tmp_path):
    def unfinished(card):
        return None if (card.arm, card.round) == ("meta", 2) else card

    arms = ("sft", "frozen", "plain", "meta")
    old = read_run(make_run(tmp_path / "old", arms=arms, rounds=2, change=unfinished))
    figure = two_tasks(replace(old, new_task=old))
    assert figure is not None
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["frozen", "plain"]


def test_curves_of_several_seeds_are_averaged_by_iteration(make_run, tmp_path):
    run = read_run(make_run(tmp_path / "run", arms=("sft", "plain"), rounds=1, seeds=(0, 1)))
    curves = [run.curves[Cell("plain", seed, 1)] for seed in (0, 1)]
    kl, gold = _smoothed(curves)
    mean_gold = np.mean([[point.gold for point in curve] for curve in curves], axis=0)
    assert len(kl) == len(gold) == 40 - 5 + 1
    assert gold[0] == pytest.approx(mean_gold[:5].mean())


def test_win_bars_add_up(full_run):
    run = read_run(full_run)
    figure = win_bars(run)
    assert figure is not None
    ends = [patch.get_x() + patch.get_width() for patch in figure.axes[0].patches[2::3]]
    assert len(ends) == 12
    assert ends == pytest.approx([1.0] * 12)


def test_colours_belong_to_arms_and_differ(make_run, tmp_path):
    names = ("sft", "plain", "a", "b", "c", "d", "e")
    run = read_run(make_run(tmp_path / "run", arms=names, rounds=1, seeds=(0,)))
    colours = arm_colours(run)
    assert len(set(colours.values())) == len(names)
    other = read_run(make_run(tmp_path / "two", arms=("meta", "plain"), rounds=1, seeds=(0,)))
    assert arm_colours(other)["plain"] == colours["plain"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_any_number_of_seeds_draws_every_figure(make_run, tmp_path, seeds):
    assert (
        len(
            draw_figures(
                read_run(make_run(tmp_path / "run", arms=("sft", "plain"), rounds=1, seeds=seeds))
            )
        )
        == 8
    )


def test_names_that_matplotlib_would_read_as_orders(make_run, tmp_path):
    arms = ("_hidden", "$x^{$", "a_name_that_is_far_too_long_for_a_legend")
    run = read_run(make_run(tmp_path / "run", arms=arms, rounds=1, seeds=(0,)))
    assert run.start_arm is None
    assert len(draw_figures(run)) == 8
    figure = headline_figure(run)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == [" _hidden", "$x^{$"]
    assert len(texts[2]) == 20


def test_picture_keeps_its_words_apart(full_run):
    figure = headline_figure(read_run(full_run))
    FigureCanvasAgg(figure).draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    boxes += [axes.yaxis.label.get_window_extent() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.legends[0].get_texts()]
    for axes in figure.axes:
        boxes += [label.get_window_extent() for label in axes.get_xticklabels()]
    overlaps = [
        (i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i]) if a.overlaps(b)
    ]
    assert overlaps == []


@pytest.mark.parametrize("gold", [True, False])
def test_picture_is_a_png_of_the_promised_size(make_run, tmp_path, gold):
    arms = ("sft", "plain", "meta")
    run_dir = make_run(tmp_path / "run", arms=arms, rounds=1, seeds=(0,), gold=gold)
    path = write_picture(run_dir, tmp_path / "new folder" / "picture.png")
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert (int.from_bytes(header[16:20]), int.from_bytes(header[20:24])) == (1200, 450)
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]


def test_picture_needs_a_scorecard(tmp_path):
    with pytest.raises(EmptySetError):
        write_picture(tmp_path, tmp_path / "picture.png")


def test_the_highest_histogram_is_drawn_whole(make_run, tmp_path):
    def change(card):
        counts = (0, 9, 0) if card.arm == "plain" and card.round else (3, 3, 3)
        return replace(card, gap_histogram=Histogram((-1.5, -0.5, 0.5, 1.5), counts))

    arms = ("sft", "frozen", "plain")
    figure = histograms(read_run(make_run(tmp_path / "run", arms=arms, rounds=1, change=change)))
    assert figure is not None
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 1 for axes in figure.axes)
