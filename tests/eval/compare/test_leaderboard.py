"""`lore leaderboard`: what may stand in one table, what is written, what is passed over."""

import csv
import json
import re
import shutil

import pytest
from conftest import run_python
from evaluations_for_tests import TIERS, evaluate, made_pairs, right_in, write_pairs

from lore.eval.compare.leaderboard import leaderboard
from lore.eval.compare.leaderboard_output import report
from lore.support.errors import LoreError

PAIRS = made_pairs()


@pytest.fixture
def data(tmp_path):
    return write_pairs(tmp_path / "pairs.parquet", PAIRS)


@pytest.fixture
def make(data, tmp_path, runs):
    """Evaluates made-up judges: make("a", {"judge": right_in(0.6, 1)})."""

    def made(run, judges, pairs=PAIRS, **more):
        return evaluate(data, tmp_path, run, judges, pairs, **more)

    return made


def names(board, by="macro_f1"):
    return [row.card.name for row in board.sorted_by(by)]


def written(tmp_path, paths, **options):
    """The three files as text, csv rows and JSON."""
    report(*leaderboard(paths), tmp_path / "board", **{"by": "macro_f1"} | options)
    folder = tmp_path / "board"
    with open(folder / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (folder / "leaderboard.md").read_text(), rows, json.loads((folder / "leaderboard.json").read_text())


def test_judges_are_rows_names_are_told_apart_and_equal_baselines_appear_once(make):
    folders = [
        make("a", {"judge": right_in(0.9, 1), "own": right_in(0.7, 2)}),
        make("b", {"judge": right_in(0.5, 3)}, seed=1),
    ]
    (board,), passed_over = leaderboard(folders)
    assert names(board) == ["judge (a)", "own", "judge (b)", "majority"]
    assert [row.also_in for row in board.rows if row.judge == "majority"] == [["b"]]
    assert not passed_over
    worst_first = names(board, by="cost")
    assert worst_first == ["judge (a)", "own", "judge (b)", "majority"]  # lower is better


def test_a_baseline_trained_otherwise_is_another_row(make):
    folders = [make("a", {}), make("b", {}, train_limit=10)]
    (board,), _ = leaderboard(folders)
    assert sorted(names(board)) == ["majority (a)", "majority (b)"]


@pytest.mark.parametrize(
    "other",
    [
        {"metrics": {"bootstrap_samples": 50, "prior": {TIERS[0]: 0.5, TIERS[2]: 0.5}}},
        {"metrics": {"bootstrap_samples": 50, "label_weights": True}},
        {"metrics": {"bootstrap_samples": 50, "optimism_cost": 3.0}},
        {"test_limit": 40},
        {"test_limit": 40, "seed": 9},
    ],
    ids=str,
)
def test_other_tests_are_never_in_one_table(make, tmp_path, other):
    limited = "test_limit" in other  # a predictions file has to hold the limited pairs and no others
    first = make("a", {} if limited else {"judge": right_in(0.9, 1)}, test_limit=40 if "seed" in other else None)
    second = make("b", {} if limited else {"judge": right_in(0.6, 1)}, **other)
    boards, _ = leaderboard([first, second])
    assert [names(board) for board in boards] == [["majority"] if limited else ["judge", "majority"]] * 2
    if "seed" in other:
        assert boards[0].test_set["pairs"] == boards[1].test_set["pairs"]
    text, rows, content = written(tmp_path, [first, second])
    assert text.count("| judge |") >= 2 and len({row["test_set"] for row in rows}) == len(content["test_sets"]) == 2
    heads = [line for line in text.splitlines() if line.startswith("Rubric")]
    assert len(set(heads)) == 2  # each says what it is


def test_relabeled_or_other_pairs_make_another_table(make, data):
    first = make("a", {"judge": right_in(0.9, 1)})
    pairs = made_pairs()
    pairs[-1].label = TIERS[(TIERS.index(pairs[-1].label) + 1) % 3]
    write_pairs(data, pairs)
    boards, _ = leaderboard([first, make("b", {"judge": right_in(0.9, 1)}, pairs)])
    assert len(boards) == 2


def test_files_hold_the_numbers_of_the_runs_and_the_best_is_bold(make, tmp_path):
    prior = dict(zip(TIERS, [0.7, 0.2, 0.1], strict=True))
    metrics = {"bootstrap_samples": 100, "prior": prior}
    folders = [make(run, {"judge": right_in(share, 1)}, metrics=metrics) for run, share in (("a", 0.5), ("b", 0.9))]
    text, rows, content = written(tmp_path, folders)
    for folder, run in zip(folders, "ab", strict=True):
        entry = json.loads((folder / "metrics.json").read_text())["judges"]["judge"]
        for weighting, part in (("test", entry), ("prior", entry["under_prior"])):
            (row,) = (row for row in rows if row["run"] == run and row["judge"] == "judge" and row["weighting"] == weighting)
            for name, value in part["metrics"].items():
                for column, key in ((name, "value"), (f"{name}_low", "low"), (f"{name}_high", "high")):
                    number = value[key]
                    assert row[column] == "" if number is None else float(row[column]) == pytest.approx(number), column
        (found,) = (row for row in content["test_sets"][0]["rows"] if row["run"] == run and row["judge"] == "judge")
        assert found["metrics"] == entry["metrics"] and found["under_prior"] == entry["under_prior"]["metrics"]
        assert found["apart"]["agreement kappa"] == entry["agreement"]["kappa"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0].startswith("| judge | Acc@2 | Acc@3 | Macro-F1 |")
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    best, second = (next(line for line in table if line.startswith(f"| judge ({run}) |")) for run in "ba")
    assert table.index(best) < table.index(second)
    assert "**" in best.split("|")[4] and "**" not in second.split("|")[4]
    assert "prior 1 0.7 2 0.2 3 0.1" in text and "weighted by the prior" in text


def test_columns_and_order_are_chosen_by_name(make, tmp_path, capsys):
    folder = make("a", {"judge": right_in(0.8, 1)})
    text, _, _ = written(tmp_path, [folder], by="acc_2", metrics=["acc_2", "f1_3"])
    assert "| judge | Acc@2 | F1 3 |" in text
    with pytest.raises(LoreError, match="--by macro_f2: .*Nearest: 'macro_f1'"):
        written(tmp_path, [folder], by="macro_f2")
    with pytest.raises(LoreError, match="--metric ndcg: no judge has a value"):
        written(tmp_path, [folder], metrics=["ndcg"])


def test_the_command_names_what_it_passes_over(make, runs):
    make("nested/inside", {"judge": right_in(0.8, 1)})
    make("unfinished", {"judge": right_in(0.8, 2)})
    (runs / "unfinished" / "done").unlink()
    (runs / "trained").mkdir()
    (runs / "trained" / "recipe.yaml").write_text("stage: sft\n")
    (runs / "notes").mkdir()
    (runs / "list.txt").write_text("mine")
    done = run_python("-m", "lore", "leaderboard", *sorted(runs.iterdir()))
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("skipped"))
    for part in (
        "unfinished (evaluation not finished)",
        "trained (stage sft)",
        "notes (no run)",
        "list.txt (no folder)",
    ):
        assert part in line
    assert "nested" not in line and "judge" in done.stdout and "majority" in done.stdout
    assert {path.name for path in runs.glob("leaderboard.*")} == {"leaderboard.md", "leaderboard.csv", "leaderboard.json"}
    again = run_python("-m", "lore", "leaderboard", f"{runs}/*")  # its own files are no runs, and are replaced
    assert again.returncode == 0, again.stderr
    assert "leaderboard.md (" not in again.stdout
    with pytest.raises(LoreError, match=r"no finished evaluation to rank: .*trained \(stage sft\)"):
        leaderboard([runs / "notes", runs / "trained"])
    with pytest.raises(LoreError, match="nowhere does not exist"):
        leaderboard([runs / "nowhere"])


def test_a_run_named_twice_stands_there_once(make):
    folder = make("a", {"judge": right_in(0.8, 1)})
    (board,), _ = leaderboard([folder, folder.parent, f"{folder.parent}/*"])
    assert names(board) == ["judge", "majority"]


def test_copies_of_a_run_are_told_apart_by_their_folder(make, tmp_path):
    folder = make("a", {"judge": right_in(0.8, 1)})
    shutil.copytree(folder, tmp_path / "copy")
    (board,), _ = leaderboard([folder, tmp_path / "copy"])
    assert set(names(board)) == {f"judge ({folder})", f"judge ({tmp_path / 'copy'})", "majority"}


def test_files_of_others_are_not_overwritten(make, tmp_path):
    found = leaderboard([make("a", {"judge": right_in(0.8, 1)})])
    mine = tmp_path / "leaderboard.md"
    mine.write_text("# my page\n")
    with pytest.raises(LoreError, match="not written by this command"):
        report(*found, tmp_path, by="macro_f1")
    assert mine.read_text() == "# my page\n"
    one = tmp_path / "deep" / "table.csv"
    for _ in range(2):
        report(*found, one, by="macro_f1")
    assert [path.name for path in one.parent.iterdir()] == ["table.csv"]
    with pytest.raises(LoreError, match="expected a folder, or a path that ends in"):
        report(*found, tmp_path / "table.html", by="macro_f1")


def test_a_damaged_run_is_named_and_the_others_are_ranked(make, capsys, tmp_path):
    folder = make("a", {"judge": right_in(0.8, 1)})
    good = make("b", {"judge": right_in(0.8, 1)})
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    whole = json.loads(kept["metrics.json"])

    def judged(**values):
        return json.dumps(whole | {"judges": {"judge": whole["judges"]["judge"] | values}}).encode()

    harms = [
        ("metrics.json", kept["metrics.json"][:100], "damaged: metrics.json cannot be read"),
        ("metrics.json", b"[]", "list instead of an object"),
        ("metrics.json", json.dumps(whole | {"data": {}}).encode(), "how many pairs"),
        ("metrics.json", json.dumps(whole | {"prior": {"1": "x"}}).encode(), "hold a value"),
        ("metrics.json", json.dumps(whole | {"judges": {"judge": 3}}).encode(), "no results of a judge"),
        ("metrics.json", judged(metrics={"macro_f1": {"value": "x", "low": 0, "high": 1}}), "hold a value"),
        ("metrics.json", judged(metrics={"macro_f1": {"value": 1, "low": [], "high": 1}}), "hold a value"),
        ("metrics.json", judged(under_prior=7), "hold a value"),
    ]
    for name in ("done", "recipe.yaml", "metrics.json", "predictions.parquet"):
        harms += [(name, harm, name) for harm in (kept[name][: len(kept[name]) // 2], b"", b"\xff\x00", b"{" * 5_000)]
    for name in ("recipe.yaml", "metrics.json", "predictions.parquet"):
        harms.append((name, None, name))
    for name, harm, match in harms:
        (folder / name).unlink()
        if harm is not None:
            (folder / name).write_bytes(harm)
        (board,), passed_over = leaderboard([folder.parent])
        if name == "recipe.yaml" and harm == kept[name][: len(kept[name]) // 2] and not passed_over:
            continue  # half of a YAML file can be a whole one
        assert {row.run.name for row in board.rows} == {"b"} and match in passed_over[str(folder)], (name, harm)
        (folder / name).write_bytes(kept[name])
    (folder / "metrics.json").write_bytes(b"")
    text, _, content = written(tmp_path, [good, folder])
    assert "not ranked" in capsys.readouterr().out and str(folder) in content["passed_over"]
    with pytest.raises(LoreError, match="no finished evaluation to rank: .*metrics.json cannot be read"):
        leaderboard([folder])


def test_a_run_of_an_older_version_stands_beside_a_new_one(make, tmp_path):
    folders = [make("old", {"judge": right_in(0.6, 1)}), make("new", {"judge": right_in(0.8, 2)})]
    path = folders[0] / "metrics.json"
    content = json.loads(path.read_text())
    known = ("acc_2", "acc_k", "macro_f1", "f1_1", "f1_2", "f1_3", "qwk", "ece", "failure_rate")
    for name, entry in content["judges"].items():
        kept = {key: entry[key] for key in ("kind", "how", "pairs", "queries", "under_prior", "slices", "confusion", "failures")}
        kept["metrics"] = {metric: entry["metrics"][metric] for metric in known}
        content["judges"][name] = kept
    path.write_text(json.dumps(content))
    recipe = folders[0] / "recipe.yaml"
    recipe.write_text(re.sub(r"(?m)^ +(border_cost|optimism_cost|gains|shown|ratings):.*\n", "", recipe.read_text()))
    assert "border_cost" not in recipe.read_text()
    (board,), _ = leaderboard(folders)
    assert names(board)[:2] == ["judge (new)", "judge (old)"]
    text, _, _ = written(tmp_path, folders)
    cost = next(line for line in text.splitlines() if line.startswith("| judge (old)")).split("|")[6]
    assert "cost" in text and cost.strip() == "–"


def test_a_run_whose_recipe_has_the_stage_name_of_an_earlier_version_is_ranked(make):
    folders = [make("old", {"judge": right_in(0.6, 1)}), make("new", {"judge": right_in(0.8, 2)})]
    recipe = folders[0] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("stage: evaluate", "stage: rair"))
    assert "stage: rair" in recipe.read_text()
    (board,), passed_over = leaderboard(folders)
    assert names(board)[:2] == ["judge (new)", "judge (old)"] and not passed_over
    (folders[0] / "done").unlink()
    assert leaderboard(folders)[1] == {str(folders[0]): "evaluation not finished"}
