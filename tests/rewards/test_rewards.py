"""The parts of the reward by hand-worked numbers, and what must hold of any batch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.codec.judgement import Judgement, render_answer, render_demands
from lore.codec.prompt import PromptFormat
from lore.data.pair import Pair
from lore.judge.answer import Answer
from lore.rewards.components import NO_VERDICT, PARTS, View
from lore.rewards.config import RewardsSection
from lore.rewards.reward import Rewards
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric, Tier, load_rubric
from lore.support.errors import LoreError

SHOP = load_rubric("shop")
ORDERS = ("reason_first", "answer_first", "answer_only")
DEMANDS = [
    Demand("category", "mug", "mug", "title", "category-same", "L4"),
    Demand("colour", "scarlet = red", "green", "title", "colour-other", "L2"),
]
PAIR = Pair(
    pair_id="p",
    query="scarlet mug",
    title="green mug lumo",
    attributes={"pattern": "striped"},
    label="L2",
    mismatch="colour",
    rules=["colour-other"],
    rationale=render_demands(DEMANDS),
    demands=DEMANDS,
)
BARE = Pair(pair_id="b", query="scarlet mug", title="green mug lumo", label="L2")
GOLD = Judgement("L2", None, "colour", ["colour-other"], PAIR.rationale)
EVERYTHING = RewardsSection(demands=0.3, length=0.1, calibration=0.2)


def part(
    name: str, judgement: Judgement | str, pair: Pair = PAIR, order: str = "reason_first", rubric=SHOP, **more
) -> float | None:
    """One part for an answer, given as what it says or as its text. more: of the Answer or of the section."""
    fmt = PromptFormat(order=order)
    text = judgement if isinstance(judgement, str) else render_answer(judgement, SHOP, fmt)
    of_answer = {key: more.pop(key) for key in ("truncated", "probabilities") if key in more}
    tokens = more.pop("tokens", 10)
    section = RewardsSection(**more)
    return PARTS[name](Rewards(section, SHOP, fmt).read(text, tokens, **of_answer), pair, View(section, SHOP, fmt))


@pytest.mark.parametrize(
    ("label", "tier", "costs", "value"),
    [
        ("L2", "L2", {}, 1.0),
        ("L2", "L1", {}, 0.75),  # one tier of at most 3 and a border
        ("L2", "L3", {}, 0.5),  # one tier and the border
        ("L1", "L4", {}, 0.0),
        ("L4", "L1", {}, 0.0),
        ("L2", "L3", {"border_cost": 0.0}, 1 - 1 / 3),
        ("L1", "L4", {"optimism_cost": 2.0}, 0.0),  # 2 * (3 + 1) is the dearest
        ("L4", "L1", {"optimism_cost": 2.0}, 0.5),
        ("L2", "L3", {"optimism_cost": 2.0}, 0.5),
        ("L3", "L2", {"optimism_cost": 2.0}, 0.75),
    ],
)
def test_a_verdict_is_worth_what_its_mistake_does_not_cost(label, tier, costs, value):
    assert part("verdict", Judgement(tier), replace(PAIR, label=label), **costs) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "L2", "<verdict>L2</verdict>\n<verdict>L2</verdict>", "<verdict>L9</verdict>"])
def test_no_verdict_is_worth_less_than_the_worst(text):
    found = {name: part(name, text) for name in PARTS}
    assert found.pop("verdict") == NO_VERDICT < part("verdict", Judgement("L1"), replace(PAIR, label="L4"))
    assert set(found.values()) == {0.0}


def test_a_pair_without_a_label_leaves_the_verdict_open():
    assert part("verdict", GOLD, replace(PAIR, label=None)) is None


@pytest.mark.parametrize(
    ("answer", "truncated", "value"),
    [
        (GOLD, False, 1.0),
        (GOLD, True, 0.0),
        ("<verdict>L2</verdict>\nand more", False, 0.0),
        ("<reason>so <verdict>L4</verdict></reason>\n<verdict>L2</verdict>", False, 0.0),
    ],
)
def test_format_is_one_whole_answer(answer, truncated, value):
    assert part("format", answer, truncated=truncated) == value


@pytest.mark.parametrize(
    ("tier", "named", "pair", "value"),
    [
        ("L2", "colour", PAIR, 1.0),
        ("L2", "brand", PAIR, 0.0),
        ("L2", None, PAIR, 0.0),
        ("L2", "colour brand", PAIR, 0.0),
        ("L4", None, PAIR, 0.0),
        ("L2", "brand", BARE, 1.0),  # any dimension may be it
        ("L2", "taste", BARE, 0.0),
        ("L1", None, BARE, None),
        ("L1", "brand", BARE, 0.0),
        ("L2", "brand", replace(BARE, label="L4"), None),  # nothing is amiss: the verdict is wrong
        ("L2", None, replace(BARE, label="L4"), 0.0),
        ("L2", "brand", replace(BARE, label=None), 1.0),
        ("L4", None, replace(BARE, label="L4"), None),
    ],
)
def test_mismatch(tier, named, pair, value):
    assert part("mismatch", Judgement(tier, None, named), pair) == value


@pytest.mark.parametrize(
    ("tier", "named", "pair", "value"),
    [
        ("L2", ["colour-other"], PAIR, 1.0),
        ("L2", ["brand-other"], PAIR, 0.5),  # fits the tier, is not the pair's
        ("L2", ["brand-other", "colour-other"], PAIR, 0.5),
        ("L2", ["colour-accent", "colour-other"], PAIR, 0.0),  # one demand has one rule
        ("L4", ["colour-other"], PAIR, 0.0),  # is the pair's, does not fit the tier
        ("L2", ["made-up"], PAIR, 0.0),
        ("L2", [], PAIR, 0.0),
        ("L2", [rule.id for rule in SHOP.rules], PAIR, 0.0),
        ("L2", ["brand-other"], BARE, 1.0),
        ("L2", ["brand-other", "pattern-other", "size-near"], BARE, 2 / 3),
        ("L2", [], BARE, None),
        ("L2", [rule.id for rule in SHOP.rules], BARE, 0.0),
    ],
)
def test_rules(tier, named, pair, value):
    found = part("rules", Judgement(tier, rules=named), pair)
    assert found == (None if value is None else pytest.approx(value))


def test_of_two_rules_of_the_pair_one_is_two_thirds_agreement():
    pair = replace(PAIR, rules=["colour-other", "brand-other"])
    assert part("rules", Judgement("L2", rules=["colour-other"]), pair) == pytest.approx((1 + 2 / 3) / 2)


RED = "colour: scarlet = red | green (title) | colour-other L2"
PHOTO = replace(PAIR, image={"bytes": b"", "path": None})


@pytest.mark.parametrize(
    ("rationale", "pair", "value"),
    [
        (PAIR.rationale, PAIR, 1.0),
        (f"{RED}; brand: x | kessel (title) | brand-other L2", PAIR, 0.5),
        ("pattern: dotted | striped (attributes) | pattern-other L2", PAIR, 1.0),
        (f"{RED}; {RED}", PAIR, 0.5),
        (f"{RED}; brand: lumo | none (none) | brand-unknown L3", PAIR, 0.5),  # lumo stands in the title
        (f"{RED}; brand: kessel | none (none) | brand-unknown L3", PAIR, 1.0),
        ("brand: kessel | none (none) | brand-unknown L3", PAIR, 0.0),
        ("brand: kessel | none (none) | brand-unknown L3", BARE, None),
        ("colour: red | green (photo) | colour-other L2", PAIR, 0.0),  # there is no photo
        ("colour: red | green (photo) | colour-other L2", PHOTO, 0.0),  # the pair's own cites the title
        (f"{RED}; pattern: plain | dotted (photo) | pattern-other L2", PHOTO, 1.0),
        (PAIR.title, PAIR, 0.0),
        (f"{RED}; the verdict is L4", PAIR, 0.0),
        (f"colour: scarlet, the rater said | green (title) | colour-other L2; {RED}", PAIR, 0.0),
        ("", PAIR, 0.0),
        ("", BARE, None),
        ("It is green.", BARE, 0.0),
    ],
)
def test_grounding(rationale, pair, value):
    assert part("grounding", Judgement("L2", rationale=rationale), pair) == value


def test_a_pair_that_is_seen_in_its_photo_alone_leaves_grounding_open():
    demand = Demand("colour", "red", "green", "photo", "colour-other", "L2")
    pair = replace(PHOTO, demands=[demand], rationale=render_demands([demand]))
    assert part("grounding", Judgement("L2", rationale=pair.rationale), pair) is None


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (DEMANDS, 1.0),
        (DEMANDS[:1], 2 / 3),  # 2 * 1 / (1 + 2)
        ([*DEMANDS, DEMANDS[0]], 4 / 5),
        ([*DEMANDS, Demand("size", "40", "40", "title", "size-same", "L4")], 4 / 5),
        ([DEMANDS[0], replace(DEMANDS[1], rule="colour-same", tier="L4")], 2 * (1 + 3 / 5) / 4),
        ([DEMANDS[0], replace(DEMANDS[1], found="red")], 2 * (1 + 4 / 5) / 4),
        ([], 0.0),
    ],
)
def test_demands_are_credited_step_by_step(said, value):
    assert part("demands", Judgement("L2", rationale=render_demands(said))) == pytest.approx(value)


def test_pairs_without_demands_leave_them_open():
    assert part("demands", GOLD, BARE) is None


@pytest.mark.parametrize(("tokens", "value"), [(0, 1.0), (100, 1.0), (150, 0.5), (200, 0.0), (999, 0.0)])
def test_length_has_a_soft_edge(tokens, value):
    found = part("length", GOLD, tokens=tokens, length_free_tokens=100, length_limit_tokens=200)
    assert found == pytest.approx(value)
    assert part("length", GOLD, tokens=tokens, length_free_tokens=100, length_limit_tokens=200, truncated=True) == 0.0


@pytest.mark.parametrize(
    ("probabilities", "value"),
    [([0, 1, 0, 0], 1.0), ([1, 0, 0, 0], 0.0), ([0.25] * 4, 1 - 0.375), ([0, 0.5, 0.5, 0], 0.75), (None, None)],
)
def test_calibration_is_a_brier_score(probabilities, value):
    assert part("calibration", GOLD, probabilities=probabilities) == value


@pytest.mark.parametrize("probabilities", [[0.5, 0.5], [1, 1, 0, 0], [float("nan"), 0, 0, 1], [-1, 2, 0, 0]])
def test_probabilities_that_are_none_are_an_error(probabilities):
    with pytest.raises(LoreError, match="expected 4, one per tier"):
        part("calibration", GOLD, probabilities=probabilities)


@pytest.mark.parametrize("name", ["mismatch", "rules", "grounding", "demands"])
def test_the_verdict_alone_has_no_room_for_reasons(name):
    assert part(name, GOLD, order="answer_only") is None
    assert part(name, "", order="answer_only") is None


def test_a_total_is_the_mean_over_the_parts_that_judge():
    rewards = Rewards(RewardsSection(mismatch=0, rules=0, grounding=0.8), SHOP, PromptFormat())
    assert rewards.names == ["verdict", "format", "grounding"] and rewards.weights.tolist() == [1.0, 0.2, 0.8]
    parts = np.array([[0.5, 1.0, 0.25], [0.5, 1.0, np.nan], [np.nan] * 3])
    assert rewards.totals(parts) == pytest.approx([0.45, 0.7 / 1.2, np.nan], nan_ok=True)
    assert not rewards.needs_probabilities and Rewards(EVERYTHING, SHOP, PromptFormat()).needs_probabilities


def test_right_is_the_label_and_nothing_else():
    rewards = Rewards(RewardsSection(), SHOP, PromptFormat())
    answers = [rewards.read(text, 5) for text in ("<verdict>L2</verdict>", "<verdict>L1</verdict>", "L2")]
    assert rewards.right(answers, [BARE] * 3).tolist() == [True, False, False]


def test_counts_that_do_not_fit_are_errors_with_both_numbers(monkeypatch):
    rewards = Rewards(RewardsSection(), SHOP, PromptFormat())
    answers = [rewards.read("", 0)] * 3
    for method in (rewards.parts, rewards.right):
        with pytest.raises(LoreError, match="3 answers and 2 pairs"):
            method(answers, [BARE] * 2)
    with pytest.raises(LoreError, match=r"5 parts .* shape \(3, 4\)"):
        rewards.totals(np.zeros((3, 4)))
    for value, found in (([1.0, 2.0], "2 values"), (float("inf"), "1 values")):
        monkeypatch.setitem(PARTS, "format", lambda answer, pair, view, value=value: value)
        with pytest.raises(LoreError, match=f"'format' returned {found}.* 1 finite number"):
            rewards.parts(answers, [BARE] * 3)


@pytest.mark.parametrize(
    ("section", "said"),
    [({"verdict": 0.0}, "rewards.verdict"), ({"length_free_tokens": 512}, "length_free_tokens and length_limit_tokens")],
)
def test_a_section_that_contradicts_itself_is_an_error(section, said):
    with pytest.raises(LoreError, match=said):
        Rewards(RewardsSection(**section), SHOP, PromptFormat())


# Any batch.

TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["<verdict>t0</verdict>", "<verdict>t1</verdict>", "<verdict>", "<reason>", "</reason>", "<rules>r</rules>", "\n", "; "]
            + [
                "<mismatch>colour</mismatch>",
                "colour: red | red (title) | r t0",
                "colour: red | none (none)",
                "<think>",
                "</think>",
            ]
        ),
        max_size=6,
    ).map("".join),
)


@st.composite
def batches(draw):
    """(rewards, answers, pairs) under any rubric with two tiers or more."""
    count = draw(st.integers(2, 6))
    border = draw(st.integers(0, count))
    tiers = [Tier(id=f"t{i}", name="n", meaning="m", relevant=i >= border) for i in range(count)]
    rubric = Rubric(
        name="made",
        version="1",
        tiers=tiers,
        dimensions=draw(st.sampled_from([[], [{"id": "colour", "meaning": "m"}]])),
        mismatch_tiers=draw(st.sampled_from([[], ["t0"]])),
        rules=draw(st.sampled_from([[], [{"id": "r", "dimension": "colour", "tier": "t0", "principle": "p"}]])),
        aggregate=draw(st.sampled_from(["worst", "mean", "free"])),
    )
    weight = st.floats(0, 10)
    weights = {name: draw(weight) for name in PARTS} | {"verdict": draw(st.floats(0.01, 10))}
    costs = {"border_cost": draw(weight), "optimism_cost": draw(st.floats(0.01, 10))}
    rewards = Rewards(RewardsSection(**weights, **costs), rubric, PromptFormat(order=draw(st.sampled_from(ORDERS))))
    tier_ids = rubric.tier_ids
    demands = st.lists(st.builds(Demand, *[st.sampled_from(["colour", "red", "none", "title", "r", "t0"])] * 6), max_size=2)
    pair = st.builds(
        Pair,
        pair_id=st.just("p"),
        query=st.just("red mug"),
        title=st.sampled_from(["red mug", "mug", ""]),
        label=st.sampled_from([*tier_ids, None]),
        mismatch=st.sampled_from([None, "colour"]),
        rules=st.sampled_from([[], ["r"], ["other"]]),
        demands=demands,
        rationale=st.sampled_from([None, "colour: red | red (title)"]),
    )
    rows = draw(st.lists(st.tuples(TEXTS, st.integers(0, 2000), st.booleans(), st.booleans(), pair), max_size=5))
    flat = [1 / count] * count
    answers = [
        rewards.read(text, tokens, truncated=cut, probabilities=flat if known else None) for text, tokens, cut, known, _ in rows
    ]
    return rewards, answers, [row[-1] for row in rows]


@settings(max_examples=300, deadline=None)
@given(batches())
def test_rewards_are_bounded_and_hang_on_their_own_row_alone(batch):
    rewards, answers, pairs = batch
    parts = rewards.parts(answers, pairs)
    totals = rewards.totals(parts)
    assert parts.shape == (len(answers), len(rewards.names)) and totals.shape == rewards.right(answers, pairs).shape
    low = np.where(np.array(rewards.names) == "verdict", NO_VERDICT, 0.0)
    assert (np.isnan(parts) | ((parts >= low) & (parts <= 1))).all()
    assert (np.isnan(totals) | ((totals >= -1 - 1e-9) & (totals <= 1 + 1e-9))).all()
    assert (np.isnan(totals) == np.isnan(parts).all(axis=1)).all()
    np.testing.assert_array_equal(rewards.parts(answers[::-1], pairs[::-1]), parts[::-1])
    for row, (answer, pair) in enumerate(zip(answers, pairs, strict=True)):
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(rewards.parts([answer], [pair])[0], parts[row])
        np.testing.assert_array_equal(rewards.totals(parts[row : row + 1]), totals[row : row + 1])
