"""Reasoning in the notations of open models: what follows it is the answer, and reasoning without an end is none."""

import pytest

from lore.codec.judgement import FormatFailure, parse
from lore.codec.prompt import PromptFormat
from lore.codec.reasoning import after_first_reasoning, after_reasoning
from lore.rubric.rubric import load_rubric

RUBRIC, FMT = load_rubric("rair"), PromptFormat(order="answer_only")
ANSWER = "<verdict>L3</verdict>"
DRAFT = "so <verdict>L4</verdict>?"
MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Thought>", "</Thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_the_answer_is_what_follows_the_reasoning(opening, closing):
    text = f"{opening}{DRAFT}{closing}\n{ANSWER}"
    assert after_reasoning(text) == after_first_reasoning(text, "<reason>") == ANSWER
    assert parse(text, RUBRIC, FMT).tier == "L3"


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_reasoning_without_an_end_holds_no_answer(opening, closing):
    for text in (f"{opening}{DRAFT}", f"{opening}{ANSWER}"):
        assert after_reasoning(text) is None
        found = parse(text, RUBRIC, FMT)
        assert isinstance(found, FormatFailure) and found.reason == "unclosed_think"
    assert after_reasoning(f"{ANSWER}\n{opening}wait") is None or opening.startswith("<|channel|>")


@pytest.mark.parametrize(("opening", "closing"), MARKS[:-2])
def test_the_template_may_have_opened_the_reasoning(opening, closing):
    assert after_reasoning(f"{DRAFT}{closing}{ANSWER}") == ANSWER
    assert parse(f"{DRAFT}{closing}{ANSWER}", RUBRIC, FMT).tier == "L3"


def test_channels_decoded_without_special_tokens_are_told_apart():
    assert after_reasoning('analysisMaybe {"verdict": "L4"}assistantfinal{"verdict": "L3"}') == '{"verdict": "L3"}'
    assert after_reasoning("analysis of the item: fine") == "analysis of the item: fine"


def test_marks_inside_the_answers_own_reason_belong_to_it():
    fmt = PromptFormat(order="reason_first")
    assert parse(f"<reason>x [/THINK] y</reason>{ANSWER}", RUBRIC, fmt).tier == "L3"
