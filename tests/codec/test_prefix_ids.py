"""Texts that begin alike have the ids that the tokenizer gives for the whole text, and so the same prompts are rendered."""

import pytest
import tokenizers_for_tests as small
from tokenizers import AddedToken

from lore.codec import chat_template, prefix_ids, prompt
from lore.codec.chat_template import template_text
from lore.codec.prompt import PromptFormat, render
from lore.data.pair import Pair
from lore.rubric.rubric import load_rubric

RUBRIC = load_rubric("shop")
TITLES = ["red mug", "  two  spaces ", "<|im_start|>user", "<|im_end|>\n<|im_start|>system\n", "İstanbul ﬁne ＜b＞", "a" * 300, ""]
TITLES += ["红色 杯子", "</item>", "[INST] x [/INST]", "▁word ▁", "e\u0301 \u200b", "L1 L4", "\n\n", "1,000"]
SPECIAL = ["chatml", "gpt2_like", "tier_tokens", "normalizing", "llama2", "unigram", "wordpiece"]


def plainly(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pairs() -> list[Pair]:
    return [Pair(pair_id=str(n), query=f"mug {n % 3}", title=title or "t", description=title * 3) for n, title in enumerate(TITLES)]


@pytest.mark.parametrize("kind", [*SPECIAL, "inst", "plain_turns"])
def test_ids_are_those_of_the_whole_text(kind):
    tokenizer, system = getattr(small, kind)(), "Judge relevance by these rules. " * 20
    texts = [
        template_text(tokenizer, [{"role": "system", "content": system}, {"role": "user", "content": user}]) + answer
        for user in (f"<query>mug</query>\n<item>\n<title>{title}</title>\n</item>" for title in TITLES)
        for answer in ("", "<verdict>L", "<reason>a</reason>\n<verdict>")
    ]
    texts += [texts[0][: texts[0].rindex("<query>")] + title for title in TITLES]  # ends and goes on differently behind a beginning
    texts += [f"{' ' * 300}{text}" for text in texts[:3]] + [text[:cut] for text in texts[:2] for cut in range(150, len(text), 41)]
    assert [prefix_ids.text_ids(tokenizer, text) for text in texts] == [plainly(tokenizer, text) for text in texts]
    assert [prefix_ids.text_ids(tokenizer, text) for text in texts[::-1]] == [plainly(tokenizer, text) for text in texts[::-1]]
    if kind in ("chatml", "gpt2_like", "tier_tokens"):
        known = prefix_ids._known[tokenizer][1]
        assert 0 < len(known.held) <= prefix_ids.HELD and max(cut for _, cut, _ in known.held) > len(system)


@pytest.mark.parametrize("options", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}], ids=str)
def test_tokens_that_take_in_their_surroundings_change_no_ids(options):
    tokenizer = small.wrap(small.byte_level(None, 420), small.CHATML, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.add_tokens([AddedToken("<turn>", **{"normalized": False} | options), AddedToken("<turn>>", normalized=False)])
    starts = ["rules " * 60 + between for between in ("", " ", "\n ", "x")]
    texts = [f"{start}<turn>{rest}" for start in starts for rest in ("a", " b", "> c", "<turn>", "d e", "\n\n f")]
    assert [prefix_ids.text_ids(tokenizer, text) for text in texts * 2] == [plainly(tokenizer, text) for text in texts * 2]


def test_settings_that_another_caller_left_in_the_tokenizer_change_no_ids():
    tokenizer = small.chatml()
    texts = ["rules " * 60 + f"<|im_start|>user\n{word}" for word in ("red", "blue", "green")]
    expected = [plainly(tokenizer, text) for text in texts]
    for text in texts:
        prefix_ids.text_ids(tokenizer, text)
    tokenizer(texts, truncation=True, max_length=5, padding="max_length")
    assert [prefix_ids.text_ids(tokenizer, text) for text in texts] == expected
    tokenizer(["a"], padding=True, pad_to_multiple_of=64)
    assert [prefix_ids.text_ids(tokenizer, text) for text in texts] == expected
    tokenizer("a", split_special_tokens=True)
    assert [prefix_ids.text_ids(tokenizer, text) for text in texts] == expected


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_bound_without_tokenizing_is_never_too_low(kind):
    tokenizer, sure = getattr(small, kind)(), 0
    texts = ["rules " * 60 + f"<|im_start|>user\n{title}<|im_end|>" for title in TITLES]
    for text in texts * 2:
        size = len(prefix_ids.text_ids(tokenizer, text))
        assert not prefix_ids.surely_within(tokenizer, text, size - 1)
        sure += prefix_ids.surely_within(tokenizer, text, size + 2000)
    assert sure >= (10 if kind in ("chatml", "gpt2_like", "tier_tokens") else 0)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("spare", [4000, 40, 15])
def test_rendered_prompts_are_those_of_the_slow_way(kind, spare, monkeypatch):
    tokenizer = getattr(small, kind)()
    fmt = PromptFormat("answer_only", "tiers", max_prompt_tokens=100_000)
    least = min(len(plainly(tokenizer, template_text(tokenizer, render(pair, RUBRIC, fmt)))) for pair in pairs())
    fmt = PromptFormat("answer_only", "tiers", max_prompt_tokens=least + spare)
    found = [render(pair, RUBRIC, fmt, tokenizer=tokenizer) for pair in pairs()]
    monkeypatch.setattr(chat_template.prefix_ids, "text_ids", plainly)
    monkeypatch.setattr(prompt, "surely_within", lambda *_: False)
    assert found == [render(pair, RUBRIC, fmt, tokenizer=tokenizer) for pair in pairs()]
