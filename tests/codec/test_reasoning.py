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


MORE_MARKS = [
    ("<unused94>thought\n", "<unused95>"),
    ("<scratchpad>", "</scratchpad>"),
    ("[unused16]", "[unused17]"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<think >", "</think >"),
    ("<think>", "</ think>"),
    ("<reflection>", "</reflection>"),
    ("Here is my thought process:", "Here is my response:"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe think ", "assistantfinal"),
    ("assistantanalysisWe think ", "assistantfinal"),
]


@pytest.mark.parametrize(("opening", "closing"), MORE_MARKS)
def test_other_notations_of_reasoning(opening, closing):
    whole, cut = f"{opening}{DRAFT}{closing}{ANSWER}", f"{opening}{DRAFT}"
    assert after_reasoning(whole) == after_first_reasoning(whole, "<reason>") == ANSWER
    assert after_reasoning(cut) is None and after_first_reasoning(cut, "<reason>") is None
    assert parse(whole, RUBRIC, FMT).tier == "L3" and parse(cut, RUBRIC, FMT).reason == "unclosed_think"


@pytest.mark.parametrize(
    "text",
    [
        "<think>first <reasoning>a</reasoning> draft {}",
        "<think>a <think>b</think> draft {}",
        "<think>a [THINK]b[/THINK] <reflection>c</reflection> draft {}",
        "<think>a</think> one {} <reflection>b <think>c</think> draft {}",
    ],
)
def test_a_block_inside_another_does_not_close_it(text):
    text = text.replace("{}", ANSWER)
    assert after_reasoning(text) is None
    if not text.startswith("<think>a</think>"):
        assert after_first_reasoning(text, "<reason>") is None
        assert parse(text, RUBRIC, FMT).reason == "unclosed_think"
        assert after_reasoning(f"{text}</think>{ANSWER}") == after_first_reasoning(f"{text}</think>{ANSWER}", "<reason>") == ANSWER


def test_a_block_inside_reasoning_that_the_template_opened_is_no_end_of_it():
    text = f"so <reasoning>a</reasoning> {DRAFT}</think>{ANSWER}"
    assert after_reasoning(text) == after_first_reasoning(text, "<reason>") == ANSWER


def test_a_final_channel_before_another_one_is_no_answer():
    for more in ("<|end|><|start|>assistant<|channel|>analysis<|mess", "<|end|><|start|>assi", "<|channel|>analysis<|message|>no"):
        assert after_reasoning(f"<|channel|>final<|message|>{ANSWER}{more}") is None
    assert after_reasoning(f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>") == ANSWER


def test_a_word_that_begins_like_a_channel_is_text():
    for text in (f"analysis: {ANSWER}", f"analysis. {ANSWER}", f"analyses {ANSWER}", f"commentary - {ANSWER}"):
        assert after_reasoning(text) == after_first_reasoning(text, "<reason>") == text
