"""Guards lore/codec/verdict_tokens.py: tier tokens of every kind of tokenizer, and prompts that end right before them."""

import pytest
import tokenizers_for_tests as small
from PIL import Image

from lore.codec.chat_template import answer_ids
from lore.codec.judgement import Judgement, render_answer
from lore.codec.prompt import PromptFormat, render
from lore.codec.verdict_tokens import verdict_tokens, with_verdict_prefix
from lore.data.pair import Pair
from lore.rubric.rubric import Rubric, Tier, load_rubric
from lore.support.errors import LoreError

ORDERS = ("reason_first", "answer_first", "answer_only")
RAIR = load_rubric("rair")
WANDS = load_rubric("wands")
NAME = PromptFormat(detail="name")
RED = Image.new("RGB", (8, 8), "red")


def pair_of(**fields) -> Pair:
    return Pair(**{"pair_id": "p", "query": "red dress", "title": "Red cotton dress", **fields})


def rubric_of(tier_ids: list[str]) -> Rubric:
    tiers = [Tier(id=t, name=t, meaning=t, relevant=i > 0) for i, t in enumerate(tier_ids)]
    return Rubric(name="made", version="1", tiers=tiers)


@pytest.mark.parametrize(
    ("name", "rubric", "prefix", "tokens"),
    [
        ("gpt2_like", "wands", "<verdict>", ["Irrelevant", "Partial", "Exact"]),
        ("gpt2_like", "rair", "<verdict>L", ["1", "2", "3", "4"]),
        ("tier_tokens", "rair", "<verdict>", ["L1", "L2", "L3", "L4"]),
        ("chatml", "rair", "<verdict>L", ["1", "2", "3", "4"]),
        ("chatml", "wands", "<verdict", [">Irrelevant", ">Partial", ">Exact"]),
        ("inst", "wands", "<verdict>", ["Ir", "Par", "Ex"]),
        ("inst", "rair", "<verdict>L", ["1", "2", "3", "4"]),
        ("normalizing", "rair", "<verdict>", ["l1", "l2", "l3", "l4"]),
        ("chatml", "homedepot", "<verdict>", ["1", "2", "3"]),
    ],
)
def test_tier_tokens_of_every_kind_of_tokenizer(name, rubric, prefix, tokens):
    tokenizer = small.CHAT_TOKENIZERS[name]()
    found = verdict_tokens(tokenizer, load_rubric(rubric))
    assert found.prefix_text == prefix
    assert tokenizer.convert_ids_to_tokens(list(found.tier_ids)) == tokens
    begun, answer = answer_ids(tokenizer, prefix), answer_ids(tokenizer, f"<verdict>{load_rubric(rubric).tier_ids[-1]}</verdict>")
    assert answer[: len(begun)] == begun and answer[len(begun)] == found.tier_ids[-1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["gpt2_like", "tier_tokens", "chatml", "inst"])
def test_the_prompt_ends_right_before_the_tier_token(name, order):
    tokenizer = small.CHAT_TOKENIZERS[name]()
    for rubric in (RAIR, WANDS, load_rubric("homedepot")):
        fmt = PromptFormat(order=order, detail="name")
        tokens = verdict_tokens(tokenizer, rubric)
        for tier_id, token in zip(rubric.tier_ids, tokens.tier_ids, strict=True):
            judgement = Judgement(tier_id, rationale="colour: red | red (title)")
            messages = with_verdict_prefix(render(pair_of(), rubric, fmt), fmt, tokens, judgement.rationale)
            prompt_text = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            before = tokenizer(prompt_text + messages[-1]["content"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(prompt_text + render_answer(judgement, rubric, fmt), add_special_tokens=False)["input_ids"]
            assert whole[: len(before)] == before
            assert whole[len(before)] == token


def test_the_verdict_prefix_message():
    text_messages, photo_messages = render(pair_of(), RAIR, NAME), render(pair_of(), RAIR, NAME, image=RED)
    assert with_verdict_prefix(text_messages, NAME, None)[2:] == [{"role": "assistant", "content": "<verdict>"}]
    tokens = verdict_tokens(small.gpt2_like(), RAIR)
    (message,) = with_verdict_prefix(photo_messages, NAME, tokens, " why </reason>")[2:]
    assert message["content"] == [{"type": "text", "text": "<reason>why</reason>\n<verdict>L"}]
    (message,) = with_verdict_prefix(text_messages, PromptFormat(order="answer_first"), tokens, "why")[2:]
    assert message["content"] == "<verdict>L"
    assert len(text_messages) == 2


@pytest.mark.parametrize(
    ("tokenizer", "tier_ids", "part"),
    [
        (small.word_level(), ["L1", "L2"], "no single token distinguishes the tiers"),
        (small.word_level(("<", "verdict", ">", "</", "good")), ["good", "bad"], "no single token distinguishes the tiers"),
        (small.gpt2_like(), ["La", "Lb", "Ma"], "no single token distinguishes the tiers"),
        (small.chatml(), ["完", "宏"], "inside a character"),
    ],
)
def test_tiers_that_no_single_token_tells_apart_are_an_error(tokenizer, tier_ids, part):
    with pytest.raises(LoreError, match=part):
        verdict_tokens(tokenizer, rubric_of(tier_ids))
