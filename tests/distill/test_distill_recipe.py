"""The recipe of stage distill: what it refuses, and what it counts as an input."""

import json

import numpy as np
import pytest
from distill_for_tests import distill_body, shop_pairs, write_labels_of

from lore.config.recipe import BaseRecipe
from lore.config.stages import load_recipe
from lore.distill.distill import baselines, better_calibration
from lore.distill.targets import rationale_vectors
from lore.run.input_hashes import input_fingerprints, missing_inputs
from lore.support.errors import LoreError


@pytest.fixture
def recipe(tmp_path):
    def load(**sections) -> BaseRecipe:
        path = tmp_path / "distill.yaml"
        path.write_text(json.dumps(distill_body(tmp_path / "pairs.parquet", **sections)))
        return load_recipe(path)

    return load


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"data": {"split": "train"}}, "data.split"),
        ({"data": {"limit": 5}}, "data.limit"),
        ({"curve": {"sizes": [10, 20]}}, "curve, labels"),
        ({"labels": {"path": "labels"}, "curve": {"sizes": [20, 10]}}, "curve.sizes"),
        ({"loss": {"tiers": 0.0, "margin": 0.0}}, "loss.tiers, loss.margin"),
        ({"items": 1}, "items, loss.margin"),
        ({"human": {"first": 0.9, "last": 0.1}}, "human.first, human.last"),
        ({"train": {"packing": True}}, "train.packing"),
        ({"baselines": ["hard", "hard"]}, "baselines"),
        ({"targets": {"border": 0.5}}, "targets.border"),
        ({"labels": {"path": "labels", "second": ""}}, "labels.second"),
    ],
)
def test_combinations_that_make_no_sense_are_named(recipe, sections, key):
    with pytest.raises(LoreError, match=rf"{key}\b"):
        recipe(**sections)


def test_the_micro_batch_is_a_part_of_the_run(recipe):
    """The margin compares the pairs of a forward pass, so another micro-batch is another loss."""
    found = recipe()
    assert not found.may_change("train.micro_batch_size") and found.may_change("train.workers") and found.may_change("batch_tokens")
    assert "micro" not in str(found.derived())


def test_changed_labels_are_seen_before_the_run_resumes(recipe, tmp_path):
    labels = write_labels_of(tmp_path / "labels", shop_pairs()["train"][:6])
    found = recipe(labels={"path": str(labels)})
    before = input_fingerprints(found, only_what_is_there=True)
    write_labels_of(tmp_path / "labels", shop_pairs()["train"][:7])
    after = input_fingerprints(found, only_what_is_there=True)
    assert before["labels.path"] != after["labels.path"]


def test_a_label_folder_that_is_not_there_is_named(recipe):
    lacks = dict(missing_inputs(recipe(labels={"path": "nowhere", "second": "nowhere either"})))
    assert "`lore label` writes label folders" in lacks["labels.path"] and "labels.second" in lacks


def test_baselines_that_would_be_the_student_itself_are_left_out(recipe, capsys):
    found = recipe(baselines=["human", "hard"])
    assert [one.name for one in baselines(found, 9, judge=False, raters=True)] == ["hard"]
    assert [one.name for one in baselines(found, 9, judge=True, raters=True)] == ["human", "hard"]
    assert [one.name for one in baselines(found, 9, judge=True, raters=False)] == ["hard"]
    assert "the train split has no human labels" in capsys.readouterr().out
    assert {one.steps for one in baselines(found, 9, judge=True, raters=True)} == {9}


def test_the_calibration_with_the_better_likelihood_is_chosen():
    """Probabilities that are too sharp by one factor need one number; a student that prefers a tier needs more."""
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1, 1, 1], 600)
    gold = np.asarray([rng.choice(3, p=row) for row in true])
    groups, weights = np.repeat(np.arange(150), 4), np.ones(600)
    sharp = true**3 / (true**3).sum(axis=1, keepdims=True)
    kind, told = better_calibration(sharp, gold, weights, groups, 0)
    assert kind == "temperature" and "nats on held-out halves, isotonic" in told
    optimistic = true * [1, 1, 9] / (true * [1, 1, 9]).sum(axis=1, keepdims=True)
    assert better_calibration(optimistic, gold, weights, groups, 0)[0] == "isotonic"
    assert better_calibration(true, gold, weights, np.zeros(600, int), 0)[0] == "temperature"


def test_equal_rationales_have_equal_vectors_and_others_do_not():
    texts = ["the colour is red", "the brand is lumo", None, "the colour is red", "a lamp for children", ""]
    found = rationale_vectors(texts, 3, seed=0)
    assert found.shape == (6, 3) and np.allclose(found[0], found[3]) and not np.allclose(found[0], found[1])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 0, 1, 1, 0], abs=1e-6)
    assert rationale_vectors([None, "one"], 8, seed=0).shape == (2, 1)
