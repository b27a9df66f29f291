"""`lore traces` as a user types it: real parts, bounded memory, text that cannot steer a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from traces_for_tests import CHECKS, make_trace, write_traces
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data_synth.synthesis.trace import Trace
from lore.support.errors import LoreError

HOSTILE = "[red]x[/red] \x1b[31mred\x1b]0;title\x07 \u202e \x9b2J [link=https://a.example]y[/link] [/]\nnext"


@pytest.fixture
def run(tmp_path):
    bad = {"grounding": "colour: red does not stand in the title"}
    parts = [
        [make_trace(0), make_trace(1, failed=bad, slices=["hard"], tier="L2", image="photos/1.jpg")],
        [
            make_trace(2, hinted=True, label="L4", tier="L4"),
            make_trace(3, failure="rules: no JSON object", demands=[], rationale="", tier=None),
        ],
    ]
    return write_traces(tmp_path / "run", parts)


def lore(*arguments):
    return CliRunner().invoke(app, ["traces", *map(str, arguments)])


def shown(*arguments) -> str:
    result = lore("show", *arguments)
    assert result.exception is None, result.exception
    return result.stdout


def ids(*arguments) -> list[str]:
    return [json.loads(line)["pair_id"] for line in shown(*arguments, "--json").splitlines()]


def test_a_trace_is_shown_with_everything_that_led_to_it(run):
    text = shown(run, "--pair", "pair-1")
    for said in (
        "pair-1  rejected",
        "red samovar",
        "kettle in scarlet",
        "photos/1.jpg",
        "L2, human label L3",
        "samovar = kettle",
        "category-same",
        "failed      grounding: colour: red does not stand in the title",
        "passed      verdict",
        "fact        samovar = kettle (jargon, category)",
        "attempt     1 with hint: no verdict, failed grounding",
    ):
        assert said in text
    assert text.count("passed") == len(CHECKS) - 1 and "pair-0" not in text
    assert "pair-2  accepted with hint" in shown(run)
    assert "unreadable  rules: no JSON object" in shown(run, "--pair", "pair-3")


@pytest.mark.parametrize(
    "options, wanted",
    [
        ([], [0, 1, 2, 3]),
        (["--rejected"], [1, 3]),
        (["--accepted"], [0, 2]),
        (["--check", "grounding"], [1]),
        (["--check", "unreadable"], [3]),
        (["--check", "length"], []),
        (["--slice", "hard"], [1]),
        (["--tier", "L4"], [2]),
        (["--pair", "pair-3"], [3]),
        (["--limit", "3"], [0, 1, 2]),
        (["--rejected", "--limit", "1"], [1]),
    ],
)
def test_filters_choose_traces_in_the_order_of_their_pairs(run, options, wanted):
    assert ids(run, *options) == [f"pair-{number}" for number in wanted]


def test_json_is_the_whole_trace(run):
    (line,) = shown(run, "--pair", "pair-1", "--json").splitlines()
    assert Trace.of_row(json.loads(line)).checks[2].why == "colour: red does not stand in the title"


@pytest.mark.parametrize(
    "options, said",
    [
        (["--check", "groundin"], "Nearest: 'grounding'."),
        (["--slice", "herd"], "existing values: capability:knowledge, general, hard. Nearest: 'hard'."),
        (["--tier", "L9"], "existing values: L3, L4"),
        (["--rejected", "--accepted"], "pass only one of them"),
    ],
)
def test_a_wrong_name_is_an_error_that_names_the_nearest(run, options, said):
    error = lore("show", run, *options).exception
    assert isinstance(error, LoreError) and said in str(error)


def test_a_run_without_traces_says_what_to_do(tmp_path):
    for command in ("show", "summary"):
        assert "There is no run folder" in str(lore(command, tmp_path / "none").exception)
        assert "`lore run`" in str(lore(command, tmp_path).exception)
    run = write_traces(tmp_path / "run", [[make_trace()]])
    (run / "traces" / "part-000001.parquet").write_bytes(b"half")
    assert "part-000001.parquet cannot be read" in str(lore("summary", run).exception)
    nothing = lore("show", write_traces(tmp_path / "other", [[make_trace()]]), "--rejected")
    assert nothing.exit_code == 0 and "No trace of this run" in nothing.stderr


def test_strangers_text_cannot_steer_the_terminal(tmp_path):
    trace = make_trace(
        query=HOSTILE, title=HOSTILE, rationale=HOSTILE, facts=[HOSTILE], slices=[HOSTILE], failed={HOSTILE: HOSTILE}, tier=HOSTILE
    )
    trace.demands[0].wanted = trace.demands[0].found = HOSTILE
    run = write_traces(tmp_path / "run", [[trace]])
    for text in (
        shown(run),
        lore("summary", run).stdout,
        shown(run, "--json"),
        str(lore("show", run, "--check", "x\x1b[2J").exception),
    ):
        assert not set("\x1b\x07\u202e\x9b") & set(text)
        assert "red" in text
    assert "[red]x[/red]" in shown(run)


def test_a_long_text_is_cut(tmp_path):
    run = write_traces(tmp_path / "run", [[make_trace(title="x" * 100_000)]])
    assert "(100,000 characters)" in shown(run) and len(shown(run)) < 20_000


def test_the_summary_counts_as_the_card_does(run):
    text = lore("summary", run).stdout
    for said in ("Pairs by tier", "Failed checks", "Acceptance by capability", "Where rejected pairs fail", "grounding"):
        assert said in text
    counts = json.loads(lore("summary", run, "--json").stdout)
    assert counts["given"] == {"L3": 3, "L4": 1} and counts["accepted"] == {"L3": 1, "L4": 1}


def test_the_first_trace_of_a_large_run_is_there_at_once(tmp_path):
    run = write_traces(tmp_path / "run", [[make_trace(number) for number in range(3000)]])
    (run / "traces" / "part-000001.parquet").write_bytes(b"never read")
    began = time.monotonic()
    assert ids(run, "--limit", "2") == ["pair-0", "pair-1"] and time.monotonic() - began < 2


def test_a_terminal_gets_a_pager_that_can_be_left_early(tmp_path):
    run = write_traces(tmp_path / "run", [[make_trace(number) for number in range(2000)]])
    for pager, options in (("head -n 3", []), ("cat", ["--no-pager", "--limit", "1"])):
        main, side = pty.openpty()
        command = [sys.executable, "-m", "lore", "traces", "show", str(run), *options]
        environment = {**os.environ, "PAGER": pager, "TERM": "xterm", "COLUMNS": "100"}
        with subprocess.Popen(command, stdout=side, stderr=subprocess.PIPE, text=True, env=environment) as process:
            os.close(side)
            seen = b""
            try:
                while chunk := os.read(main, 65536):
                    seen += chunk
            except OSError:  # the other side is closed
                pass
            assert process.wait(60) == 0, process.stderr.read()
            assert "Traceback" not in process.stderr.read()
        os.close(main)
        text = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
        assert "pair-0  accepted" in text and "pair-1 " not in text and b"\x1b[" in seen


def test_the_command_imports_no_torch(run):
    command = f"app(['traces', 'show', {str(run)!r}], standalone_mode=False)"
    code = f"import sys; from lore.cli.main import app; {command}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
