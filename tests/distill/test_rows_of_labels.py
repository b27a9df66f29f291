"""Labels of judge and raters, joined with their pairs: on label folders that the label stage has written."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from distill_for_tests import distill_recipe, labelled, shop_pairs, write_labels_of, write_pairs
from label_folders import label_row, write_labels
from stub_scorer import TIERS

from lore.data.pair import query_key
from lore.distill.labels import human_pairs, judge_targets, read_judge
from lore.distill.rows import training_rows, write_training_rows
from lore.distill.targets import tier_gains
from lore.distill.training import Setup
from lore.label.read import read_labels
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.text import normalize

RUBRIC = load_rubric("shop")


@pytest.fixture(scope="module")
def shop():
    return shop_pairs()


@pytest.fixture
def joined(tmp_path):
    """joined(human pairs, labels=..., ...) -> (rows, summary) of a recipe with these sections."""

    def join(pairs, **sections):
        data = write_pairs(tmp_path / "human.parquet", pairs)
        recipe = distill_recipe(tmp_path / "distill.yaml", data, **sections)
        folder = RunFolder(tmp_path / "run", recipe)
        (folder.path / "data").mkdir(parents=True, exist_ok=True)
        write_training_rows(recipe, folder, human_pairs(recipe, folder))
        np.save(folder / "data" / "lengths.npy", np.ones(1))
        return training_rows(folder), json.loads((folder / "targets" / "summary.json").read_text())

    return join


def test_labelled_pairs_get_their_texts_from_the_input_of_the_labels(shop, joined, tmp_path):
    """Without human labels in train, on a folder of the label stage."""
    labels = labelled(tmp_path / "labels", [*shop["train"], *shop["test"]])
    rows, summary = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels)})
    held_out = {normalize(pair.query) for pair in (*shop["dev"], *shop["test"])}
    expected = {pair.pair_id: pair for pair in shop["train"] if normalize(pair.query) not in held_out}
    assert len(rows) == len(expected) > 40 and summary["of queries in dev or test"] == summary["labelled"] - len(rows) >= 64
    assert summary["judge"].startswith("stub")
    for found, target in zip(rows.pairs(range(len(rows))), rows.judge, strict=True):
        pair = expected[found.pair_id]
        assert (found.title, found.attributes, found.brand, found.price) == (pair.title, pair.attributes, pair.brand, pair.price)
        assert target.argmax() == RUBRIC.index(pair.label) and target.sum() == pytest.approx(1)
    assert not rows.human_weight.any() and sorted(rows.rank) == list(range(len(rows)))
    by_query = {}
    for pair, number in zip(rows.pairs(range(len(rows))), rows.query, strict=True):
        assert by_query.setdefault(query_key(pair.query, pair.slices), number) == number


def test_a_pair_with_both_labels_is_one_row(shop, joined, tmp_path):
    known, unrated = shop["train"][:60], [replace(pair, label=None) for pair in shop["train"][60:]]
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    rated = [replace(known[0], label="L3", label_distribution={"L3": 0.75, "L4": 0.25}, label_weight=0.5), *known[1:]]
    rows, summary = joined([*rated, *unrated, *shop["dev"], *shop["test"]], labels={"path": str(labels)})
    place = {pair.pair_id: at for at, pair in enumerate(rows.pairs(range(len(rows))))}
    assert set(place) >= {pair.pair_id for pair in known}
    first = place[known[0].pair_id]
    assert rows.human[first].tolist() == [0, 0, 0.75, 0.25] and rows.human_weight[first] == 0.5
    assert rows.human[place[known[1].pair_id]].tolist() == [float(tier == known[1].label) for tier in RUBRIC.tier_ids]
    of_judge, of_raters = rows.judge_weight > 0, rows.human_weight > 0
    assert summary["rows"] == len(rows) == (of_judge | of_raters).sum() and summary["both"] == (of_judge & of_raters).sum() > 20
    assert of_raters.sum() == 60 and (of_judge & ~of_raters).sum() > 5  # the unrated pairs of train have the judge's label alone
    table = pq.read_table(tmp_path / "run" / "targets" / "targets.parquet")
    assert table.num_rows == len(rows) and table.column("human_L1").null_count == (~of_raters).sum()


def test_a_label_of_another_text_is_left_out(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    changed = {pair.pair_id for pair in shop["train"][:3]}
    now = [replace(pair, title=f"{pair.title} new") if pair.pair_id in changed else pair for pair in shop["train"]]
    now[0] = replace(now[0], label=None)
    rows, summary = joined([*now, *shop["dev"], *shop["test"]], labels={"path": str(labels)})
    judged = {pair.pair_id: weight > 0 for pair, weight in zip(rows.pairs(range(len(rows))), rows.judge_weight, strict=True)}
    left_out = {pair.pair_id for pair in shop["train"] if not judged.get(pair.pair_id)}
    assert left_out >= changed and summary["whose text is gone or has changed"] == 3 and now[0].pair_id not in judged


def test_the_rationale_is_the_judges_where_its_label_is_used_and_else_the_one_beside_the_human_label(shop, joined, tmp_path):
    rated = [replace(pair, rationale="of raters") for pair in shop["train"][:6]]
    labels = write_labels_of(tmp_path / "labels", shop["train"][4:8], rationale="of the judge")
    rows, _ = joined([*rated, *shop["dev"], *shop["test"]], labels={"path": str(labels)})
    place = {pair.pair_id: at for at, pair in enumerate(rows.pairs(range(len(rows))))}

    def found(judged):
        known = rows.rationales(judged)
        return [known[place[pair.pair_id]] for pair in shop["train"][:8]]

    assert found(rows.judge_weight > 0) == ["of raters"] * 4 + ["of the judge"] * 4
    # Human labels alone: what the judge wrote is unknown.
    assert found(np.zeros(len(rows), dtype=bool)) == ["of raters"] * 6 + [None] * 2


def test_other_pairs_of_held_out_queries_are_never_trained_on(shop, joined, tmp_path):
    leak = [replace(pair, pair_id=f"x{pair.pair_id}", query=pair.query.upper(), title=f"{pair.title} ") for pair in shop["test"]]
    labels = write_labels_of(tmp_path / "labels", [*shop["train"], *leak])
    rows, summary = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels)})
    assert summary["of queries in dev or test"] >= len(leak)
    assert len(rows) and not any(pair.pair_id.startswith("x") for pair in rows.pairs(range(len(rows))))


def test_the_temperature_is_fitted_on_human_labels_of_dev(shop, joined, tmp_path, capsys):
    """The judge says .7 and is always right, so its targets become sharper."""
    labels = write_labels_of(tmp_path / "labels", [*shop["train"], *shop["dev"]])
    rows, summary = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels)})
    assert summary["temperature is"] == f"fitted on {len(shop['dev'])} pairs of split dev" and summary["temperature"] < 0.2
    assert rows.judge.max(axis=1).min() > 0.99
    said = " ".join(capsys.readouterr().out.split())
    assert f"targets: {len(rows)} pairs, 0 with labels of raters, {len(rows)} with labels of the judge at temperature" in said
    left = summary["of queries in dev or test"]
    assert f"pairs of split dev), {left} labels left out of queries in dev or test" in said


def test_the_temperature_of_the_recipe_is_kept(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", [*shop["train"], *shop["dev"]])
    rows, _ = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels)}, targets={"temperature": 2.0})
    assert np.sort(rows.judge[0]) == pytest.approx(np.sqrt([0.1, 0.1, 0.1, 0.7]) / np.sqrt([0.1, 0.1, 0.1, 0.7]).sum())


def test_without_shared_pairs_there_is_no_temperature(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    rows, summary = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels)})
    assert summary["temperature"] == 1 and "not fitted" in summary["temperature is"]
    assert rows.judge.max() == pytest.approx(0.7)


def test_labels_of_dev_and_test_may_lie_in_another_folder_of_the_same_judge(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    held_out = write_labels_of(tmp_path / "held", [*shop["dev"], *shop["test"]])
    _, summary = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels), "held_out": str(held_out)})
    assert summary["temperature"] < 0.2
    (tmp_path / "run" / "data" / "rows.arrow").unlink()
    other = write_labels(tmp_path / "other", [label_row("red mug", "1", "L4", judge_id="another")], stamp="another judge")
    with pytest.raises(LoreError, match="would be those of another judge"):
        joined([*shop["dev"], *shop["test"]], labels={"path": str(labels), "held_out": str(other)})


def test_a_judge_that_gave_only_tiers_has_targets_with_neighbors(shop, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"][:24], **{f"p_{tier}": None for tier in TIERS})
    read = read_judge(str(labels), RUBRIC)
    found = judge_targets(read, temperature=0.5, border=0.1)
    assert np.isnan(read.probabilities).all() and found.sum(axis=1) == pytest.approx(np.ones(24))
    assert found[read.tiers == 3] == pytest.approx(np.tile([0, 0, 0.1, 0.9], ((read.tiers == 3).sum(), 1)))


def test_a_second_reading_weighs_down_what_it_contradicts(shop, joined, tmp_path):
    pairs = shop["train"]
    first = write_labels_of(tmp_path / "first", pairs)
    turned = {pair.pair_id: "L1" if number % 2 else pair.label for number, pair in enumerate(pairs)}
    second = write_labels_of(tmp_path / "second", pairs, turned)
    sections = {"labels": {"path": str(first), "second": str(second), "least_weight": 0.3}}
    rows, summary = joined([*shop["dev"], *shop["test"]], **sections)
    for pair, weight, target in zip(rows.pairs(range(len(rows))), rows.judge_weight, rows.judge, strict=True):
        same = turned[pair.pair_id] == next(one.label for one in pairs if one.pair_id == pair.pair_id)
        assert weight == pytest.approx(1 if same else 0.4) and target.max() == pytest.approx(0.7 if same else 0.4)
    assert 0 < summary["with two tiers"] < summary["read twice"] == len(rows)


def test_a_second_reading_with_the_same_prompt_is_no_second_reading(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"][:8])
    rows = [row for batch in read_labels(labels) for row in batch.to_pylist()]
    write_labels(labels, rows, stamp="weights:rubric:renderer verdict")
    with pytest.raises(LoreError, match="the same prompt twice"):
        joined([*shop["dev"], *shop["test"]], labels={"path": str(labels), "second": str(labels)})


def test_a_text_that_has_changed_since_it_was_labelled_is_left_out(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    changed = [replace(shop["train"][0], title="another thing"), *shop["train"][1:-1]]
    write_pairs(tmp_path / "labels.parquet", changed)
    rows, summary = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels)})
    ids = {pair.pair_id for pair in rows.pairs(range(len(rows)))}
    assert not ids & {shop["train"][0].pair_id, shop["train"][-1].pair_id}
    assert summary["whose text is gone or has changed"] in (1, 2) and len(ids) == summary["rows"]


def test_the_limit_is_a_part_of_every_larger_one(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    found = []
    for limit in (10, 30):
        rows, _ = joined([*shop["dev"], *shop["test"]], labels={"path": str(labels), "limit": limit})
        (tmp_path / "run" / "data" / "rows.arrow").unlink()
        found.append({pair.pair_id: rank for pair, rank in zip(rows.pairs(range(len(rows))), rows.rank, strict=True)})
    assert len(found[0]) == 10 and len(found[1]) == 30
    assert all(found[1][pair_id] == rank for pair_id, rank in found[0].items())


def test_one_id_for_two_pairs_is_an_error(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    other = replace(shop["train"][0], query="something else altogether")
    with pytest.raises(LoreError, match="one id names two pairs"):
        joined([other, *shop["dev"], *shop["test"]], labels={"path": str(labels)})


def test_labels_without_a_recipe_need_the_table_of_their_pairs(shop, joined, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    (labels / "recipe.yaml").unlink()
    human = [*shop["dev"], *shop["test"]]
    with pytest.raises(LoreError, match="labels.pairs: {path: pairs.parquet}"):
        joined(human, labels={"path": str(labels)})
    rows, _ = joined(human, labels={"path": str(labels), "pairs": {"path": str(tmp_path / "labels.parquet")}})
    assert len(rows) > 40


def test_labels_of_another_rubric_are_refused(shop, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"][:8])
    with pytest.raises(LoreError, match="one student cannot learn from both"):
        read_judge(str(labels), load_rubric("wands"))
    other = load_rubric("rair")
    assert other.tier_ids == RUBRIC.tier_ids
    with pytest.raises(LoreError, match=f"labelled under a rubric with the hash {RUBRIC.hash}, and rubric {other.name}"):
        read_judge(str(labels), other)
    assert len(read_judge(str(labels), RUBRIC)) == 8


def test_what_cannot_be_learned_or_measured_is_said_before_the_training(shop, joined):
    with pytest.raises(LoreError, match="nothing to learn from"):
        joined([*shop["dev"], *shop["test"]])
    with pytest.raises(LoreError, match="lore data split PAIRS --by query --replace"):
        joined(shop["train"])
    with pytest.raises(LoreError, match=r"slices names 'nowhere'(?s:.*)Name some of: .*general"):
        joined([*shop["train"], *shop["test"]], slices=["general", "nowhere"])


@pytest.fixture
def setup(shop, joined, tmp_path):
    """What the students share of a recipe with labels of both kinds; every row can be read."""
    labels = write_labels_of(tmp_path / "labels", shop["train"])
    rows, _ = joined([*shop["train"][:40], *shop["dev"], *shop["test"]], labels={"path": str(labels)})
    rows = replace(rows, lengths=np.where(np.arange(len(rows)) == 3, 0, 9))
    recipe = distill_recipe(tmp_path / "distill.yaml", tmp_path / "human.parquet", labels={"path": str(labels)})
    return Setup(recipe, RunFolder(tmp_path / "run"), rows, RUBRIC.tier_ids, tier_gains(RUBRIC), None, None, {})


def test_variants_take_the_labels_that_they_name(setup):
    rows, whole = setup.rows, setup.training_set()
    assert 3 not in whole.kept and len(whole.kept) == len(rows) - 1
    human = setup.training_set(labels=0)
    assert not human.judge_weight.any() and (human.human_weight[human.kept] > 0).all() and len(human.kept) <= 40
    some = setup.training_set(labels=10)
    assert ((some.judge_weight > 0) == ((rows.rank >= 0) & (rows.rank < 10))).all()
    assert set(human.kept) <= set(some.kept)


def test_a_plain_cross_encoder_sees_one_tier_per_pair_and_every_pair_equally(setup):
    hard, rows = setup.training_set(hard=True), setup.rows
    assert not hard.judge_weight.any() and set(hard.human[hard.kept].reshape(-1)) == {0.0, 1.0}
    best = np.where(rows.human_weight[:, None] > 0, rows.human, rows.judge).argmax(axis=1)
    assert (hard.human.argmax(axis=1) == best).all() and set(hard.rates) == {1.0} and set(hard.human_weight[hard.kept]) == {1.0}


def test_a_plain_cross_encoder_learns_the_label_where_most_raters_chose_another_tier(shop, joined, tmp_path):
    divided = [replace(pair, label="L3", label_distribution={"L2": 0.4, "L3": 0.2, "L4": 0.4}) for pair in shop["train"][:3]]
    rows, _ = joined([*divided, *shop["train"][3:6], *shop["dev"], *shop["test"]])
    recipe = distill_recipe(tmp_path / "distill.yaml", tmp_path / "human.parquet")
    whole = replace(rows, lengths=np.full(len(rows), 9))
    setup = Setup(recipe, RunFolder(tmp_path / "run"), whole, RUBRIC.tier_ids, tier_gains(RUBRIC), None, None, {})
    by_id = {pair.pair_id: RUBRIC.index(pair.label) for pair in (*divided, *shop["train"][3:6])}
    expected = [by_id[pair.pair_id] for pair in rows.pairs(range(len(rows)))]
    assert setup.training_set(hard=True).human.argmax(axis=1).tolist() == expected


def test_rare_grades_are_visited_more_often(setup):
    whole, rows = setup.training_set(), setup.rows
    tiers = rows.judge[whole.kept].argmax(axis=1)
    counts = np.bincount(tiers, minlength=4)
    rare, usual = counts.argmin(), counts.argmax()
    assert whole.rates[tiers == rare].mean() > whole.rates[tiers == usual].mean()
    assert whole.rates.mean() == pytest.approx(1)


def test_verdicts_of_a_label_folder_are_read_by_pair(shop, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop["train"][:8])
    assert sum(batch.num_rows for batch in read_labels(labels)) == 8
