"""Guards lore/data_synth/local_life: exact labels, equal to what `lore nearby ask` computes on the same town; what training never
sees; twins; and the rewards on its pairs."""

import json
import random
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from lore.codec.prompt import PromptFormat
from lore.data.parquet import read_pairs
from lore.data_synth.local_life.pairs import Questions
from lore.data_synth.local_life.town import COUNTRY, TIMEZONE, MadeUpTown, lexicon
from lore.nearby.graph import load_relations
from lore.nearby.intent import understand
from lore.nearby.sources import index_town
from lore.nearby.streets import within
from lore.nearby.town import Town
from lore.places.hours import opening_of
from lore.places.local_life import ceiling, computed, local_life, pair
from lore.places.question import Candidate
from lore.places.walk import DETOUR, METRES_PER_MINUTE, haversine
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.rewards.self_test import self_test
from lore.run.runner import run_command

COMPUTED = ("circle", "hours", "exclusion", "company")


@pytest.fixture(scope="module")
def questions():
    return Questions(MadeUpTown(3, places=320))


@pytest.fixture(scope="module")
def pairs(questions):
    return {split: list(questions.pairs(split, count)) for split, count in (("train", 240), ("test", 80))}


@pytest.fixture(scope="module")
def town(questions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    rows = [json.dumps(asdict(one), default=str) + "\n" for one in questions.town.rows()]
    (folder / "places.jsonl").write_text("".join(rows))
    report = index_town([folder / "places.jsonl"], folder / "town.db", country=COUNTRY, timezone=TIMEZONE)
    assert report.rejected is None and report.kept == len(rows)
    with Town.open(folder / "town.db") as opened:
        yield opened


def test_a_question_is_understood_as_it_was_meant_and_a_place_judged_as_it_was_labeled(questions, town):
    relations, seen = load_relations(), set()
    for number in range(60):
        rng = random.Random(number)
        asked = questions.asked(rng, rng.randrange(16))
        meant = questions.intent(asked, random.Random(number), new=number % 2 == 1)
        read = understand(meant.text, town, meant.lat, meant.lon, asked.now, relations.needs)
        assert replace(read, needs=()) == replace(meant, needs=()), meant.text
        assert [need.text for need in read.needs if need.excluded] == [need.text for need in meant.needs if need.excluded]
        assert not asked.condition or asked.condition.replace("outdoor", "outdoor_seating") in {need.key for need in read.needs}
        reach = within(town, read.lat, read.lon, 60.0)
        minutes = dict(zip(reach.rows.tolist(), reach.minutes.tolist(), strict=True))
        for row in rng.sample(range(320), 3):
            place = town.places([row])[0]
            opening = opening_of(place, read.when, town.meta["country"], town.meta["timezone"])
            served = Candidate(row, place, 0.0, minutes[row], opening, 1.0, {})
            labeled = questions._judged(asked, meant, row, _minutes(questions, asked), random.Random(0))
            shown, learned = pair(served, read), dict(labeled.attributes)
            learned.pop("found by")
            assert (shown.query, shown.title, shown.attributes, shown.description) == (
                labeled.query, labeled.title, learned, labeled.description,
            )  # fmt: skip
            assert [one.rule for one in computed(served, read)] == [d.rule for d in labeled.demands if d.dimension in COMPUTED]
            assert local_life().index(labeled.label) <= local_life().index(ceiling(served, read))
            seen |= {d.rule for d in labeled.demands}
    assert {"circle-within", "circle-beyond", "hours-open", "hours-closed", "hours-unknown"} <= seen


def _minutes(questions, asked):
    places = questions.town.places
    lats, lons = np.array([one.lat for one in places]), np.array([one.lon for one in places])
    return DETOUR * haversine(asked.lat, asked.lon, lats, lons) / METRES_PER_MINUTE


def test_the_worst_demand_decides_and_every_rule_occurs(pairs):
    rules = {rule.id: rule for rule in local_life().rules}
    for one in pairs["train"]:
        assert one.label == min(demand.tier for demand in one.demands)
        assert all(rules[d.rule].tier == d.tier and rules[d.rule].dimension == d.dimension for d in one.demands)
        assert rules[one.rules[0]].tier == one.label and (one.mismatch is not None) == (one.label == "L2")
    assert {demand.rule for one in pairs["train"] for demand in one.demands} == rules.keys()
    assert min(sum(one.label == tier for one in pairs["train"]) for tier in local_life().tier_ids) > 20


def test_training_sees_no_held_out_wording_and_no_held_out_area(questions, pairs):
    new = {forms[-1] for need in lexicon()["needs"].values() for forms in (need["ask_en"], need["ask_zh"])}
    areas = {f"p{number}": area in questions.town.held_out for number, area in enumerate(questions.town.area_of)}
    for one in pairs["train"]:
        assert not areas[one.item_id] and one.demands[0].wanted.split(" = ")[0] not in new
    for one in pairs["test"]:
        assert ("held_out:area" in one.slices) == areas[one.item_id]
        assert {"held_out:area", "held_out:wording"} & set(one.slices)
    assert not {one.query for one in pairs["train"]} & {one.query for one in pairs["test"] if "held_out:wording" in one.slices}


def test_a_twin_is_the_same_place_with_another_label(pairs):
    twins = [one for one in pairs["train"] if any(name.startswith("counterfactual:") for name in one.slices)]
    assert len(twins) >= 20 and len(twins) % 2 == 0
    for one, other in zip(twins[::2], twins[1::2], strict=True):
        assert one.item_id == other.item_id and one.label != other.label and one.demands[0].wanted == other.demands[0].wanted


def test_needs_and_kinds_are_those_of_the_relations():
    relations = load_relations()
    for mark, kind in lexicon()["kinds"].items():
        if mark in relations.categories:
            assert (relations.readable(mark), relations.readable(mark, "zh")) == (kind["en"], kind["zh"])
    for key, need in lexicon()["needs"].items():
        known = relations.need(key)
        assert (need["en"], need["zh"]) == (known.en[0], known.zh[0])
        strengths = {mark: weight for mark, (weight, _) in relations.paths(known).items() if mark in lexicon()["kinds"]}
        assert set(need["met"]) == {mark for mark, weight in strengths.items() if weight >= 0.8}
        assert set(need.get("partly", ())) == {mark for mark, weight in strengths.items() if weight < 0.8}


@pytest.mark.parametrize("order", ["reason_first", "answer_only"])
def test_no_adversarial_answer_beats_the_honest_one(pairs, order):
    rewards = Rewards(RewardsSection(), local_life(), PromptFormat(order=order))
    rows = {row.name: row for row in self_test(rewards, pairs["train"][:40])}
    if order != "answer_only":
        assert rows["gold"].total == pytest.approx(1) and rows["another computed rule (right)"].parts["verdict"] == 0


def test_the_stage_writes_a_town_that_a_second_run_leaves_alone(runs, write_recipe):
    body = "stage: town\nrun: town\nplaces: 160\npairs: {train: 24, dev: 8, test: 8}\ncorpus: 12"
    recipe = str(write_recipe("town.yaml", body))
    assert run_command([recipe]) == 0
    made = Questions(MadeUpTown(0, 160))
    for split, count in (("train", 24), ("dev", 8), ("test", 8)):
        assert list(read_pairs(runs / "town" / "pairs" / f"{split}.parquet")) == list(made.pairs(split, count))
    corpus = pq.read_table(runs / "town" / "corpus.parquet").to_pylist()
    assert len(corpus) == 12 and all(span["end"] <= len(row["text"]) for row in corpus for span in row["trained"])
    assert not any("<query>" in row["text"] and "<item>" in row["text"] for row in corpus)
    first = {path: path.stat().st_mtime_ns for path in (runs / "town").rglob("*.parquet")}
    assert run_command([recipe]) == 0
    assert first == {path: path.stat().st_mtime_ns for path in first}


def test_the_text_of_a_pair_tells_the_walk_and_the_hours(pairs):
    told = {"closed": "hours-closed", "已打烊": "hours-closed", "不营业": "hours-closed"}
    told |= {"hours unknown": "hours-unknown", "营业时间未知": "hours-unknown"}
    for one in pairs["train"] + pairs["test"]:
        rules = {demand.dimension: demand.rule for demand in one.demands}
        assert ("beyond" in one.attributes["walk"]) == (rules["circle"] == "circle-beyond")
        opening = one.attributes["opening"].partition(": ")[2]
        read = next((rule for words, rule in told.items() if opening.startswith(words)), "hours-open")
        assert rules.get("hours", read) == read


@pytest.mark.slow  # about 40 seconds of one core
def test_a_small_student_learns_from_a_small_town(runs):
    recipes = ROOT / "recipes" / "quickstart" / "local_life"
    assert run_command([str(recipes / "town.yaml"), "pairs={train: 4000, dev: 200, test: 400}", "corpus=0"]) == 0
    short = ["needs=[]", "train.steps=120", "train.save_every=0", "train.log_every=20", "baselines=[]", "bootstrap_samples=0"]
    assert run_command([str(recipes / "distill.yaml"), *short]) == 0
    rows = json.loads((runs / "quickstart" / "local_life" / "distill" / "table.json").read_text())
    assert rows["rows"]["student"]["metrics"]["macro_f1"]["value"] > 0.4, "the most frequent tier alone reaches .13"
