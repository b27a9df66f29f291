"""The evaluation stage end to end without a model: baselines and predictions made elsewhere, in one table."""

import json
from math import log2

import numpy as np
import pyarrow.parquet as pq
import pytest
from run_names import undeclared

from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.eval.config import EvaluateRecipe
from lore.eval.scorecard import score
from lore.eval.sections import MetricsSection
from lore.eval.testset import EvalData, load_split, whole_queries
from lore.judge.verdict import Verdict
from lore.rubric.rubric import load_rubric
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.support.fingerprint import model_fingerprint

RUBRIC = load_rubric("homedepot")
TIERS = RUBRIC.tier_ids
COLOURS = ["red", "blue", "green", "black"]


def shop_pairs() -> list[Pair]:
    """Labels mostly follow word overlap; three splits with queries of their own, two slices, an unlabeled pair."""
    rng = np.random.default_rng(0)
    pairs = []
    for split, queries in (("train", 40), ("dev", 12), ("test", 20)):
        for q in range(queries):
            colour = COLOURS[q % 4]
            query = f"{colour} {split}{q} lamp"
            for i in range(6):
                hit = int(rng.integers(0, len(TIERS)))
                label = hit if rng.random() < 0.85 else int(rng.integers(0, len(TIERS)))
                words = [query, f"{colour} lamp", "lamp"][len(TIERS) - 1 - hit] if hit else "wooden chair"
                pairs.append(
                    Pair(
                        pair_id=f"{split}-{q}-{i}",
                        query=query,
                        title=f"{words} number {i}",
                        label=TIERS[label],
                        split=split,
                        slices=["general", "hard"][: 1 + i % 2],
                    )
                )
    pairs.append(Pair(pair_id="test-x", query="unlabeled", title="t", split="test"))
    return pairs


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "pairs.parquet"
    write(path, shop_pairs())
    return path


def write(path, pairs):
    with PairWriter(path) as writer:
        for pair in pairs:
            writer.write(pair)


def recipe_text(path, **more) -> str:
    body = {
        "stage": "evaluate",
        "run": "scored",
        "data": {"path": str(path), "rubric": "homedepot"},
        "prompt": {"order": "answer_only", "detail": "name"},
        "metrics": {"bootstrap_samples": 200},
    }
    return json.dumps(body | more)


def predictions(path, judged, pairs) -> None:
    rows = [{"pair_id": pair.pair_id, **judged(pair)} for pair in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def of_split(*splits) -> list[Pair]:
    return [pair for pair in shop_pairs() if pair.split in splits and pair.label is not None]


def sure(tier: str | None, mass: float = 0.8) -> dict:
    if tier is None:
        return {"tier": None}
    rest = (1 - mass) / (len(TIERS) - 1)
    return {"tier": tier, "rationale": f"it is {tier}"} | {f"p_{t}": mass if t == tier else rest for t in TIERS}


def test_baselines_and_a_predictions_file_share_one_table(shop, tmp_path, write_recipe, runs, capsys):
    file = tmp_path / "judge.jsonl"
    predictions(file, lambda pair: sure(None if pair.pair_id == "test-0-0" else pair.label), of_split("test", "dev"))
    recipe = write_recipe(
        "eval.yaml",
        recipe_text(shop, judges={"perfect": {"kind": "predictions", "predictions": str(file)}}),
        plain=True,
    )
    folder = run_recipe(recipe)
    assert undeclared(folder.path) == []
    printed = capsys.readouterr().out

    metrics = json.loads((folder / "metrics.json").read_text())
    judges = metrics["judges"]
    assert list(judges) == ["perfect", "lexical", "majority"]
    assert metrics["data"]["pairs"] == 120 and metrics["data"]["unlabeled"] == 1
    perfect = judges["perfect"]
    assert perfect["metrics"]["acc_k"]["value"] == pytest.approx(119 / 120, abs=1e-6)
    assert perfect["metrics"]["failure_rate"]["value"] == pytest.approx(1 / 120, abs=1e-6)
    assert perfect["failures"] == {"no_verdict": 1}
    assert perfect["temperature"] < 1  # it was too timid
    assert perfect["metrics"]["ece_calibrated"]["value"] < perfect["metrics"]["ece"]["value"]
    assert (
        perfect["metrics"]["acc_k"]["value"]
        > judges["lexical"]["metrics"]["acc_k"]["value"]
        > judges["majority"]["metrics"]["acc_k"]["value"]
    )
    for judge in judges.values():
        for value in judge["metrics"].values():
            assert value["value"] is None or value["low"] - 1e-9 <= value["value"] <= value["high"] + 1e-9
        assert set(judge["slices"]) == {"general", "hard"}
        assert np.asarray(judge["confusion"]).sum() == 120
    assert judges["majority"]["metrics"]["qwk"]["value"] == 0

    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert len(rows) == 360 and len({(row["judge"], row["pair_id"]) for row in rows}) == 360
    failed = next(row for row in rows if row["judge"] == "perfect" and row["pair_id"] == "test-0-0")
    assert failed["tier"] is None and failed["failure"] == "no_verdict" and failed["label"] in TIERS
    for name in ("report.html", "metrics.json", "predictions.parquet"):
        assert str(folder / name) in printed
    assert "Macro-F1" in printed and f"Acc@{len(TIERS)}" in printed and "[" in printed
    assert folder.is_done
    accuracy = folder.summary["perfect"][f"Acc@{len(TIERS)}"]  # a grid's table shows the value and its interval
    assert accuracy == [perfect["metrics"]["acc_k"][key] for key in ("value", "low", "high")]


def test_predictions_over_more_than_a_limit_takes_are_read_and_foreign_ones_still_refused(shop, tmp_path, write_recipe, runs):
    file = tmp_path / "p.jsonl"
    predictions(file, lambda pair: {"tier": TIERS[0]}, of_split("test", "dev"))
    judges = {"mine": {"kind": "predictions", "predictions": str(file)}}
    body = recipe_text(shop, judges=judges, test_limit=30, dev_limit=20, baselines=[])
    metrics = json.loads((run_recipe(write_recipe("few.yaml", body, plain=True)) / "metrics.json").read_text())
    assert metrics["judges"]["mine"]["pairs"] == 30
    predictions(file, lambda pair: {"tier": TIERS[0]}, of_split("test", "dev", "train"))
    body = recipe_text(shop, run="foreign", judges=judges, test_limit=30, dev_limit=20, baselines=[])
    with pytest.raises(LoreError, match="240 pair ids no pair of this test: train-0-0"):
        run_recipe(write_recipe("foreign.yaml", body, plain=True))


def test_a_finished_run_can_be_read_back_as_a_judge(shop, tmp_path, write_recipe, runs):
    first = run_recipe(write_recipe("first.yaml", recipe_text(shop), plain=True))
    section = {"kind": "predictions", "predictions": str(first / "predictions.parquet"), "predictions_judge": "lexical"}
    recipe = write_recipe("second.yaml", recipe_text(shop, run="again", judges={"read back": section}), plain=True)
    judges = json.loads((run_recipe(recipe) / "metrics.json").read_text())["judges"]
    raw = {name: value for name, value in judges["lexical"]["metrics"].items() if name != "ece_calibrated"}
    assert judges["read back"]["metrics"] == raw  # no dev predictions in the file: not calibrated
    assert judges["read back"]["temperature"] is None


def test_a_prior_gives_a_second_table_and_unknown_names_are_refused(shop, write_recipe, runs, capsys):
    prior = dict(zip(TIERS, [8, 1, 1], strict=True))
    recipe = write_recipe(
        "prior.yaml", recipe_text(shop, run="prior", metrics={"bootstrap_samples": 50, "prior": prior}), plain=True
    )
    judges = json.loads((run_recipe(recipe) / "metrics.json").read_text())["judges"]
    under = judges["lexical"]["under_prior"]["metrics"]["acc_k"]["value"]
    recalls = [row[i] / sum(row) for i, row in enumerate(judges["lexical"]["confusion"])]
    assert under == pytest.approx(0.8 * recalls[0] + 0.1 * recalls[1] + 0.1 * recalls[2], abs=1e-3)
    with pytest.raises(LoreError, match="metrics.prior names 'L9'"):
        run_recipe(write_recipe("bad.yaml", recipe_text(shop, run="bad", metrics={"prior": {"L9": 1}}), plain=True))
    with pytest.raises(LoreError, match="slices names 'hart'.*hard"):
        run_recipe(write_recipe("bad2.yaml", recipe_text(shop, run="bad2", slices=["hart"]), plain=True))


def test_limits_keep_whole_queries_and_depend_on_the_seed_alone():
    queries = [f"q{i // 5}" for i in range(100)]
    kept = whole_queries(queries, 23, seed=1)
    assert len(kept) == 25 and len({queries[i] for i in kept}) == 5
    assert (kept == whole_queries(queries, 23, seed=1)).all()
    assert set(kept) != set(whole_queries(queries, 23, seed=2))
    assert len(whole_queries(queries, None, 0)) == len(whole_queries(queries, 1000, 0)) == 100


def test_a_repeated_pair_counts_once_and_one_with_two_labels_is_refused(tmp_path):
    same = [Pair(pair_id="same", query="q", title="t", label=TIERS[0], split="test") for _ in range(2)]
    write(tmp_path / "twice.parquet", same)
    found = load_split(tmp_path / "twice.parquet", "test", RUBRIC)
    assert len(found) == 1 and found.repeated == 1
    write(tmp_path / "torn.parquet", [*same, Pair(pair_id="same", query="q", title="t", label=TIERS[1], split="test")])
    with pytest.raises(LoreError, match="same.*drop_duplicates"):
        load_split(tmp_path / "torn.parquet", "test", RUBRIC)


def test_a_test_without_labels_is_an_error(tmp_path, write_recipe, runs):
    write(tmp_path / "none.parquet", [Pair(pair_id="a", query="q", title="t", split="test")])
    with pytest.raises(LoreError, match="no labeled pair in split 'test'"):
        run_recipe(write_recipe("none.yaml", recipe_text(tmp_path / "none.parquet"), plain=True))


def test_impossible_recipes_are_refused_before_anything_runs(write_recipe):
    broken = recipe_text(
        "x.parquet",
        judges={
            "a": {"kind": "model"},
            "b": {"kind": "predictions", "predictions": "p.csv", "model": {"name": "m"}},
            "lexical": {"model": {"name": "m"}},
        },
        metrics={"calibrate_on": "test"},
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe("broken.yaml", broken, plain=True))
    message = str(caught.value)
    for part in ("judges.a.model", "judges.b.model", "judges.lexical", "metrics.calibrate_on"):
        assert part in message


def test_a_recipe_names_its_rows_once():
    recipe = EvaluateRecipe(
        run="r",
        data={"path": "x", "rubric": "rair"},
        prompt={"order": "answer_only", "detail": "name"},
        judges={"words": {"kind": "lexical"}},
    )
    assert list(recipe.rows()) == ["words", "majority"]


def test_new_weights_under_an_old_path_are_noticed(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 300_000)
    before = model_fingerprint(str(tmp_path), None)
    assert before == model_fingerprint(str(tmp_path), None)
    (tmp_path / "model.safetensors").write_bytes(b"a" * 200_000 + b"b" * 100_000)
    assert before != model_fingerprint(str(tmp_path), None)
    assert model_fingerprint("org/hub-model", None) == model_fingerprint("org/hub-model", None)


def test_a_finished_evaluation_of_other_predictions_says_so(shop, runs, tmp_path):
    rows = [{"pair_id": pair.pair_id, "tier": pair.label} for pair in shop_pairs() if pair.split == "test" and pair.label]
    file = tmp_path / "elsewhere.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "eval.yaml"
    judges = {"elsewhere": {"kind": "predictions", "predictions": str(file)}}
    path.write_text(recipe_text(shop, judges=judges, baselines=[]))
    run_recipe(path)
    run_recipe(path)
    file.write_text("\n".join(map(json.dumps, [*rows[:-1], rows[-1] | {"tier": TIERS[0]}])))
    with pytest.raises(LoreError, match="made with other inputs:\n  input judges.elsewhere.predictions"):
        run_recipe(path)


def test_test_pairs_without_ratings_are_counted_on_the_console(shop, runs, tmp_path, write_recipe, capsys):
    rated = of_split("test")[:100]
    lines = [json.dumps({"pair_id": pair.pair_id, "rater": rater, "label": pair.label}) for pair in rated for rater in "ab"]
    (tmp_path / "ratings.jsonl").write_text("\n".join(lines))
    metrics = {"bootstrap_samples": 50, "ratings": str(tmp_path / "ratings.jsonl")}
    run_recipe(write_recipe("rated.yaml", recipe_text(shop, baselines=["majority"], metrics=metrics), plain=True))
    assert "metrics.ratings has no rating for 20 of 120 test pairs\n" in capsys.readouterr().out


def test_one_text_in_two_locales_is_two_queries(tmp_path):
    """ESCI's locales: each has its own results page. nDCG by hand, once for each page."""
    rubric = load_rubric("esci")
    gains = dict(zip(rubric.tier_ids, (0.0, 0.01, 0.1, 1.0), strict=True))
    best, good, fair, bad = rubric.tier_ids[::-1]
    pages = {"us": [(best, good), (fair, best), (bad, fair)], "es": [(best, bad), (bad, best), (good, good)]}  # label, verdict
    path, verdicts, expected = tmp_path / "pairs.parquet", {}, []
    with PairWriter(path) as writer:
        for locale, rows in pages.items():
            for at, (label, verdict) in enumerate(rows):
                pair_id = f"{locale}{at}"
                slices = ["task:1", f"locale:{locale}"]
                writer.write(Pair(pair_id=pair_id, query="Bol", title=pair_id, label=label, split="test", slices=slices))
                verdicts[pair_id] = Verdict(pair_id, verdict)
            order = sorted(rows, key=lambda row: -gains[row[1]])
            found = sum(gains[label] / log2(rank + 2) for rank, (label, _) in enumerate(order))
            ideal = sorted((gains[label] for label, _ in rows), reverse=True)
            expected.append(found / sum(gain / log2(rank + 2) for rank, gain in enumerate(ideal)))
    test = load_split(path, "test", rubric)
    assert test.n_queries == 2
    options = MetricsSection(gains=gains, bootstrap_samples=0, calibrate_on=None)
    data = EvalData(path, rubric, test, None)
    card = score("j", "predictions", "", verdicts, data=data, options=options, slices=[], seed=0)
    assert card.whole.metrics["ndcg"].value == pytest.approx(sum(expected) / 2)
    assert card.whole.queries == 2
