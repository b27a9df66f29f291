"""The monitor: charts that alarm for changes and not for chance, the frozen probe set, and who is named."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_folders import label_row, write_labels
from students_for_tests import photo, write_student
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.pair import Pair
from lore.data.parquet import PairWriter, read_pairs
from lore.judge.verdict import Verdict
from lore.online.answer import Answer, relevance
from lore.online.config import ShadowSection
from lore.online.monitor.charts import Chart, Watch, agreement_chart, agreement_threshold, joined_bins, mix_chart, mix_threshold
from lore.online.monitor.probe import Probe, even_shares, freeze, open_probe, probe_line
from lore.online.monitor.report import JUDGE, SHOP, STUDENT, UNKNOWN, Change, attribute
from lore.online.shadow import Shadow, ShadowRow, day_name, shadow_table
from lore.student.scorer import open_student
from lore.support.errors import LoreError

TIERS = ["L1", "L2", "L3", "L4"]
REFERENCE, WHOLE = 20, 80
WATCH = Watch(frozenset(range(REFERENCE)), horizon=60, charts=1)


def rows(share_of_day, seed: int = 0, queries: int = 100, each: int = 4, alike: float = 0.0):
    """day, query and hit of synthetic days. alike: the share of queries whose pairs all agree or all differ."""
    draw = np.random.default_rng(seed)
    day = np.repeat(np.arange(WHOLE), queries * each)
    query = np.tile(np.repeat(np.arange(queries), each), WHOLE)
    shares = np.repeat([share_of_day(one) for one in range(WHOLE)], queries * each)
    single = draw.random(len(day)) < shares
    of_query = np.repeat(draw.random(WHOLE * queries) < shares[::each], each)
    together = np.repeat(draw.random(WHOLE * queries) < alike, each)
    return day, query, np.where(together, of_query, single).astype(float)


# Charts


def test_agreement_that_drops_alarms_and_chance_does_not():
    still = agreement_chart("all", *rows(lambda day: 0.9), WATCH)
    assert still.alarm is None and still.why_not is None and 0.88 < still.reference < 0.92
    assert np.isnan(still.sums[:REFERENCE]).all() and not np.isnan(still.sums[REFERENCE:]).any()
    drops = agreement_chart("all", *rows(lambda day: 0.9 if day < 50 else 0.84), WATCH)
    assert 50 <= drops.alarm <= 56 and 46 <= drops.began <= 52 and not drops.rises
    rises = agreement_chart("all", *rows(lambda day: 0.9 if day < 50 else 0.96), WATCH)
    assert 50 <= rises.alarm <= 56 and rises.rises


def test_pairs_of_one_query_count_as_what_they_are():
    single, alike = (agreement_chart("all", *rows(lambda day: 0.9, alike=one), WATCH) for one in (0.0, 1.0))
    assert 1 <= single.design_effect < 2 and 3.2 < alike.design_effect < 5.5
    assert (alike.high - alike.low).mean() > 1.6 * (single.high - single.low).mean()
    assert all(agreement_chart("all", *rows(lambda day: 0.9, seed, alike=1.0), WATCH).alarm is None for seed in range(5))


def test_weekdays_are_no_alarm():
    weekly = agreement_chart("all", *rows(lambda day: 0.84 if day % 7 > 4 else 0.92), WATCH)
    assert weekly.alarm is None and weekly.design_effect > 3


def test_a_mix_that_moves_alarms_and_chance_does_not():
    def parts(shares, later, seed):
        draw = np.random.default_rng(seed)
        day, query, _ = rows(lambda day: 0.5)
        return day, query, np.where(day < 50, draw.choice(4, len(day), p=shares), draw.choice(4, len(day), p=later))

    even = [0.4, 0.3, 0.2, 0.1]
    still = mix_chart("tiers", *parts(even, even, 1), 4, WATCH)
    assert still.alarm is None and still.values.max() < still.high.max() * 2
    moved = mix_chart("tiers", *parts(even, [0.3, 0.3, 0.3, 0.1], 1), 4, WATCH)
    assert 50 <= moved.alarm <= 53 and 48 <= moved.began <= 51 and moved.rises
    alike = mix_chart("tiers", *parts([1, 0, 0, 0], [1, 0, 0, 0], 1), 4, WATCH)
    assert alike.alarm is None and alike.why_not


def test_a_chart_without_enough_pairs_or_days_says_so():
    few = agreement_chart("tail", *rows(lambda day: 0.9, queries=1), WATCH)
    assert few.alarm is None and "effective pairs" in few.why_not
    early = agreement_chart("tail", *rows(lambda day: 0.9), Watch(frozenset(range(70, 90)), 60))
    assert early.alarm is None and "10 of 20 reference days" in early.why_not


def test_thresholds_know_how_much_the_reference_and_the_chance_say():
    many, few = (agreement_threshold(0.9, 300, pairs, 60, 0.01) for pairs in (30_000, 2000))
    assert few > many + 0.5  # an estimated reference alarms more often
    assert agreement_threshold(0.9, 300, 30_000, 60, 0.1) < many < agreement_threshold(0.9, 300, 30_000, 150, 0.01)
    assert mix_threshold(4, 300, 9000, 60, 0.1) < mix_threshold(4, 300, 9000, 60, 0.01)
    # A two-sided CUSUM with slack 0.75 and threshold 3.34 has an in-control run length of 370 (Hawkins 1993, in Montgomery's
    # "Introduction to Statistical Quality Control"), so about 1 - exp(-100 / 370) = 23.7 % of charts pass it in 100 days.
    assert agreement_threshold(0.5, 100_000, 10**9, 100, 0.237) == pytest.approx(3.34, abs=0.15)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.floats(0.001, 0.4))
def test_joined_bins_are_neighbors_and_large_enough(counts, least):
    joined = joined_bins(np.asarray(counts), least)
    assert (np.diff(joined) >= 0).all() and set(joined) == set(range(joined.max() + 1))
    sizes = np.bincount(joined, counts) / sum(counts)
    assert joined.max() == 0 or (sizes >= least - 1e-9).all()


# Who has changed


def chart(kind: str, alarm: int | None = None) -> Chart:
    found = Chart("agreement, all" if kind == "agreement" else "scores", kind, *np.empty((3, 0)))
    found.alarm, found.began = alarm, alarm and alarm - 2
    return found


def line(who: str, changed: int | None = None, nights=range(100)):
    flips = {day: 40 * (changed is not None and day >= changed) for day in nights}
    return probe_line(who, PROBE, {day: night(flips[day]) for day in nights}, TIERS, noise=0.005, chance=1e-4)


def night(flips: int = 0, judge_id: str = "a"):
    return {name: ((at % 4 + (at < flips)) % 4, None, judge_id) for at, name in enumerate(PROBE.pair_ids)}


PROBE = Probe(Path("probe"), [f"p{at}" for at in range(200)], [None] * 200, "")


@pytest.mark.parametrize(
    ("charts", "probes", "named"),
    [
        ([chart("agreement"), chart("mix")], [line(JUDGE), line(STUDENT)], []),
        ([chart("agreement", 50)], [line(JUDGE), line(STUDENT)], [(SHOP, 50)]),
        ([chart("mix", 50)], [line(STUDENT)], [(SHOP, 50)]),  # the judge has no part in the student's mix
        ([chart("agreement", 50)], [line(JUDGE, 48), line(STUDENT)], [(JUDGE, 48)]),
        ([chart("agreement", 50)], [line(JUDGE), line(STUDENT, 49)], [(STUDENT, 49)]),
        ([chart("agreement", 50), chart("mix", 52)], [line(JUDGE, 48), line(STUDENT)], [(JUDGE, 48), (SHOP, 52)]),
        ([chart("agreement", 50), chart("mix", 52)], [line(JUDGE), line(STUDENT, 48)], [(STUDENT, 48)]),
        ([chart("agreement", 50)], [line(JUDGE, 60), line(STUDENT)], [(SHOP, 50), (JUDGE, 60)]),
        ([chart("agreement")], [line(JUDGE, 48), line(STUDENT)], [(JUDGE, 48)]),
        ([chart("agreement", 50)], [line(STUDENT)], [(UNKNOWN, 50)]),
        ([chart("agreement", 50)], [], [(UNKNOWN, 50)]),
        ([chart("agreement", 50)], [line(JUDGE, nights=range(40)), line(STUDENT)], [(UNKNOWN, 50)]),  # nobody asked it since
    ],
)
def test_the_probe_tells_who_has_changed(charts, probes, named):
    assert [(change.who, change.day) for change in attribute(charts, probes, [], 99)] == named


def test_another_id_is_a_change_that_needs_no_probe():
    found = attribute([chart("agreement", 50)], [], [Change(JUDGE, 49, "its id")], 99)
    assert [(change.who, change.day) for change in found] == [(JUDGE, 49)]
    other = probe_line(JUDGE, PROBE, {1: night(), 2: night(), 3: night(judge_id="b")}, TIERS, noise=0.005, chance=1e-4)
    assert other.changed == 3 and other.nights[-1].flips == 0


def test_noise_is_no_change_and_missing_answers_are():
    assert line(JUDGE).changed is None
    some = {day: night(3) if day else night() for day in range(50)}
    assert probe_line(JUDGE, PROBE, some, TIERS, noise=0.005, chance=1e-4).changed is None
    half = {name: answer for name, answer in night().items() if int(name[1:]) % 2}
    lost = probe_line(JUDGE, PROBE, {0: night(), 1: half}, TIERS, noise=0.005, chance=1e-4)
    assert lost.changed == 1 and lost.nights[1].answered == 100 and lost.nights[1].flips == 100


# The probe set


def pairs_of(count: int) -> list[Pair]:
    bands = [1000.0, 50.0, 1.0]
    return [
        Pair(
            pair_id=f"p{at}",
            query=f"query {at}",
            title=f"mug {at}",
            label=TIERS[at % 4] if at % 40 else "L1",
            query_frequency=bands[at % 3],
        )
        for at in range(count)
    ]


def band(pair: Pair) -> str:
    return {1000.0: "head", 50.0: "torso", 1.0: "tail"}[pair.query_frequency]


def test_a_probe_has_equal_parts_and_does_not_depend_on_the_order(tmp_path):
    pairs = pairs_of(600)
    for name, order in (("a", pairs), ("b", pairs[::-1])):
        with PairWriter(tmp_path / f"{name}.parquet") as writer:
            for pair in order:
                writer.write(pair)
    about = [freeze(str(tmp_path / f"{name}.parquet"), tmp_path / name, 120, band, seed=1) for name in "ab"]
    assert about[0]["fingerprint"] == about[1]["fingerprint"] and about[0]["pairs"] == 120
    assert {(one["band"], one["tier"]): one["pairs"] for one in about[0]["strata"]} == {
        (name, tier): 10 for name in ("head", "torso", "tail") for tier in TIERS
    }
    probe = open_probe(tmp_path / "a")
    assert len(set(probe.pair_ids)) == 120 and probe.labels[0] in TIERS
    other = freeze(str(tmp_path / "a.parquet"), tmp_path / "c", 120, band, seed=2)
    assert other["fingerprint"] != about[0]["fingerprint"]
    with PairWriter(tmp_path / "a" / "pairs.parquet") as writer:
        for pair in pairs[:120]:
            writer.write(pair)
    with pytest.raises(LoreError, match="was frozen"):
        open_probe(tmp_path / "a")


def test_even_shares_give_what_small_strata_lack_to_the_others():
    assert even_shares({"a": 2, "b": 100, "c": 100}, 50) == {"a": 2, "b": 24, "c": 24}
    assert even_shares({"a": 2, "b": 3}, 50) == {"a": 2, "b": 3}


def test_photos_are_frozen_as_bytes(tmp_path):
    (tmp_path / "photo.png").write_bytes(photo("red")["bytes"])
    with PairWriter(tmp_path / "pairs.parquet") as writer:
        writer.write(Pair(pair_id="a", query="b", title="c", image={"bytes": None, "path": str(tmp_path / "photo.png")}))
    freeze(str(tmp_path / "pairs.parquet"), tmp_path / "probe", 5, lambda pair: "tail")
    (tmp_path / "photo.png").unlink()
    (pair,) = read_pairs(str(tmp_path / "probe" / "pairs.parquet"))
    assert pair.image["bytes"] == photo("red")["bytes"]


# The command

FIRST = 20_000


def shop_days(folder: Path, days: int = 14, changed: int = 9, judge_too: bool = False, seed: int = 0) -> None:
    """A shadow folder and labels of its days, with a drop of agreement from the day `changed` on; a probe with nights of both."""
    draw = np.random.default_rng(seed)
    pairs = pairs_of(240)
    with PairWriter(folder / "probe_pairs.parquet") as writer:
        for pair in pairs[:100]:
            writer.write(pair)
    freeze(str(folder / "probe_pairs.parquet"), folder / "probe", 100, band)
    for number in range(days):
        day = FIRST + number
        rows, labels = [], []
        for pair in pairs:
            tier = int(draw.integers(4))
            shares = [0.9 if at == tier else 0.1 / 3 for at in range(4)]
            verdict = Verdict(pair.pair_id, TIERS[tier], shares, judge_id="student", source="student")
            rows.append(ShadowRow(pair, Answer(verdict, relevance(verdict, TIERS), "tail"), day * 86_400.0))
            judged = tier if draw.random() < (0.9 if number < changed else 0.5) else (tier + 1) % 4
            labels.append(label_row(pair.query, "i", TIERS[judged], pair_id=pair.pair_id))
        name = day_name(day)
        (folder / "shadow" / name).mkdir(parents=True)
        half = len(rows) // 2 + 1
        for at, part in enumerate((rows[:half], rows[half - 1 :])):  # one pair twice, by two workers
            pq.write_table(shadow_table(part, TIERS), folder / "shadow" / name / f"{at}.parquet")
        write_labels(folder / "labels" / name, labels)
        (folder / "labels" / name / "summary.json").write_text('{"rubric": "shop"}')
        for who in ("judge", "student"):
            moved = 30 if judge_too and who == "judge" and number >= changed else 0
            answers = [
                label_row(pair.query, "i", TIERS[(at + (at < moved)) % 4], pair_id=pair.pair_id)
                for at, pair in enumerate(pairs[:100])
            ]
            write_labels(folder / f"probe_{who}" / name, answers)


def lore(*arguments: object) -> SimpleNamespace:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, LoreError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return SimpleNamespace(status=result.exit_code, output=result.output)


def report(folder: Path, *more: object) -> tuple[int, dict]:
    nights = ("--probe", folder / "probe", "--probe-judge", folder / "probe_judge", "--probe-student", folder / "probe_student")
    done = lore(
        *("monitor", "report", folder / "shadow", "--labels", folder / "labels", *nights, "--reference-days", 6, "--check"),
        *("--horizon-days", 50, "-o", folder / "monitor", *more),
    )
    return done.status, json.loads((folder / "monitor" / "monitor.json").read_text())


@pytest.mark.parametrize(("judge_too", "who"), [(False, "shop"), pytest.param(True, "judge", marks=pytest.mark.slow)])
def test_the_report_names_who_has_changed(tmp_path, judge_too, who):
    shop_days(tmp_path, judge_too=judge_too)
    status, found = report(tmp_path)
    assert status == 3 and [change["who"] for change in found["changes"]] == [who]
    assert found["changes"][0]["day"] in {day_name(FIRST + 9), day_name(FIRST + 10)}
    assert [one["pairs"] for one in found["days"]] == [240] * 14 and "14 rows repeat" in found["remarks"][0]
    page = (tmp_path / "monitor" / "monitor.html").read_text()
    assert found["headline"][0].split(",")[0] in page and page.count("<svg") == 3 and "http" not in page.replace("http-equiv", "")


def test_a_new_reference_begins_where_the_user_says(tmp_path):
    shop_days(tmp_path, days=4, changed=2)
    status, found = report(tmp_path, "--since", day_name(FIRST + 2))
    assert status == 0 and len(found["days"]) == 2 and found["setting"]["reference"][0] == day_name(FIRST + 2)
    assert all("reference days" in chart["state"] for chart in found["charts"])


def test_unchanged_days_report_nothing_and_goodrate_is_the_judges(tmp_path):
    shop_days(tmp_path, days=8, changed=99)
    status, found = report(tmp_path)
    assert status == 0 and found["changes"] == [] and "chance" in found["headline"][0]
    first = found["days"][0]
    labels = pq.read_table(next((tmp_path / "labels" / first["day"] / "verdicts").iterdir())).to_pylist()
    assert first["goodrate"]["judge"]["value"] == pytest.approx(np.mean([row["p_L3"] + row["p_L4"] for row in labels]), abs=1e-6)
    assert first["goodrate"]["rated"]["value"] is None
    assert 0.02 < first["goodrate"]["judge"]["high"] - first["goodrate"]["judge"]["low"] < 0.2


def test_what_cannot_be_reported_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoreError, match="no answers of the student"):
        lore("monitor", "report", tmp_path / "empty", "-o", tmp_path / "out")
    with pytest.raises(LoreError, match="no folder of `lore label`"):
        lore("monitor", "report", tmp_path / "empty", "--labels", tmp_path / "empty", "-o", tmp_path / "out")
    with pytest.raises(LoreError, match="--since"):
        lore("monitor", "report", tmp_path / "empty", "--since", "yesterday", "-o", tmp_path / "out")
    with pytest.raises(LoreError, match="--probe"):
        lore("monitor", "report", tmp_path / "empty", "--probe-judge", tmp_path / "empty", "-o", tmp_path / "out")


@pytest.mark.slow
def test_lore_label_takes_the_shadow_folder_as_it_is(tmp_path, monkeypatch):
    """From the service's writer to the report, with a real student and, as the judge, another one."""
    monkeypatch.setenv("LORE_CACHE", str(tmp_path / "cache"))
    student, judge = (write_student(tmp_path / name, seed=seed) for name, seed in (("student", 0), ("judge", 1)))
    pairs = [Pair(pair_id=str(at), query="red mug", title=f"mug {at} of blue", image=photo("red")) for at in range(60)]
    verdicts = open_student(student).score(pairs)
    shadow = Shadow(ShadowSection(share=1.0, folder=str(tmp_path / "shadow")), TIERS)
    shadow.start()
    shadow.offer(pairs, [Answer(verdict, relevance(verdict, TIERS), "head") for verdict in verdicts])
    shadow.close()
    (day,) = (tmp_path / "shadow").iterdir()
    lore("label", day, "--judge", judge, "-o", tmp_path / "labels" / day.name)
    lore("monitor", "report", tmp_path / "shadow", "--labels", tmp_path / "labels", "-o", tmp_path / "monitor")
    found = json.loads((tmp_path / "monitor" / "monitor.json").read_text())
    expected = np.mean([one.tier == other.tier for one, other in zip(verdicts, open_student(judge).score(pairs), strict=True)])
    assert found["charts"][0]["days"][0]["value"] == pytest.approx(expected) and found["days"][0]["judged"] == 60
