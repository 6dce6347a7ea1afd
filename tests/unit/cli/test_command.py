# SPDX-License-Identifier: Apache-2.0
"""The command as a process: what it prints where, how it ends, what it never imports."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from metarm import __version__
from metarm.cli.app import VERBS
from patience import PATIENCE_SECONDS

HEAVY = ("torch", "transformers", "datasets", "trl", "matplotlib", "numpy", "rich", "metarm.config")


def metarm(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metarm", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


def error_of(*words: str, cwd: Path | None = None) -> str:
    done = metarm(*words, cwd=cwd)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "words", [[], ["--version"], *([*verb.split(), "--help"] for verb in VERBS)]
)
def test_help_imports_nothing_heavy(words: Sequence[str]) -> None:
    code = (
        "import sys; from metarm.cli.app import run_command;"
        f"code = run_command({list(words)!r});"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert done.stderr == ""


def test_help_lists_every_verb_and_every_setting() -> None:
    listed = metarm("--help").stdout
    for verb in VERBS:
        group, _, name = verb.rpartition(" ")
        assert f"\n  {name} " in (metarm(group, "--help").stdout if group else listed)
    shown = metarm("reward", "--help").stdout
    for word in ("--meta-set", "--json", "meta_mode=joint", "meta_strength=null"):
        assert word in shown
    assert metarm().stdout == listed
    assert metarm("reward", "-h").stdout == shown


def test_version() -> None:
    done = metarm("--version")
    assert (done.returncode, done.stdout) == (0, f"metarm {__version__}\n")


REWARD = ("reward", "--model", "M", "--preferences", "F", "--output", "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rewrd"], "unknown verb 'rewrd': did you mean 'reward'?"),
        (["frob"], "unknown verb 'frob': known: adapt, advise, augment"),
        (["reward", "--mdel", "x"], "unknown option '--mdel': did you mean '--model'?"),
        (["doctor", "--jsn"], "unknown option '--jsn': did you mean '--json'?"),
        (["run", "--rounds", "2"], "unknown option '--rounds': settings are words without dashes"),
        (["reward", "--learning-rate", "1"], "words without dashes, learning_rate=... (see"),
        (["--vrsion"], "unknown option '--vrsion': did you mean '--version'?"),
        (["reward"], "Missing option '--model'. (see metarm reward --help)"),
        (["sft", "--model"], "requires an argument. (see metarm sft --help)"),
        (["report"], "RUN_DIR"),
        (["evaluate", "--reward-model", "m", "--preferences", "p", "x=1"], "x=1"),
        (["run", "--seed", "-1"], "'--seed'"),
        ([*REWARD, "lerning_rate=1"], "unknown key `lerning_rate`: did you mean 'learning_rate'?"),
        ([*REWARD, "learning_rate=x"], "learning_rate: expected a number, got the text 'x'"),
        ([*REWARD, "learning_rate"], "expected key=value, got 'learning_rate'"),
        ([*REWARD, "meta_mode=descent"], "meta_mode=descent needs groups"),
        ([*REWARD, "--config", "absent.yaml"], "absent.yaml: expected a YAML file, got: No such"),
        (["run"], "output_dir: expected a value, got none"),
        (["run", "--output", "o"], "without a `world`"),
        (["run", "--output", "o", "world={}", "arms=[pla]"], "unknown arm 'pla': did you mean"),
        (
            ["run", "--output", "o", "model_name_or_path=m", "data.preferences=p"],
            "or leave them out: `arms: [sft, frozen, plain, meta]`",
        ),
        (["report", "absent"], "absent"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in error_of(*words, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == [], "a refused command must write nothing"


def test_a_meta_mode_in_the_file_is_asked_for_too(tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text("meta_mode: ascent\n", encoding="utf-8")
    message = error_of(*REWARD, "--config", "reward.yaml", cwd=tmp_path)
    assert "meta_mode=ascent needs groups of the policy's responses, got no --meta-set" in message


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    words = ["sft", "--model", "absent", "--demonstrations", "absent", "--output", "file/out"]
    assert "cannot write" in error_of(*words, cwd=tmp_path)


def test_an_unexpected_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    words = ["optimize", "--policy", "p", "--reward-model", "r", "--prompts", "f"]
    words += ["--output", "out", "--gold", "broken:gold"]
    done = metarm(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: ZeroDivisionError: division by zero (re-run with --debug for the traceback)\n"
    )
    for debugged in (
        metarm("--debug", *words, cwd=tmp_path),
        metarm(*words, "--debug", cwd=tmp_path),
    ):
        assert debugged.returncode == 1
        assert "Traceback" in debugged.stderr
        assert "broken.py" in debugged.stderr


def test_debug_shows_where_a_known_error_came_from(tmp_path: Path) -> None:
    done = metarm("report", "absent", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes to wait on")
@pytest.mark.parametrize(
    ("verb", "kept"),
    [
        (["run"], "finished stages and checkpoints are kept"),
        (REWARD, "checkpoints are kept beside --output"),
    ],
)
def test_ctrl_c_says_what_is_kept(tmp_path: Path, verb: Sequence[str], kept: str) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "metarm", *verb, "--config", "config.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Once we can open the other end without waiting, the command stands in its read.
    writer = -1
    while writer < 0:
        assert process.poll() is None
        try:
            writer = os.open(tmp_path / "config.yaml", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    os.close(writer)
    assert (process.returncode, out) == (130, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("stopped: ")
    assert kept in err


def test_a_closed_pipe_is_not_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "metarm", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    os.close(writer)
    assert done.stderr == ""


def test_stdout_is_for_the_answer_alone(tmp_path: Path) -> None:
    # As a library that prints while it is imported.
    (tmp_path / "torch.py").write_text("print('noise'); raise ImportError('broken')\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "metarm", "doctor", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert not answer["ok"]
    assert {"name": "torch starts", "state": "fail"}.items() <= answer["findings"][-1].items()
    assert "noise" in done.stderr
