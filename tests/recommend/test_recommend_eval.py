"""Stage recommend_eval and `lore recommend` on real files: rows, controls, intervals, resume, and what is shown and why."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from codes_for_tests import write_catalogue
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lore.cli.main import app
from lore.config.stages import load_recipe
from lore.config.yaml_text import RecipeError
from lore.recommend.baselines import cooccurrence, popularity
from lore.recommend.blend import Blend
from lore.recommend.codes import read_codes
from lore.recommend.eval_table import make_table
from lore.recommend.evaluate import limited
from lore.recommend.metrics import Measured, measure
from lore.recommend.model import SequenceModel, save_model
from lore.recommend.personal_order import personal_order
from lore.recommend.retriever import NextItemRetriever, Query, open_retriever
from lore.run.run_folder import RunFolder
from lore.run.runner import run_command, run_recipe
from lore.support.errors import LoreError

SHELF, SHELVES, USERS = 20, 8, 300
ITEMS = SHELF * SHELVES


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Shoppers go from shelf to shelf and take any item there. The first code of an item is its shelf."""
    folder, rng, rows = tmp_path_factory.mktemp("shop"), np.random.default_rng(0), []
    write_catalogue(folder / "items.parquet", ITEMS)
    for user in range(USERS):
        first = rng.integers(SHELVES)
        taken = [(first + step) % SHELVES * SHELF + rng.integers(SHELF) for step in range(6)]
        rows += [{"user_id": f"u{user}", "item_id": f"i{item}", "time": float(step)} for step, item in enumerate(taken)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    codes = {f"i{row}": [f"<a_{row // SHELF}>", f"<b_{row}>"] for row in range(ITEMS)}
    (folder / "codes.json").write_text(json.dumps(codes))
    return folder


def recipe(shop, name="eval", **more):
    data = f"data: {{events: {shop / 'events.parquet'}, items: {shop / 'items.parquet'}}}"
    lines = ["stage: recommend_eval", f"run: {name}", data]
    more = {"prefixes": f"{{codes: {shop / 'codes.json'}, weights: [20.0]}}", "bootstrap_samples": 200} | more
    lines += ["cooccurrence: {window: 1, last: 1}"]
    path = shop / f"{name}.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in more.items())]) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(shop):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(shop / "runs"))
        assert run_command([str(recipe(shop))]) == 0
    return shop / "runs" / "eval"


def test_the_table_has_all_rows_both_rules_and_the_control(finished):
    table = json.loads((finished / "table.json").read_text())
    assert list(table["rows"]) == [
        "popularity",
        "co-occurrence",
        "co-occurrence both ways",
        "item-kNN",
        "co-occurrence with prefixes",
        "co-occurrence with prefixes, shuffled codes",
    ]
    assert table["reference"] == "co-occurrence" and table["targets"] == USERS
    rows = table["rows"]
    assert rows["co-occurrence"]["over reference"] is None
    for row in rows.values():
        for rule in ("removed", "kept"):
            assert 0 <= row["metrics"][rule]["all"]["NDCG@10"]["value"] <= row["metrics"][rule]["all"]["HR@10"]["value"] <= 1
    # What comes next is known by its shelf, which the codes say: they help, and shuffled ones do not.
    control = rows["co-occurrence with prefixes, shuffled codes"]
    assert control["control of"] == "co-occurrence with prefixes"
    assert control["the controlled row over it"]["removed"]["all"]["NDCG@10"]["low"] > 0
    hits = {name: row["metrics"]["removed"]["all"]["HR@10"] for name, row in rows.items()}
    assert hits["co-occurrence"]["low"] > hits["popularity"]["high"]


def test_the_report_shows_every_row_and_no_script(finished):
    page = (finished / "report.html").read_text()
    assert page.count("co-occurrence with prefixes, shuffled codes</th>") >= 8
    assert "<script" not in page and "default-src 'none'" in page


def test_rows_of_an_interrupted_run_are_not_measured_again(shop, finished, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(shop / "runs"))
    kept = np.load(finished / "rows" / "popularity.npz")
    before = json.loads((finished / "table.json").read_text())
    (finished / "done").unlink()
    (finished / "rows" / "item-kNN.npz").write_bytes(b"cut")
    asked = []
    monkeypatch.setattr("lore.recommend.evaluate.measure", lambda made, *rest: asked.append(rest[-1]) or measure(made, *rest))
    assert run_command([str(recipe(shop))]) == 0
    assert asked == ["item-kNN"]
    assert json.loads((finished / "table.json").read_text()) == before
    assert kept["values"].shape == (2, USERS, 6)


def test_names_of_rows_are_checked(shop):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(shop, "wrong", reference="coocurrence", models="{a: {name: nowhere, control_of: b}}"))
    assert {problem.key for problem in error.value.problems} == {"reference", "models.a.control_of"}
    assert any(problem.nearest == "co-occurrence" for problem in error.value.problems)
    with pytest.raises(RecipeError, match="a name of 300 characters"):
        load_recipe(recipe(shop, "long", models=f"{{{'n' * 300}: {{name: {shop}}}}}"))


def test_paired_differences_are_of_the_same_users(shop):
    """Two rows that differ by one constant gain have a difference without noise, whatever the users are."""
    histories = load_recipe(recipe(shop)).data.histories()
    rng, size = np.random.default_rng(0), len(histories.test)
    values = rng.random((2, size, 6)).astype(np.float32)
    one = Measured(values, np.zeros(ITEMS, dtype=np.int64))
    rows = make_table({"a": one, "b": replace(one, values=values + 0.25)}, histories, "test", reference="a", controls={}).rows
    gain = rows[1].over_reference["removed", "all", "MRR"]
    assert [gain.value, gain.low, gain.high] == pytest.approx([0.25] * 3, abs=1e-5)
    noisy = rows[0].metrics["removed", "all", "MRR"]
    assert noisy.high - noisy.low > 0.05


def test_cold_and_warm_targets_make_up_the_whole(shop):
    histories = load_recipe(recipe(shop)).data.histories()
    cold = histories.training_counts()[histories.items[histories.test.place]] <= 5
    values = np.zeros((2, len(cold), 6), dtype=np.float32)
    values[:, cold] = 1
    table = make_table({"a": Measured(values, np.ones(ITEMS))}, histories, "test", reference="a", controls={}, samples=0)
    metrics = table.rows[0].metrics
    assert 0 < table.cold == cold.sum() < len(cold)
    assert [metrics["removed", group, "MRR"].value for group in ("cold", "warm", "all")] == pytest.approx([1, 0, cold.mean()])


def test_a_limit_draws_targets_and_leaves_training_alone(shop):
    histories = load_recipe(recipe(shop)).data.histories()
    few = limited(histories, "test", 40, 0)
    assert len(few.test) == 40 and set(few.test.place) < set(histories.test.place) and len(few.valid) == len(histories.valid)
    assert (histories.test.user[np.searchsorted(histories.test.place, few.test.place)] == few.test.user).all()
    assert (few.training_counts() == histories.training_counts()).all()
    assert set(limited(histories, "test", 40, 1).test.place) != set(few.test.place)


class Flat:
    name = "flat"

    def scores(self, histories):
        return np.tile(np.arange(ITEMS, dtype=np.float32), (len(histories), 1))


def test_evidence_counts_shared_codes_and_common_histories(shop, finished):
    found, histories, _ = open_retriever(finished, "co-occurrence with prefixes")
    retriever = NextItemRetriever(Flat(), histories, found.codes)
    got = retriever.retrieve(Query("any text", ["i3", "nowhere", "i5"]), 4)
    assert [one.item_id for one in got.candidates] == ["i159", "i158", "i157", "i156"] and got.unknown == ["nowhere"]
    row_of = {item: row for row, item in enumerate(histories.item_ids)}
    for one in got.candidates:
        for past in one.evidence:
            pair = row_of[one.item_id], row_of[past.item_id]
            assert past.together == sum(set(pair) <= set(histories.training(user).tolist()) for user in range(USERS))
            assert past.shared == int(found.codes.values[pair[0], 0] == found.codes.values[pair[1], 0])
    assert any(one.evidence for one in got.candidates)
    assert [one.item_id for one in retriever.retrieve(Query(history=["i159", "i157"]), 2).candidates] == ["i158", "i156"]
    assert retriever.retrieve(Query(history=["i159"]), 1, repeats=True).candidates[0].item_id == "i159"
    assert retriever.retrieve(Query(history=["nowhere"]), 3).candidates == []


def test_lore_recommend_shows_what_comes_next_and_why(shop, finished):
    run = CliRunner().invoke
    told = run(app, ["recommend", str(finished), "--history", "i3,i5x", "--row", "item-kNN", "-k", "3"])
    assert told.exit_code == 0 and "i5x is not in the catalogue and is left out. Nearest: i5" in told.output
    assert re.search(r"i3: .*took both", told.output)
    (shop / "users.csv").write_text("user_id\nu1\nnobody\nu2\n")
    answer = run(app, ["recommend", str(finished), "--users", str(shop / "users.csv"), "--json", "-k", "2"])
    lines = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]
    assert [line["user_id"] for line in lines] == ["u1", "u2"] and "nobody has no history" in answer.output
    assert all(len(line["items"]) == 2 and line["items"][0]["title"] and len(line["history"]) == 6 for line in lines)


def test_users_of_a_run_by_session_are_named_by_their_sessions(shop, tmp_path, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path))
    rows = pq.read_table(shop / "events.parquet").to_pylist()
    sessions = [row | {"session_id": f"s{int(row['time']) // 3}"} for row in rows]
    pq.write_table(pa.Table.from_pylist(sessions), tmp_path / "events.parquet")
    text = f"stage: recommend_eval\nrun: eval\nbaselines: [item-kNN]\ndata: {{events: {tmp_path}/events.parquet, by: session}}\n"
    (tmp_path / "eval.yaml").write_text(text + "bootstrap_samples: 0\n")
    run_recipe(tmp_path / "eval.yaml")
    (tmp_path / "users.csv").write_text("user_id\nu1\nu2/s1\nnobody\n")
    answer = CliRunner().invoke(app, ["recommend", str(tmp_path / "eval"), "--users", str(tmp_path / "users.csv"), "--json"])
    told = " ".join(answer.output.split())
    assert [json.loads(line)["user_id"] for line in answer.stdout.splitlines() if line.startswith("{")] == ["u2/s1"]
    assert "u1 has no history" in told and "named USER/SESSION, such as u1/s0, u1/s1." in told
    assert "nobody has no history" in told and told.count("named USER/SESSION.") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--history", "nowhere"], "has no item of the catalogue"),
        ([], "Name one history"),
        (["--history", "i1", "--row", "itm-kNN"], "Nearest: 'item-kNN'"),
        (["--history", " , "], "is empty"),
        (["--history", '"i3,i5"'], "has no item of the catalogue"),  # one id, with a comma
        (["--history", "i3\ni5"], "cannot be read as ids between commas"),
        (["--history", ",".join(f"i{row}" for row in range(ITEMS))], "has every item of the catalogue"),
    ],
)
def test_what_cannot_be_recommended_is_said(finished, arguments, told):
    with pytest.raises(LoreError, match=told):
        CliRunner().invoke(app, ["recommend", str(finished), *arguments], catch_exceptions=False)


def test_a_folder_that_is_no_run_is_refused(shop):
    with pytest.raises(LoreError, match="no run folder"):
        open_retriever(shop)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(allow_infinity=False)), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_lower_tier_never_overtakes(items):
    tiers, scores = [tier for tier, _ in items], [score for _, score in items]
    order = personal_order(tiers, scores)
    assert sorted(order) == list(range(len(items)))
    for one, other in zip(order, order[1:], strict=False):
        assert tiers[one] >= tiers[other]
        if tiers[one] == tiers[other]:
            assert scores[one] >= scores[other] or np.isnan(scores[other])
            if scores[one] == scores[other] or (np.isnan(scores[one]) and np.isnan(scores[other])):
                assert one < other


def test_a_trained_model_is_a_row_and_recommends(shop, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(shop / "runs"))
    data = f"{{events: {shop / 'events.parquet'}, items: {shop / 'items.parquet'}}}"
    text = f"stage: recommender\nrun: model\ndata: {data}\nnetwork: {{hidden: 8, layers: 1, heads: 1}}\n"
    (shop / "model.yaml").write_text(text)
    trained = load_recipe(shop / "model.yaml")
    histories = trained.data.histories()
    codes, counts = [read_codes(shop / "codes.json", histories.item_ids)], histories.training_counts()
    folder = RunFolder.of(trained).open(trained)
    save_model(SequenceModel(trained.network, codes, counts), folder / "model", histories.item_ids, codes, counts)
    folder.finish({})
    row = f"{{Q: {{name: {shop / 'runs/model'}}}, same: {{name: {shop / 'runs/model'}, control_of: Q}}}}"
    assert run_command([str(recipe(shop, "models", models=row, baselines="[]", prefixes="null", reference="Q"))]) == 0
    rows = json.loads((shop / "runs/models/table.json").read_text())["rows"]
    assert rows["Q"]["metrics"] == rows["same"]["metrics"]
    assert rows["same"]["the controlled row over it"]["kept"]["all"]["MRR"] == {"value": 0, "low": 0, "high": 0}
    answer = CliRunner().invoke(app, ["recommend", str(shop / "runs/model"), "--history", "i3,i25", "--json", "-k", "200"])
    items = json.loads(answer.stdout)["items"]
    assert len(items) == ITEMS - 2
    same_shelf = [one for one in items if int(one["item_id"][1:]) // SHELF == 1]
    assert all(one["why"][0]["item_id"] == "i25" and one["why"][0]["shared_codes"] == 1 for one in same_shelf)


def test_a_blend_is_the_mean_of_the_shares_of_its_rows(shop):
    data = load_recipe(recipe(shop)).data.histories()
    counts, near = popularity(data), cooccurrence(data, window=1, last=1)
    history = [data.training(0)]
    blend = Blend("both", [counts, near], [1, 3])
    expected = counts.scores(history) / counts.scores(history).sum() / 4 + 3 * near.scores(history) / near.scores(history).sum() / 4
    np.testing.assert_allclose(blend.scores(history), expected, rtol=1e-5)
    assert blend.shares(history).sum() == pytest.approx(1, abs=1e-5)


def test_a_blend_is_a_row_and_recommends(shop, monkeypatch):
    monkeypatch.setenv("LORE_RUNS", str(shop / "runs"))
    blends = "{two: {of: [co-occurrence, item-kNN], weights: [3, 1]}, alone: {of: [popularity, item-kNN], control_of: two}}"
    assert run_command([str(recipe(shop, "blended", blends=blends, prefixes="null"))]) == 0
    rows = json.loads((shop / "runs/blended/table.json").read_text())["rows"]
    assert list(rows)[-2:] == ["two", "alone"] and rows["alone"]["the controlled row over it"]["kept"]["all"]["HR@10"]["value"] > 0
    shown = CliRunner().invoke(app, ["recommend", str(shop / "runs/blended"), "--row", "two", "--history", "i3", "--json"])
    items = json.loads(shown.stdout)["items"]
    assert len(items) == 10 and all(int(one["item_id"][1:]) // SHELF == 1 for one in items[:5])


@pytest.mark.parametrize(
    ("blend", "told"),
    [
        ("{of: [item-kNN, item-knn]}", "item-kNN"),
        ("{of: [item-kNN]}", "at least 2"),
        ("{of: [item-kNN, popularity], weights: [1]}", "2 weights"),
        ("{of: [item-kNN, both]}", "no blend"),
    ],
)
def test_blends_are_checked(shop, blend, told):
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe(shop, "wrong", blends=f"{{both: {blend}}}"))


def test_a_model_of_another_catalogue_is_refused(shop, monkeypatch, tmp_path):
    monkeypatch.setenv("LORE_RUNS", str(shop / "runs"))
    write_catalogue(tmp_path / "items.parquet", ITEMS + 1)
    text = recipe(shop, "other", models=f"{{Q: {{name: {shop / 'runs/model'}}}}}").read_text()
    text = text.replace(str(shop / "items.parquet"), str(tmp_path / "items.parquet")).replace("prefixes", "#")
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(LoreError, match="another catalogue: 0 of its items are not in the catalogue, and 1 of"):
        run_recipe(tmp_path / "other.yaml")
