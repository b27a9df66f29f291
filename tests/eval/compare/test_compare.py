"""`lore compare`: paired differences, what is refused, the pairs that changed."""

import csv
import json
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import run_python
from evaluations_for_tests import RUBRIC, TIERS, evaluate, made_pairs, right_in, write_pairs

from lore.data.tables.any_table import table_records
from lore.eval.compare.changes import changed_pairs, counted
from lore.eval.compare.compare import BETTER, SAME, UNCLEAR, WORSE, Options, compare
from lore.eval.compare.compare_output import _changed_text, _write, output_files, report
from lore.eval.compare.finished import Finished, read_run
from lore.eval.compare.judge_predictions import JudgePredictions
from lore.eval.compare.sides import Side, Sides, _bring_to, open_sides
from lore.eval.measures.bootstrap import mean_estimate, times_drawn
from lore.support.errors import LoreError

PAIRS = made_pairs()
TEST = [pair for pair in PAIRS if pair.split == "test"]
HARD = [pair for pair in TEST if "hard" in pair.slices]


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "pairs.parquet", PAIRS)


@pytest.fixture
def make(data, tmp_path, runs):
    """Evaluates made-up judges: make("a", {"judge": right_in(0.6, 1)})."""

    def made(run, judges, pairs=PAIRS, **more):
        return evaluate(data, tmp_path, run, judges, pairs, **more)

    return made


@pytest.fixture
def two(make):
    """Two runs whose judges differ on the hard pairs alone."""
    is_hard = {"where": lambda pair: "hard" in pair.slices}
    return make("a", {"judge": right_in(0.3, 1, **is_hard)}), make("b", {"judge": right_in(1.0, 1, **is_hard)})


def opened(*arguments, **options):
    return open_sides([str(argument) for argument in arguments], **options)


def sides_of(gold, first, second, queries, slices, tiers=("L1", "L2", "L3", "L4")) -> Sides:
    """Sides without files."""
    rubric = {"name": "r", "hash": "h", "tiers": list(tiers), "relevant": [at >= len(tiers) / 2 for at in range(len(tiers))]}
    run = Finished("run", None, rubric=rubric, judges={"a": {}, "b": {}})
    about = [[str(i) for i in range(len(gold))], [f"q{q}" for q in queries], [tiers[g] for g in gold], slices, gold]
    both = [
        Side(run, name, JudgePredictions(*about, predicted, None, [""] * len(gold), [None] * len(gold)), name)
        for name, predicted in (("a", first), ("b", second))
    ]
    return Sides(both[0], both[1:], np.asarray(queries), None, [])


def test_the_difference_is_the_paired_bootstrap_over_queries(two):
    sides = opened(*two)
    found = compare(sides, Options(samples=500, seed=3))[0]
    right = [(side.predictions.predicted == side.predictions.gold).astype(float) for side in (sides.first, sides.others[0])]
    expected = mean_estimate(right[1] - right[0], sides.groups, samples=500, seed=3)
    assert vars(found.metrics["acc_k"].difference) == pytest.approx(vars(expected))
    # once more by hand, for the slice: whole queries drawn, the accuracies of each draw subtracted
    inside = np.asarray(["hard" in names for names in sides.first.predictions.slices])
    queries = sides.groups.max() + 1
    draws = []
    for times in np.concatenate(list(times_drawn(queries, 500, 3))):
        weight = times[sides.groups] * inside
        draws.append(((right[1] - right[0]) * weight).sum() / weight.sum())
    part = found.slices["hard"].acc_k
    assert part.difference.value == pytest.approx((right[1] - right[0])[inside].mean())
    low, high = np.percentile(draws, [2.5, 97.5])
    assert part.difference.low == pytest.approx(low, abs=0.03) and part.difference.high == pytest.approx(high, abs=0.03)
    assert part.difference.low < low and part.difference.high > high  # wider for the few queries


def test_words_say_where_the_judges_differ(two):
    found = compare(opened(*two), Options())[0]
    assert found.metrics["acc_k"].verdict == found.slices["hard"].acc_k.verdict == BETTER
    assert found.slices["hard"].acc_k.p_adjusted <= 0.05
    reverse = compare(opened(*reversed(two)), Options())[0]
    assert reverse.metrics["acc_k"].verdict == reverse.slices["hard"].acc_k.verdict == WORSE
    assert reverse.metrics["cost"].verdict == WORSE and reverse.metrics["cost"].difference.value > 0  # lower is better
    for label in TIERS:
        of_label = [pair for pair in TEST if pair.label == label]
        assert found.tiers[label].pairs == len(of_label)
    assert found.metrics["acc_k"].difference.value == pytest.approx(-reverse.metrics["acc_k"].difference.value)


def test_pairing_makes_the_interval_shorter_than_two_of_their_own(make):
    folders = [make(run, {"judge": right_in(share, 1)}) for run, share in (("a", 0.6), ("b", 0.7))]
    acc = compare(opened(*folders), Options())[0].metrics["acc_k"]
    own = [estimate.high - estimate.low for estimate in (acc.baseline, acc.compared)]
    assert acc.difference.high - acc.difference.low < 0.7 * np.hypot(*own)


@pytest.mark.parametrize("weights", [False, True])
def test_every_value_is_that_of_metrics_json_under_prior_and_weights_too(make, weights):
    prior = dict(zip(TIERS, [0.7, 0.2, 0.1], strict=True))
    metrics = {"bootstrap_samples": 200, "prior": prior, "label_weights": weights, "gains": {TIERS[2]: 1.0}, "border_cost": 2.0}
    folders = [
        make(name, {"judge": right_in(share, 1, failures=0.1)}, metrics=metrics) for name, share in (("a", 0.5), ("b", 0.7))
    ]
    sides = opened(*folders)
    assert (sides.weights is not None) == weights
    for natural in (False, True):
        found = compare(sides, Options(samples=200, prior=natural))[0]
        for folder, who in zip(folders, ("baseline", "compared"), strict=True):
            entry = json.loads((folder / "metrics.json").read_text())["judges"]["judge"]
            written = (entry["under_prior"] if natural else entry)["metrics"]
            defined = {name for name, value in written.items() if value["value"] is not None}
            assert defined == set(found.metrics)
            for name, difference in found.metrics.items():
                estimate = getattr(difference, who)
                close = 1e-3 if name == "ece_calibrated" else 1e-5  # the temperature is written in four digits
                assert estimate.value == pytest.approx(written[name]["value"], abs=close), name
                assert estimate.low == pytest.approx(written[name]["low"], abs=close), name
            parts = entry["slices_under_prior" if natural else "slices"]
            for name, part in found.slices.items():
                for metric in ("acc_k", "acc_2"):
                    value = getattr(getattr(part, metric), who).value
                    assert value == pytest.approx(parts[name]["metrics"][metric]["value"], abs=1e-5)


def test_label_weights_need_the_data_they_come_from(make, data):
    folders = [make(run, {"judge": right_in(0.5, 1)}, metrics={"label_weights": True, "bootstrap_samples": 50}) for run in "ab"]
    write_pairs(data, PAIRS[:-1])
    with pytest.raises(LoreError, match="has changed since"):
        opened(*folders)
    data.unlink()
    with pytest.raises(LoreError, match="with the weights does not exist"):
        opened(*folders)


def test_another_weighting_of_the_second_run_is_named(make):
    first = make("a", {"judge": right_in(0.5, 1)})
    second = make("b", {"judge": right_in(0.6, 1)}, metrics={"label_weights": True, "bootstrap_samples": 50})
    assert any("metrics.label_weights False, there True" in note for note in opened(first, second).notes)


def test_the_order_of_the_rows_does_not_matter(two):
    before = compare(opened(*two), Options(samples=200))[0]
    path = two[1] / "predictions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    after = compare(opened(*two), Options(samples=200))[0]
    assert {k: v.to_json() for k, v in before.metrics.items()} == {k: v.to_json() for k, v in after.metrics.items()}
    assert changed_pairs(before) == changed_pairs(after)


@pytest.mark.parametrize("times, most", [(40, 6), pytest.param(600, 45, marks=pytest.mark.slow)])
def test_equal_judges_are_rarely_told_apart_though_many_intervals_miss_zero(times, most):
    rng = np.random.default_rng(11)
    missed = called = looks = 0
    for seed in range(times):
        queries = np.repeat(np.arange(40), 5)
        gold = rng.integers(0, 4, 200)
        judges = [np.where(rng.random(200) < 0.6, gold, rng.integers(0, 4, 200)) for _ in range(2)]
        slices = [[f"s{i}" for i in np.flatnonzero(rng.random(20) < 0.4)] for _ in range(200)]
        found = compare(sides_of(gold, *judges, queries, slices), Options(samples=200, seed=seed))[0]
        clear = [part.acc_k for part in found.parts if not part.acc_k.difference.low <= 0 <= part.acc_k.difference.high]
        missed, looks = missed + len(clear), looks + len(found.parts)
        called += any(part.acc_k.verdict in (BETTER, WORSE) for part in found.parts)
    print(f"{missed} of {looks} intervals miss zero; {called} of {times} comparisons call something")
    assert 0.02 < missed / looks < 0.10  # as many as chance gives
    assert called <= most  # one in twenty is expected to call anything at all


def test_one_slice_of_sixty_can_be_told_apart():
    rng = np.random.default_rng(2)
    queries = np.repeat(np.arange(120), 5)
    gold = rng.integers(0, 4, 600)
    first = np.where(rng.random(600) < 0.5, gold, (gold + 1) % 4)
    slices = [[f"s{q // 2}"] for q in queries]
    slices = [[*names, "told"] if q < 40 else names for names, q in zip(slices, queries, strict=True)]
    second = np.where(queries < 40, gold, first)
    names = tuple(sorted({name for of in slices for name in of}))
    found = compare(sides_of(gold, first, second, queries, slices), Options(samples=100, slices=names))[0]
    assert len(found.slices) == 61 and found.slices["told"].acc_k.verdict == BETTER
    assert {part.acc_k.verdict for name, part in found.slices.items() if name != "told" and int(name[1:]) >= 20} == {SAME}


def test_three_queries_that_all_moved_are_not_enough():
    queries = np.repeat(np.arange(30), 4)
    gold = np.tile([0, 1, 2, 3], 30)
    first = np.where(queries < 3, (gold + 1) % 4, gold)
    slices = [["few"] if q < 3 else ["rest"] for q in queries]
    found = compare(sides_of(gold, first, gold, queries, slices), Options())[0]
    few = found.slices["few"].acc_k
    assert few.difference.value == 1.0 and few.difference.low > 0 and few.verdict == UNCLEAR
    assert found.slices["rest"].acc_k.verdict == SAME
    assert found.metrics["acc_k"].verdict == UNCLEAR


def test_the_interval_of_a_difference_in_calibration_lies_around_it():
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.3, 1.0, 200)
    gold = rng.integers(0, 4, 200)
    first = np.where(rng.random(200) < confidence, gold, (gold + 1) % 4)
    second = np.where(rng.random(200) < 0.5, gold, (gold + 1) % 4)
    sides = sides_of(gold, first, second, np.arange(200), [[]] * 200)
    for side, mass in ((sides.first, confidence), (sides.others[0], np.full(200, 0.99))):
        rest = np.repeat((1 - mass)[:, None] / 3, 4, axis=1)
        rest[np.arange(200), side.predictions.predicted] = mass
        side.predictions.probabilities = rest
    ece = compare(sides, Options())[0].metrics["ece"].difference
    assert (ece.low + ece.high) / 2 == pytest.approx(ece.value, abs=0.015)  # 0.03 below it where noise is left in


def test_changed_pairs_are_counted_and_the_most_telling_come_first():
    gold, before, after = (np.asarray(values) for values in ([3, 0, 0, 2, 1, 3, 3], [3, 3, 0, 3, 0, -1, 2], [3, 0, 1, 2, 3, 3, -1]))
    sides = sides_of(gold, before, after, np.arange(7), [[]] * 7)
    found = compare(sides, Options())[0]
    rows = changed_pairs(found)
    assert {row["pair_id"] for row in rows} == set("123456")
    assert counted(rows) == {
        "right -> wrong": 1,  # 2
        "wrong -> right": 3,  # 1, 3, 5
        "wrong -> wrong": 2,  # 4, 6
        "relevant -> irrelevant": 1,  # 1
        "irrelevant -> relevant": 1,  # 4
        "verdict -> failure": 1,  # 6
        "failure -> verdict": 1,  # 5
    }
    assert rows[0]["pair_id"] in "15" and rows[-1]["pair_id"] in "23"
    by_id = {row["pair_id"]: row for row in rows}
    assert by_id["1"]["cost_change"] < 0 < by_id["4"]["cost_change"]
    assert by_id["6"]["compared_verdict"] == "none" and by_id["6"]["baseline_verdict"] == "L3"


def test_the_command_prints_and_writes_everything(two, tmp_path):
    out, everything = tmp_path / "changed.jsonl", tmp_path / "all.json"
    command = ("-m", "lore", "compare", *two, "--samples", 200, "--out", out, "--json", everything)
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    for part in ("judge (b) against judge (a): better in", "Acc@3", "hard", "by chance", "wrong -> right", "query: test lamp"):
        assert part in done.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    content = json.loads(everything.read_text())
    changed, changes = (content["comparisons"][0][key] for key in ("changed_pairs", "changes"))
    assert changed == rows
    assert len(rows) == sum(changes[kind] for kind in ("right -> wrong", "wrong -> right", "wrong -> wrong"))
    titles = {pair.pair_id: pair.title for pair in TEST}
    assert rows and all(row["title"] == titles[row["pair_id"]] and "hard" in row["slices"] for row in rows)
    assert run_python(*command[:-2]).returncode == 0  # its own file is replaced


def test_changed_pairs_as_csv_and_no_file_of_others_is_overwritten(two, tmp_path):
    table = tmp_path / "changed.csv"
    sides = opened(*two)
    found = compare(sides, Options(samples=200))
    for _ in range(2):
        report(sides, found, Options(samples=200), out=table)
    with open(table, newline="") as file:
        assert [row["pair_id"] for row in csv.DictReader(file)] == [row["pair_id"] for row in changed_pairs(found[0])]
    table.write_text("mine\n")
    with pytest.raises(LoreError, match="not overwritten"):
        report(sides, found, Options(samples=200), out=table)
    assert table.read_text() == "mine\n"
    with pytest.raises(LoreError, match="expected .jsonl or .csv"):
        report(sides, found, Options(samples=200), out=tmp_path / "changed.txt")


def test_changed_pairs_are_safe_in_a_spreadsheet_and_read_back(two, tmp_path):
    (comparison,) = compare(opened(*two), Options(samples=200))
    rows = changed_pairs(comparison)[:2]
    rows[0] |= {"query": '=HYPERLINK("http://evil")', "pair_id": "123e45", "title": "café", "cost_change": -1.0}
    for _ in range(2):
        output_files(opened(*two), tmp_path / "CHANGED.CSV", None, False)  # its own file is replaced
        _write(tmp_path / "CHANGED.CSV", _changed_text(tmp_path / "CHANGED.CSV", rows))
    text = (tmp_path / "CHANGED.CSV").read_text(encoding="utf-8-sig")
    assert "'=HYPERLINK" in text and "'123e45" in text and ",-1.0," in text
    (_, first), (_, second) = table_records(tmp_path / "CHANGED.CSV", ["pair_id"])
    assert (first["query"], first["pair_id"], first["title"]) == ('=HYPERLINK("http://evil")', "123e45", "café")
    assert second["query"] == rows[1]["query"] and list(first) == list(rows[0])


def test_runs_before_and_after_ids_began_with_a_letter_are_compared(two):
    sides = opened(*two)
    first, side = sides.first, sides.others[0]
    digits = [f"{at:016x}" for at in range(len(first.predictions))]
    first.predictions.pair_ids = digits
    side.predictions.pair_ids = [f"p{one}" for one in digits]
    side.predictions = side.predictions.taken(list(range(len(digits)))[::-1])
    _bring_to(first, side)
    assert side.predictions.pair_ids == digits


def test_metrics_and_slices_are_chosen_by_name(two, capsys):
    capsys.readouterr()
    sides = opened(*two)
    found = compare(sides, Options(samples=200, slices=("hard",)))
    report(sides, found, Options(samples=200), metrics=["macro_f1"])
    printed = capsys.readouterr().out
    assert "Macro-F1" in printed and "QWK" not in printed and "general" not in printed
    with pytest.raises(LoreError, match="Nearest: 'macro_f1'"):
        report(sides, found, Options(samples=200), metrics=["macro_f2"])
    with pytest.raises(LoreError, match="Nearest: 'hard'"):
        compare(sides, Options(slices=("hart",)))


def test_several_runs_are_each_compared_with_the_first(make, capsys):
    folders = [make(run, {"judge": right_in(share, 1)}) for run, share in (("a", 0.5), ("b", 0.6), ("c", 0.7))]
    sides = opened(*folders)
    comparisons = compare(sides, Options(samples=200))
    assert [found.compared.name for found in comparisons] == ["judge (b)", "judge (c)"]
    alone = compare(opened(folders[0], folders[2]), Options(samples=200))[0]
    assert comparisons[1].metrics["qwk"].to_json() == alone.metrics["qwk"].to_json()
    report(sides, comparisons, Options(samples=200))
    assert capsys.readouterr().out.count("against judge (a)") == 2


def test_texts_of_sellers_cannot_steer_the_terminal(two, data, capsys):
    pairs = made_pairs()
    for pair in pairs:
        pair.title = f"\x1b[2J[red]{pair.title}"
    write_pairs(data, pairs)
    sides = opened(*two)
    report(sides, compare(sides, Options(samples=200)), Options(samples=200))
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed and "[2J[red]" in printed


def test_which_judge_is_meant_has_to_be_clear(make):
    folder = make("a", {"one": right_in(0.5, 1), "other": right_in(0.6, 2)})
    with pytest.raises(LoreError, match=f'"{folder}:one", "{folder}:other", "{folder}:majority"'):
        opened(folder, folder)
    with pytest.raises(LoreError, match="no judge 'othr'.*Nearest: 'other'"):
        opened(f"{folder}:one", f"{folder}:othr")
    with pytest.raises(LoreError, match="given twice"):
        opened(f"{folder}:one", f"{folder}:one")
    sides = opened(f"{folder}:one", f"{folder}:other", f"{folder}:majority")
    assert [side.name for side in (sides.first, *sides.others)] == ["one", "other", "majority"]
    assert opened(make("b", {"single": right_in(0.5, 1)}), f"{folder}:one").first.judge == "single"


def test_other_pairs_labels_or_queries_are_refused_with_counts_and_ids(make, data, two):
    def other(run, pairs):
        write_pairs(data, pairs)
        return make(run, {"judge": right_in(0.5, 1)}, pairs)

    with pytest.raises(LoreError, match=r"(?s)2 of 150 pairs missing in less: test-29-3, test-29-4"):
        opened(two[0], other("less", PAIRS[:-2]))
    more = made_pairs(queries=31)
    with pytest.raises(LoreError, match=r"5 of 150 pairs missing in a: test-30-0"):
        opened(two[0], other("more", more))
    relabeled = made_pairs()
    relabeled[-1].label = TIERS[(TIERS.index(relabeled[-1].label) + 1) % 3]
    with pytest.raises(LoreError, match=r"1 of 150 pairs with another label: test-29-4 \('\d', '\d'\)"):
        opened(two[0], other("relabeled", relabeled))
    asked = made_pairs()
    asked[-1].query = "something else"
    with pytest.raises(LoreError, match="1 of 150 pairs with another query: test-29-4"):
        opened(two[0], other("asked", asked))


def test_other_slices_are_noted(make, data, two):
    pairs = made_pairs()
    pairs[-1].slices = ["new"]
    write_pairs(data, pairs)
    other = make("c", {"judge": right_in(0.5, 1)}, pairs)
    assert any(note.startswith("1 pairs have other slices in c") for note in opened(two[0], other).notes)


def test_another_rubric_is_refused_unless_only_its_words_differ(two):
    path = two[1] / "metrics.json"
    content = json.loads(path.read_text())
    content["rubric"]["hash"] = "0123456789abcdef"
    path.write_text(json.dumps(content))
    with pytest.raises(LoreError, match=f"rubric homedepot .0123456789abcdef.*{RUBRIC.hash}.*changed between"):
        opened(*two)
    assert any("another version of the rubric" in note for note in opened(*two, across_rubrics=True).notes)
    content["rubric"]["relevant"] = [False, False, False]
    path.write_text(json.dumps(content))
    with pytest.raises(LoreError, match="do not mean the same"):
        opened(*two, across_rubrics=True)


def test_unfinished_damaged_and_foreign_folders_say_what_is_wrong(two, tmp_path):
    first, second = two

    def refused(match, harm):
        copy = tmp_path / "copy"
        shutil.copytree(second, copy)
        harm(copy)
        with pytest.raises(LoreError, match=match):
            opened(first, copy)
        shutil.rmtree(copy)

    def swap_verdicts(folder):
        path = folder / "predictions.parquet"
        table = pq.read_table(path)
        tiers = pa.array([TIERS[0]] * len(table))
        pq.write_table(table.set_column(table.schema.get_field_index("tier"), "tier", tiers), path)

    def double_a_row(folder):
        table = pq.read_table(folder / "predictions.parquet")
        own = table.filter(pc.equal(table["judge"], "judge"))
        pq.write_table(pa.concat_tables([table, own.slice(0, 1)]), folder / "predictions.parquet")

    def set_border_cost(value, folder):
        text = (folder / "recipe.yaml").read_text()
        assert "border_cost: 1.0" in text
        (folder / "recipe.yaml").write_text(text.replace("border_cost: 1.0", f"border_cost: {value}"))

    refused("has not finished", lambda folder: (folder / "done").unlink())
    refused("recipe.yaml is missing and the run has results", lambda folder: (folder / "recipe.yaml").unlink())
    refused("holds no evaluation .no run", lambda folder: [(folder / name).unlink() for name in ("recipe.yaml", "done")])
    refused("damaged: metrics.json cannot be read", lambda folder: (folder / "metrics.json").write_text('{"judges": '))
    refused("damaged: metrics.json lacks its judges", lambda folder: (folder / "metrics.json").write_text("{}"))
    refused("damaged: it has no predictions.parquet", lambda folder: (folder / "predictions.parquet").unlink())
    refused("damaged: it cannot be read as Parquet", lambda folder: (folder / "predictions.parquet").write_bytes(b"torn"))
    refused("damaged: metrics.json and predictions.parquet disagree about the verdicts", swap_verdicts)
    refused("damaged: 1 of the 151 pairs of judge 'judge' appear twice", double_a_row)
    refused("recipe.yaml is damaged", lambda folder: (folder / "recipe.yaml").write_text("["))
    for value in ("[[]]", "x", "null"):
        refused("damaged: its results hold a value", partial(set_border_cost, value))
    with pytest.raises(LoreError, match="no run folder"):
        opened(first, tmp_path / "nowhere")


def test_a_run_without_newer_keys_is_compared_by_what_it_has(two):
    expected = compare(opened(*two), Options(samples=200))[0]
    for folder in two:
        path = folder / "metrics.json"
        content = json.loads(path.read_text())
        old = ("kind", "how", "pairs", "queries", "metrics", "confusion", "temperature")
        content["judges"] = {name: {key: entry[key] for key in old} for name, entry in content["judges"].items()}
        content["data"] = {"path": content["data"]["path"]}
        content.pop("prior")
        path.write_text(json.dumps(content))
    sides = opened(*two)
    found = compare(sides, Options(samples=200))[0]
    assert {k: v.to_json() for k, v in found.metrics.items()} == {k: v.to_json() for k, v in expected.metrics.items()}
    with pytest.raises(LoreError, match="without metrics.prior"):
        compare(sides, Options(prior=True))
    report(sides, [found], Options(samples=200))


def test_a_run_whose_recipe_has_the_stage_name_of_an_earlier_version_is_compared(two):
    expected = compare(opened(*two), Options(samples=200))[0]
    recipe = two[0] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("stage: evaluate", "stage: rair"))
    assert "stage: rair" in recipe.read_text()
    found = compare(opened(*two), Options(samples=200))[0]
    assert {k: v.to_json() for k, v in found.metrics.items()} == {k: v.to_json() for k, v in expected.metrics.items()}
    assert read_run(two[0] / "predictions.parquet").folder == two[0]
    (two[0] / "done").unlink()
    with pytest.raises(LoreError, match="an evaluation that has not finished"):
        opened(*two)


def test_a_predictions_file_alone_takes_the_rubric_of_the_run_it_is_compared_with(two, tmp_path, capsys):
    assert read_run(two[0] / "predictions.parquet").folder == two[0]
    alone = tmp_path / "moved.parquet"
    shutil.copy(two[1] / "predictions.parquet", alone)
    expected = compare(opened(*two), Options(samples=200))[0]
    sides = opened(two[0], f"{alone}:judge")
    found = compare(sides, Options(samples=200))[0]
    assert found.metrics["qwk"].to_json() == expected.metrics["qwk"].to_json()
    report(sides, [found], Options(samples=200))
    assert "query: test lamp" in capsys.readouterr().out
    with pytest.raises(LoreError, match="unknown which tiers count as relevant"):
        opened(f"{alone}:judge", f"{alone}:majority")
    with pytest.raises(LoreError, match="nor a predictions.parquet"):
        opened(two[0], write_jsonl(tmp_path / "p.jsonl"))


def test_a_predictions_file_with_damaged_columns_is_named(two, tmp_path):
    alone = tmp_path / "moved.parquet"
    content = bytearray((two[1] / "predictions.parquet").read_bytes())
    columns = int.from_bytes(content[-8:-4], "little") + 8  # the schema behind the columns stays whole
    content[4:-columns] = bytes(len(content) - 4 - columns)
    alone.write_bytes(content)
    with pytest.raises(LoreError, match="moved.parquet is damaged: moved.parquet cannot be read"):
        read_run(alone)


def write_jsonl(path):
    path.write_text('{"pair_id": "a", "tier": "1"}\n')
    return path
