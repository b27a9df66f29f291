"""No trick pays: the self-test over pairs of the shop and of real raters, under every order and with every part switched on."""

from dataclasses import replace

import pytest
import source_files
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.codec.judgement import parse, render_demands
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.data_synth.shop.world import World
from lore.rewards.adversarial_answers import FAR, GOLD, NEAR, cases
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.rewards.self_test import print_self_test, self_test
from lore.rubric.demand import Demand, read_demands
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

SHOP = load_rubric("shop")
ORDERS = ("reason_first", "answer_first", "answer_only")
EVERYTHING = RewardsSection(demands=0.3, length=0.1, calibration=0.2)
SECTIONS = {
    "default": RewardsSection(),
    "everything": EVERYTHING,
    "pricing optimism": RewardsSection(optimism_cost=4.0, border_cost=2.0),
    "the verdict alone": RewardsSection(format=0, mismatch=0, rules=0, grounding=0),
    "reasons over verdicts": RewardsSection(verdict=0.1, grounding=1.0, demands=1.0, rules=1.0, mismatch=1.0),
}
NO_ANSWERS = ("empty", "format only", "verdict twice", "every verdict", "every tier in one verdict", "verdict in words")


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return list(World(7).pairs("train", 128))


def bare(pair: Pair) -> Pair:
    """What raters give: a label and nothing else."""
    return replace(pair, rationale=None, demands=[], rules=[], mismatch=None)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("known", ["reasons", "label"])
def test_no_trick_pays(pairs, order, section, known):
    some = pairs if known == "reasons" else [bare(pair) for pair in pairs]
    rows = {row.name: row for row in self_test(Rewards(section, SHOP, PromptFormat(order=order)), some)}
    gold, near, far = (rows[name].total for name in (GOLD, NEAR, FAR))
    assert gold == max(row.total for row in rows.values()) > near > far
    assert all(rows[name].total < far for name in NO_ANSWERS)
    assert all(rows[f"constant {tier}"].total < near for tier in SHOP.tier_ids if section.optimism_cost == 1)
    for kind, most in (("by one", near), ("by most", far)):
        assert all(row.total <= most + 1e-9 for name, row in rows.items() if name.endswith(f"({kind})"))


PARTS_BESIDE = ("format", "mismatch", "rules", "grounding", "demands", "length", "calibration")


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(PARTS_BESIDE, st.floats(0, 5))))
def test_no_trick_pays_whatever_the_weights(pairs, weights):
    self_test(Rewards(RewardsSection(**weights), SHOP, PromptFormat()), pairs[:4])


@pytest.mark.parametrize("name", ["rair", "crowdflower", "homedepot", "wands", "esci"])
@pytest.mark.parametrize("detail", ["full", "name"])
def test_every_rubric_can_be_rewarded_by_labels_alone(pairs, name, detail):
    rubric = load_rubric(name)
    some = [replace(bare(pair), label=rubric.tier_ids[i % len(rubric.tiers)]) for i, pair in enumerate(pairs)]
    for order in ORDERS:
        rows = self_test(Rewards(EVERYTHING, rubric, PromptFormat(order=order, detail=detail)), some)
        assert rows[0].name == GOLD and rows[0].total == pytest.approx(0.99, abs=0.02)


def test_real_ratings(public_data, tmp_path):
    rated, _, _ = source_files.load("crowdflower", public_data / "crowdflower" / "train.csv", tmp_path)
    rubric = load_rubric("crowdflower")
    for order in ORDERS:
        rows = {row.name: row for row in self_test(Rewards(RewardsSection(), rubric, PromptFormat(order=order)), rated)}
        assert rows[GOLD].total == pytest.approx(1.0)
        assert rows[NEAR].total < 0.9


def test_labels_that_contradict_the_reasons_are_gold_all_the_same():
    noisy = [pair for pair in World(7, label_noise=0.5).pairs("train", 128) if "noise:label" in pair.slices]
    for section in (RewardsSection(), EVERYTHING):
        self_test(Rewards(section, SHOP, PromptFormat()), noisy)


def test_a_weight_that_lets_a_trick_win_is_named_with_its_case_and_pair(pairs):
    section = RewardsSection(length=5.0, length_free_tokens=10, length_limit_tokens=30)
    with pytest.raises(LoreError, match=r"length: 'no rationale \(right\)' gets .* and 'gold' .* \(pair [0-9a-f]{16}\)") as error:
        self_test(Rewards(section, SHOP, PromptFormat()), pairs)
    assert "Lower the weight" in str(error.value) and "more" in str(error.value)


def test_reasons_that_score_without_being_gold_are_named(pairs, monkeypatch):
    from lore.rewards.components import PARTS

    monkeypatch.setitem(PARTS, "grounding", lambda answer, pair, view: float(not getattr(answer.judgement, "rationale", "x")))
    with pytest.raises(LoreError, match="grounding: 'verdict alone"):
        self_test(Rewards(RewardsSection(), SHOP, PromptFormat()), pairs)


def test_as_many_pairs_of_each_label_are_taken(pairs, monkeypatch):
    from lore.rewards.self_test import _some_of_each_label

    chosen = _some_of_each_label([replace(pairs[0], label="L4")] * 100 + [replace(pairs[0], label="L1")] * 20)
    assert [sum(pair.label == tier for pair in chosen) for tier in SHOP.tier_ids] == [20, 0, 0, 44]


def test_pairs_without_a_label_are_an_error(pairs):
    with pytest.raises(LoreError, match="128 pairs and none has a label"):
        self_test(Rewards(RewardsSection(), SHOP, PromptFormat()), [replace(pair, label=None) for pair in pairs])


def test_pairs_of_one_label_are_enough(pairs):
    self_test(Rewards(EVERYTHING, SHOP, PromptFormat()), [pair for pair in pairs if pair.label == "L4"])


def test_answers_carry_what_the_codec_reads(pairs):
    """Tricks fail by their reward: all but those without a verdict are answers to the codec."""
    for order in ORDERS:
        rewards = Rewards(RewardsSection(), SHOP, PromptFormat(order=order))
        for pair in pairs[:16]:
            for case in cases(pair, "L1", "L4", SHOP, rewards.view.fmt):
                answer = rewards.read(case.text, 1)
                assert getattr(answer.judgement, "tier", None) == case.tier, case


def test_the_table_shows_every_row_and_a_dash_where_nothing_judges(pairs, capsys):
    rows = self_test(Rewards(EVERYTHING, SHOP, PromptFormat(order="answer_only")), pairs)
    print_self_test(rows)
    shown = capsys.readouterr().out
    assert all(row.name in shown for row in rows) and "calibration" in shown and " - " in shown


def test_a_demand_whose_value_holds_separators_is_repeated_whole():
    rubric, fmt = load_rubric("rair"), PromptFormat(order="reason_first")
    demand = Demand("colour", "red", "red; brand: Lumo | mug", "title", "colour-equal", "L4")
    pair = Pair(pair_id="p", query="red mug", title=demand.found, label="L4", rationale=render_demands([demand, demand]))
    found = {case.name: case.text for case in cases(pair, "L3", "L1", rubric, fmt)}
    assert read_demands(parse(found["one demand eight times (right)"], rubric, fmt).rationale) == [demand] * 8


def test_a_tokenizer_counts_the_tokens(pairs):
    section = RewardsSection(length=0.1, length_free_tokens=10, length_limit_tokens=10_000)
    counted = [
        self_test(Rewards(section, SHOP, PromptFormat()), pairs, tokenizer)[0].parts["length"] for tokenizer in (None, count_bytes)
    ]
    assert 0 < counted[1] < counted[0] < 1


def count_bytes(text: str, add_special_tokens: bool) -> dict:
    return {"input_ids": list(text.encode())}


def test_no_torch_is_imported():
    from conftest import run_python

    found = run_python("-c", "import sys, lore.rewards; print('torch' in sys.modules)")
    assert found.stdout.strip() == "False", found.stderr
