"""Guards the answers of lore/codec/judgement.py: every judgement round-trips, and only what is exactly one answer is read."""

import re
import subprocess
import sys

import pytest
import tokenizers_for_tests as small
from attacks import TEXTS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lore.codec.judgement import FormatFailure, Judgement, parse, render_answer, render_demands
from lore.codec.prompt import PromptFormat
from lore.rubric.demand import Demand
from lore.rubric.rubric import Rubric, Tier, load_rubric
from lore.support.errors import LoreError

ORDERS = ("reason_first", "answer_first", "answer_only")
RAIR = load_rubric("rair")


def rubric_of(tier_ids: list[str]) -> Rubric:
    tiers = [Tier(id=t, name=t, meaning=t, relevant=i > 0) for i, t in enumerate(tier_ids)]
    return Rubric(name="made", version="1", tiers=tiers)


TIER_IDS = st.lists(
    st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="<>|;,"), min_size=1, max_size=6).filter(
        str.isprintable
    ),
    min_size=2,
    max_size=9,
    unique_by=str.casefold,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), tier_ids=TIER_IDS, rationale=TEXTS, mismatch=st.none() | TEXTS, rules=st.lists(TEXTS, max_size=4))
def test_any_judgement_round_trips_in_every_order(data, tier_ids, rationale, mismatch, rules):
    rubric = rubric_of(tier_ids)
    judgement = Judgement(data.draw(st.sampled_from(tier_ids)), None, mismatch, rules, rationale)
    for order in ORDERS:
        fmt = PromptFormat(order=order)
        expected = Judgement(judgement.tier) if order == "answer_only" else judgement
        assert parse(render_answer(judgement, rubric, fmt), rubric, fmt) == expected


@given(TEXTS, st.none() | TEXTS, st.lists(TEXTS, max_size=3))
def test_a_judgement_is_canonical_from_the_start(rationale, mismatch, rules):
    once = Judgement("L1", None, mismatch, rules, rationale)
    assert Judgement("L1", None, once.mismatch, once.rules, once.rationale) == once


@pytest.mark.parametrize("marked", ["◁/THINK▷", "[/think]", "[unused17]", "Here is my response:", "[TH[/THINK]INK]"])
def test_a_rule_or_mismatch_that_is_a_mark_of_reasoning_hides_no_verdict(marked):
    judgement = Judgement("L2", None, marked, [marked])
    for order in ("reason_first", "answer_first"):
        fmt = PromptFormat(order=order)
        assert parse(render_answer(judgement, RAIR, fmt), RAIR, fmt) == judgement


def test_the_answer_layouts():
    judgement = Judgement("L2", [0.1, 0.7, 0.1, 0.1], "colour", ["colour-other", "brand-equal"], "5 < 10,\nso no")
    reason, details = (
        "<reason>5 < 10,\nso no</reason>",
        "<mismatch>colour</mismatch>\n<rules>colour-other brand-equal</rules>",
    )
    layouts = [render_answer(judgement, RAIR, PromptFormat(order=order)) for order in ORDERS]
    assert layouts == [
        f"{reason}\n<verdict>L2</verdict>\n{details}",
        f"<verdict>L2</verdict>\n{details}\n{reason}",
        "<verdict>L2</verdict>",
    ]
    assert render_answer(Judgement("L4"), RAIR, PromptFormat()) == "<verdict>L4</verdict>"


def test_an_answer_needs_a_tier_of_the_rubric():
    with pytest.raises(LoreError, match="'L5' is not a tier"):
        render_answer(Judgement("L5"), RAIR, PromptFormat())


def test_a_rationale_for_training_holds_no_control_token():
    judgement = Judgement("L4", rationale="the title says <|im_end|> and </reason> but 5 < 10")
    text = render_answer(judgement, RAIR, PromptFormat(), tokenizer=small.chatml())
    assert text == "<reason>the title says  and  but 5 < 10</reason>\n<verdict>L4</verdict>"


def test_demands_become_one_line():
    demands = [
        Demand("colour", "red", "blue", "photo", "colour-other", "L2"),
        Demand("brand", "Lumo", "Lumo", "title", "brand-equal", "L4"),
    ]
    assert render_demands(demands) == "colour: red | blue (photo) | colour-other L2; brand: Lumo | Lumo (title) | brand-equal L4"
    assert render_demands([]) == ""


@pytest.mark.parametrize(
    ("order", "text", "tier"),
    [
        ("reason_first", "<reason>x</reason><verdict>L3</verdict>", "L3"),
        ("reason_first", " \n<reason>x</reason>\n\n <verdict>L3</verdict>\n", "L3"),
        ("reason_first", "<verdict>L3</verdict>", "L3"),
        ("reason_first", "<reason></reason><verdict>L3</verdict>", "L3"),
        ("reason_first", "<reason>perhaps <verdict>L1</verdict></reason><verdict>L3</verdict>", "L3"),
        ("reason_first", "<think>L1? <verdict>L1</verdict></think>\n<reason>x</reason><verdict>L3</verdict>", "L3"),
        ("answer_first", "<verdict>L3</verdict><reason>not <verdict>L4</verdict>, 5 < 10</reason>", "L3"),
        ("answer_first", "<verdict>L3</verdict><rules>a  b</rules>", "L3"),
        ("answer_only", "\n<verdict>L3</verdict>\n", "L3"),
        ("answer_only", "<think></think><verdict>L3</verdict>", "L3"),
        ("answer_only", "red, so L4?</think>\n<verdict>L3</verdict>", "L3"),
        ("reason_first", "L1? <verdict>L1</verdict></think>\n<reason>x</reason><verdict>L3</verdict>", "L3"),
        ("reason_first", "<think><reason>y</reason></think><reason>x</reason><verdict>L3</verdict>", "L3"),
        ("reason_first", "<reason>x </think> y</reason><verdict>L3</verdict>", "L3"),
    ],
)
def test_answers_that_are_read(order, text, tier):
    judgement = parse(text, RAIR, PromptFormat(order=order))
    assert isinstance(judgement, Judgement)
    assert judgement.tier == tier


@pytest.mark.parametrize(
    ("order", "text", "reason"),
    [
        ("reason_first", "", "empty"),
        ("reason_first", " \n", "empty"),
        ("reason_first", "L3", "no_verdict"),
        ("reason_first", "<reason>the verdict is <verdict>L4</verdict></reason>", "no_verdict"),
        ("reason_first", "<verdict>L3</verdict><verdict>L3</verdict>", "two_verdicts"),
        ("reason_first", "<verdict>L3</verdict> or <verdict>L4</verdict>", "two_verdicts"),
        ("reason_first", "<reason>x</reason><verdict>L5</verdict>", "unknown_tier"),
        ("reason_first", "<reason>x</reason><verdict> L3</verdict>", "unknown_tier"),
        ("reason_first", "<reason>x</reason><verdict>l3</verdict>", "unknown_tier"),
        ("reason_first", "<reason>x</reason><verdict></verdict>", "unknown_tier"),
        ("reason_first", "<reason>x</reason><verdict>L3", "unclosed_verdict"),
        ("reason_first", "<reason>x <verdict>L3</verdict>", "unclosed_reason"),
        ("reason_first", "<reason>x", "unclosed_reason"),
        ("reason_first", "<think>x <verdict>L3</verdict>", "unclosed_think"),
        ("reason_first", "<reason>x<reason>y</reason><verdict>L3</verdict>", "nested_reason"),
        ("reason_first", "<reason>x</reason> y</reason><verdict>L3</verdict>", "leading_text"),
        ("reason_first", "Sure: <verdict>L3</verdict>", "leading_text"),
        ("reason_first", "Sure: <reason>x</reason><verdict>L3</verdict>", "leading_text"),
        ("reason_first", "<verdict>L3</verdict> because", "trailing_text"),
        ("reason_first", "<verdict>L3</verdict><reason>x</reason>", "trailing_text"),
        ("reason_first", "<verdict>L3</verdict><rules>a</rules><mismatch>b</mismatch>", "trailing_text"),
        ("reason_first", "<verdict>L3</verdict><mismatch>colour", "trailing_text"),
        ("reason_first", "<verdict>L3</verdict><mismatch> </mismatch>", "empty_mismatch"),
        ("reason_first", "<verdict>L3</verdict><rules></rules>", "empty_rules"),
        ("reason_first", "<verdict>L3</verdict><|im_end|>", "trailing_text"),
        ("answer_first", "<reason>x</reason><verdict>L3</verdict>", "trailing_text"),
        ("answer_first", "<verdict>L3</verdict><reason>x</reason> L4", "trailing_text"),
        ("answer_first", "<verdict>L3</verdict><reason>x", "unclosed_reason"),
        ("answer_only", "<reason>x</reason><verdict>L3</verdict>", "leading_text"),
        ("answer_only", "<verdict>L3</verdict><rules>a</rules>", "trailing_text"),
        ("answer_only", "<verdict>L3</verdict><mismatch></mismatch>", "trailing_text"),
    ],
)
def test_everything_else_is_a_format_failure(order, text, reason):
    assert parse(text, RAIR, PromptFormat(order=order)) == FormatFailure(reason, text)


@given(st.lists(st.sampled_from(["<reason>", "</reason>", "<verdict>", "</verdict>", "L3", "L4", " ", "<rules>", "x"])))
@example(["<verdict>", "L3", "</verdict>"])
def test_a_read_answer_says_its_verdict_once_outside_the_reasoning(parts):
    text = "".join(parts)
    for order in ORDERS:
        judgement = parse(text, RAIR, PromptFormat(order=order))
        if isinstance(judgement, Judgement):
            outside = re.sub("<reason>.*?</reason>", "", text)
            assert re.findall("<verdict>(.*?)</verdict>", outside) == [judgement.tier]
            rewritten = render_answer(judgement, RAIR, PromptFormat(order=order))
            assert parse(rewritten, RAIR, PromptFormat(order=order)) == judgement


def test_the_core_imports_no_torch():
    code = (
        "import lore.codec.judgement, lore.rubric.rubric, sys; lore.rubric.rubric.load_rubric('rair'); "
        "assert not {'torch', 'transformers', 'datasets', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
