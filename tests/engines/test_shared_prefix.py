"""What all prompts begin with is processed once, and no answer changes."""

from contextlib import contextmanager
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_row_independence import CONFIGS, RUBRIC, WORDS, engine_of

from lore.codec.chat_template import text_ids
from lore.codec.prompt import PromptFormat, render
from lore.data.images import load_image
from lore.data.parquet import read_pairs
from lore.engines.chat import prompt_tokens
from lore.engines.config import ModelSection
from lore.engines.engine import Sampling
from lore.engines.open_engine import open_engine
from lore.engines.shared_prefix import HELD, Prefixes, runs
from lore.engines.transformers import TransformersEngine

SYSTEM = {"role": "system", "content": "Judge relevance by these rules: " + WORDS}
ASKED = [[SYSTEM, {"role": "user", "content": f"{number}: {WORDS[: 20 + 11 * number]}"}] for number in (0, 1, 3, 3, 4, 5)]
# Full attention over every token, and no rule about lengths.
SHARE = {"llama", "qwen2", "qwen3", "qwen3_moe", "gpt_neox", "gptj", "gpt2", "gpt_bigcode", "opt", "biogpt", "xglm"}
SHARE |= {"gemma", "ministral3", "bloom", "falcon-alibi"}
FAST = ("llama", "qwen3", "gpt2", "mpt", "mistral", "phi3", "qwen3_5_text")


def sharing(plain: TransformersEngine, **options) -> TransformersEngine:
    return TransformersEngine(plain.model, plain.processor, plain.rubric, **{"batch_tokens": 100_000} | options, shared_prefix=True)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in CONFIGS])
def test_answers_are_those_without_it(kind):
    plain = engine_of(kind)
    engine = sharing(plain)
    for asked in (ASKED, ASKED[:1], ASKED[2:4]):
        expected, found = plain.score(asked), engine.score(asked)
        print(f"{kind}: largest difference {np.abs(expected - found).max():.1e}")
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for sampling in (Sampling(max_tokens=6), Sampling(max_tokens=4, n=3, temperature=1.0)):
            assert engine.generate(asked, sampling) == plain.generate(asked, sampling)
    assert (engine.usage.cached_tokens > 0) == (kind in SHARE)
    assert engine.usage.prompt_tokens == plain.usage.prompt_tokens and plain.usage.cached_tokens == 0


@pytest.mark.parametrize(("kind", "changed"), [("mpt", {}), ("gpt_neo", {"attention_types": [[["local", "global"], 1]]})])
def test_a_model_that_counts_padding_is_found_by_rows_of_one_length(kind, changed, monkeypatch):
    monkeypatch.setitem(CONFIGS, kind, CONFIGS[kind] | changed)
    plain = engine_of(kind)
    engine = sharing(plain)
    engine.score(ASKED[2:4])
    np.testing.assert_allclose(engine.score(ASKED), plain.score(ASKED), atol=1e-5)


@contextmanager
def shapes_of(engine: TransformersEngine):
    """(rows, tokens) of each forward pass."""
    shapes = []
    hook = engine.model.register_forward_pre_hook(lambda *args: shapes.append(tuple(args[2]["input_ids"].shape)), with_kwargs=True)
    try:
        yield shapes
    finally:
        hook.remove()


def shown(tiny, processor, count: int) -> list:
    fmt = PromptFormat("reason_first", "tiers", max_prompt_tokens=800)
    pairs = list(islice(cycle(read_pairs(tiny.pairs, split="test", limit=min(count, 24))), count))
    assert 0 < sum(pair.image is not None for pair in pairs) < count
    images = [load_image(pair.image) if pair.image else None for pair in pairs]
    return [render(p, RUBRIC, fmt, tokenizer=processor, image=image) for p, image in zip(pairs, images, strict=True)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_photos_stand_behind_the_prefix_and_adapters_stay_beside_the_weights(tiny, precision):
    plain = open_engine(ModelSection(name=str(tiny.vision), dtype=precision), RUBRIC, device="cpu", shared_prefix=False)
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    plain.model = get_peft_model(plain.model, lora).eval()
    engine = sharing(plain)
    asked = shown(tiny, plain.processor, 24)
    expected = plain.score(asked)
    with shapes_of(engine) as shapes:
        found = engine.score(asked)
    read = [rows * width for rows, width in shapes]
    np.testing.assert_allclose(found, expected, atol=1e-5 if precision == "float32" else 0.02)
    total = sum(prompt_tokens(plain.processor, messages) for messages in asked)
    assert sum(read) < 0.7 * total  # with the comparison of four rows
    assert engine.usage.cached_tokens > 0.7 * total
    assert engine._shares == {False: True, True: True}
    if precision == "float32":
        assert engine.generate(asked, Sampling(max_tokens=12)) == plain.generate(asked, Sampling(max_tokens=12))
        assert expected.std(axis=0).min() > 1e-4


def test_one_prefix_is_read_once_and_the_batches_hold_only_what_follows(tiny):
    engine = open_engine(ModelSection(name=str(tiny.text)), RUBRIC, device="cpu", batch_tokens=1600)
    asked = ASKED * 8
    with shapes_of(engine) as first:
        engine.score(asked)
    with shapes_of(engine) as shapes:
        engine.score(asked)
    (prefix,) = engine._prefixes._held
    assert first[0] == (1, len(prefix.ids))
    lengths = [prompt_tokens(engine.processor, messages) for messages in asked]
    longest = max(lengths) - len(prefix.ids) + len(text_ids(engine.tokenizer, engine.verdict.prefix_text))
    assert all(width <= longest for _, width in shapes)  # the prefix is not read again
    assert max(rows for rows, _ in shapes) > 1600 // max(lengths)


def test_prompts_without_a_common_beginning_are_read_as_before(tiny):
    engine = open_engine(ModelSection(name=str(tiny.text)), RUBRIC, device="cpu")
    other = [[{"role": "user", "content": "Answer with one word: is a lamp a fruit?"}]]
    plain = open_engine(ModelSection(name=str(tiny.text)), RUBRIC, device="cpu", shared_prefix=False)
    np.testing.assert_array_equal(engine.score([*ASKED, *other]), plain.score([*ASKED, *other]))
    assert engine.usage.cached_tokens == 0 and engine.generate([], Sampling()) == []


def test_items_of_one_query_start_behind_it(tiny):
    plain = open_engine(ModelSection(name=str(tiny.text)), RUBRIC, device="cpu", shared_prefix=False)
    engine = sharing(plain)
    queries = ["red cotton dress for women and a blue scarf of wool", "small white dots on a dress of cotton for a child", "mug"]
    asked = [[SYSTEM, {"role": "user", "content": f"{query}\n{n}: {WORDS[n:]}"}] for query in queries for n in range(20)]
    with shapes_of(engine) as shapes:
        found = engine.score(asked)
    np.testing.assert_allclose(found, plain.score(asked), atol=1e-5)
    assert [rows for rows, _ in shapes if rows >= 20] == [20, 20, 20]
    assert sum(rows == 1 for rows, _ in shapes) == 3  # the rubric and two queries; the third is shorter than what a batch costs
    assert engine.generate(asked, Sampling(max_tokens=5)) == plain.generate(asked, Sampling(max_tokens=5))
    assert len(engine._prefixes._held) == 1  # the queries are not kept
    assert 0 < engine.usage.cached_tokens < engine.usage.prompt_tokens


def test_runs_are_neighbors_that_save_more_than_a_batch_costs():
    rubric, first, second = list(range(100)), list(range(200, 240)), list(range(300, 312))
    rows = [[*rubric, *first, n] for n in range(5)] + [[*rubric, *second, n] for n in range(9)] + [[*rubric, n] for n in range(5)]
    room = [len(row) - 1 for row in rows]
    assert runs(rows, room, 100) == [(list(range(5)), 140), (list(range(5, 14)), 112)]
    assert runs(rows, [101] * len(rows), 100) == []  # photos right behind the rubric
    assert runs(rows[5:8], room, 100) == [] and runs([], [], 0) == [] and runs(rows[:1], room[:1], 5) == []
    assert runs(rows[::4], room[::4], 100) == []


def test_prefixes_are_kept_in_a_bounded_number_and_go_on_from_one_another():
    engine = engine_of("llama")
    prefixes = Prefixes(engine.model, 200)
    first, processed = prefixes.of(list(range(3, 50)))
    assert processed == 47
    again, processed = prefixes.of(list(range(3, 50)))
    assert processed == 0 and again.ids == first.ids
    longer, processed = prefixes.of([*range(3, 50), 7, 8])
    assert processed == 2 and torch.allclose(longer.layers[0][0][:, :, :47], first.layers[0][0])
    shorter, processed = prefixes.of(list(range(3, 40)))
    assert processed == 0 and shorter.layers[0][0].shape[2] == 37
    for start in range(50, 60):
        prefixes.of(list(range(start, start + 60)))
        assert len(prefixes._held) <= HELD and sum(len(held.ids) for held in prefixes._held) <= 200
    assert prefixes.of(list(range(1, 301)))[0].ids == list(range(1, 201))
    assert prefixes.known(list(range(1, 60))) == 59
