"""The transformers engine on tiny real models: the same numbers however prompts are batched, text and photos mixed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image

from lore.codec.chat_template import text_ids
from lore.codec.prompt import PromptFormat, count_prompt_tokens, render
from lore.codec.verdict_tokens import with_verdict_prefix
from lore.data.images import load_image
from lore.data.parquet import read_pairs
from lore.engines.chat import image_tokens, prompt_text, prompt_tokens, turn_end
from lore.engines.config import ModelSection
from lore.engines.engine import EngineUsage, Sampling
from lore.engines.loading import load_model, load_processor
from lore.engines.open_engine import open_engine
from lore.engines.transformers import TransformersEngine, folded
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError

RUBRIC = load_rubric("shop")
FORMAT = PromptFormat("reason_first", "name", max_prompt_tokens=512)
SMALL, LARGE = 200, 100_000  # batch_tokens: one prompt at a time, all at once


def prompts(tiny, processor, count: int = 24) -> list:
    vision = hasattr(processor, "tokenizer")
    fmt = FORMAT if vision else PromptFormat("reason_first", "name", photo=False, max_prompt_tokens=512)
    pairs = list(read_pairs(tiny.pairs, split="test", limit=count))
    assert 0 < sum(pair.image is not None for pair in pairs) < count
    return [
        render(pair, RUBRIC, fmt, tokenizer=processor, image=load_image(pair.image) if vision and pair.image else None)
        for pair in pairs
    ]


@pytest.fixture(scope="module", params=["vision", "text"])
def engines(request, tiny):
    section = ModelSection(name=str(getattr(tiny, request.param)))
    small, large = (open_engine(section, RUBRIC, batch_tokens=n, device="cpu") for n in (SMALL, LARGE))
    return small, large, prompts(tiny, small.processor)


@pytest.mark.parametrize("kind", [pytest.param("vision", marks=pytest.mark.slow), "text"])
def test_an_adapter_is_folded_in_where_that_changes_nothing(tiny, runs, kind):
    section = ModelSection(name=str(tiny.judge(kind)), adapter=str(tiny.adapter(kind)))
    engine, beside = open_engine(section, RUBRIC, device="cpu"), load_model(section, device="cpu")
    assert isinstance(beside, PeftModel) and not isinstance(engine.model, PeftModel)
    asked = prompts(tiny, engine.processor)
    scores = TransformersEngine(beside, engine.processor, RUBRIC).score(asked)
    np.testing.assert_allclose(engine.score(asked), scores, atol=1e-5)
    assert np.abs(open_engine(ModelSection(name=section.name), RUBRIC, device="cpu").score(asked) - scores).max() > 1e-3
    beside.config.tie_word_embeddings = True
    assert folded(beside) is beside
    rounded = load_model(section.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    assert folded(rounded) is rounded


def test_scores_do_not_depend_on_the_batch(engines):
    small, large, asked = engines
    one_by_one, at_once = small.score(asked), large.score(asked)
    assert one_by_one.shape == (len(asked), 4)
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-5)
    np.testing.assert_allclose(one_by_one.sum(axis=1), 1)
    assert one_by_one.std(axis=0).min() > 1e-4  # different pairs, different scores


def test_greedy_answers_do_not_depend_on_the_batch(engines):
    small, large, asked = engines
    sampling = Sampling(max_tokens=16)
    one_by_one, at_once = small.generate(asked, sampling), large.generate(asked, sampling)
    assert one_by_one == at_once
    assert all(c.tokens == 16 and c.finish_reason == "length" for (c,) in at_once if c.finish_reason == "length")


def test_several_samples_differ_repeat_with_their_seed_and_greedy_ones_are_equal(engines):
    _, large, asked = engines
    sampling = Sampling(temperature=1.0, n=3, max_tokens=8, seed=5)
    drawn = large.generate(asked[:4], sampling)
    assert [len(row) for row in drawn] == [3] * 4
    assert len({c.text for row in drawn for c in row}) > 4
    assert drawn == large.generate(asked[:4], sampling)
    greedy = large.generate(asked[:2], Sampling(n=3, max_tokens=8))
    assert all(len(row) == 3 and len(set(row)) == 1 for row in greedy)


def test_samples_of_a_prompt_share_one_reading_of_it(engines):
    _, large, asked = engines
    sampling, read = Sampling(temperature=1.0, n=4, max_tokens=12, seed=1), []
    assert large._can_share
    hook = large.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        shared = large.generate(asked[:6], sampling)
        passes, read[:] = list(read), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(large), "_can_share", False)
            plain = large.generate(asked[:6], sampling)
    finally:
        hook.remove()
    assert shared == plain  # the same draws from the same distributions
    rows, tokens = read[0]
    assert (rows, passes[0]) == (24, (6, tokens))  # plainly, each of four samples reads the prompt
    assert passes[1] == (24, 1) and all(width == 1 for _, width in passes[1:])


def test_an_answer_that_ends_by_itself_has_stopped_and_its_end_is_counted_but_not_shown(engines):
    small, _, _ = engines
    end = small.tokenizer(turn_end(small.processor), add_special_tokens=False)["input_ids"][-1]
    ids = small.tokenizer("a b", add_special_tokens=False)["input_ids"]
    done = small._completion([*ids, end, 7, 7])
    assert (done.text, done.tokens, done.finish_reason) == ("a b", len(ids) + 1, "stop")
    cut = small._completion(ids)
    assert (cut.text, cut.tokens, cut.finish_reason) == ("a b", len(ids), "length")


def test_a_begun_answer_is_gone_on_with_and_scored_behind_it(engines):
    _, large, asked = engines
    plain = large.score(asked[:6])
    begun = [with_verdict_prefix(p, FORMAT, large.verdict) for p in asked[:6]]
    np.testing.assert_allclose(large.score(begun), plain, atol=1e-6)
    reasoned = [with_verdict_prefix(p, FORMAT, large.verdict, rationale="colour: red") for p in asked[:6]]
    assert np.abs(large.score(reasoned) - plain).max() > 1e-4
    text, _ = prompt_text(large.processor, reasoned[0])
    assert text.endswith("<reason>colour: red</reason>\n" + large.verdict.prefix_text)
    continued = large.generate(reasoned[:1], Sampling(max_tokens=4))[0][0]
    assert continued.tokens <= 4 and "<reason>colour" not in continued.text


def test_usage_counts_the_tokens_of_prompts_photos_and_answers(tiny):
    engine = open_engine(ModelSection(name=str(tiny.vision)), RUBRIC, device="cpu")
    assert engine.usage == EngineUsage()
    asked = prompts(tiny, engine.processor, 6)
    answers = [completion for (completion,) in engine.generate(asked, Sampling(max_tokens=4))]
    length = sum(answer.prompt_tokens for answer in answers)
    assert length == sum(prompt_tokens(engine.processor, messages) for messages in asked)
    assert engine.usage == EngineUsage(length, 0, sum(answer.tokens for answer in answers))
    opened = len(text_ids(engine.tokenizer, engine.verdict.prefix_text))
    engine.score(asked)
    assert engine.usage.prompt_tokens == 2 * length + opened * len(asked)


def test_a_prompt_is_tokenized_once_and_read_as_by_its_processor(engines):
    small, _, asked = engines
    rows = small._rows(asked)
    for some in (rows, [row for row in rows if not row.images], rows[:1]):
        expected = small._inputs([(row.text, row.images) for row in some])
        found = small._encoded(some)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(small), "_inputs", None)
        assert small._encoded([row for row in rows if not row.images])


def test_no_prompts_no_answers(engines):
    small, _, _ = engines
    assert small.generate([], Sampling()) == []
    assert small.score([]).shape == (0, 4)


def test_the_photo_is_seen_and_an_all_black_one_is_no_gap(tiny):
    engine = open_engine(ModelSection(name=str(tiny.vision)), RUBRIC, device="cpu")
    pair = next(p for p in read_pairs(tiny.pairs, split="test") if p.image)
    photos = [Image.new("RGB", (56, 56), colour) for colour in ("white", "red", "black")]
    scores = engine.score([render(pair, RUBRIC, FORMAT, tokenizer=engine.processor, image=photo) for photo in photos])
    assert np.abs(scores[0] - scores[1]).max() > 1e-6
    assert np.isfinite(scores).all()


def test_photo_tokens_are_counted_as_the_processor_expands_them(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    for size in ((56, 56), (200, 90), (31, 400)):
        image = Image.new("RGB", size, "white")
        text = "<query>a</query><image>b"
        whole = processor(text=[text], images=[[image]], add_special_tokens=False)["input_ids"][0]
        plain = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert image_tokens(processor, image) == len(whole) - len(plain) > 0


def test_a_template_that_reads_parts_alone_still_gets_the_text_of_pairs_without_photo(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
        "{% elif p['type'] == 'image' %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    text, _ = prompt_text(processor, [{"role": "user", "content": "<query>red lamp</query>"}])
    assert "<query>red lamp</query>" in text
    assert turn_end(processor) == "<|im_end|>"


def test_model_folders_that_are_not_there_or_not_finished_say_so(tiny, tmp_path):
    with pytest.raises(LoreError, match="is not a folder"):
        load_processor(ModelSection(name=str(tmp_path / "nothing")))
    with pytest.raises(LoreError, match="no config.json"):
        load_processor(ModelSection(name=str(tmp_path)))
    with pytest.raises(LoreError, match="no adapter_config.json"):
        load_processor(ModelSection(name=str(tiny.vision), adapter=str(tmp_path)))


def test_quantised_weights_without_bitsandbytes_are_an_error_that_names_it(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoreError, match="bitsandbytes"):
        load_processor(ModelSection(name=str(tiny.text), quantize="nf4"))


def test_greedy_answers_obey_no_setting_of_the_checkpoint(engines):
    _, large, asked = engines
    plain = large.generate(asked[:6], Sampling(max_tokens=16))
    config = large.model.generation_config
    config.repetition_penalty, config.no_repeat_ngram_size = 5.0, 2
    try:
        assert large.generate(asked[:6], Sampling(max_tokens=16)) == plain
        assert large.model.generation_config is config
    finally:
        config.repetition_penalty, config.no_repeat_ngram_size = None, None


GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)


@pytest.mark.parametrize("template", [GEMMA, GEMMA.replace("{{ raise_exception('System role not supported') }}", "")])
def test_a_system_text_that_the_template_refuses_stands_in_the_users_turn(tiny, template):
    tokenizer = load_processor(ModelSection(name=str(tiny.text)))
    tokenizer.chat_template = template.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    pair = next(read_pairs(tiny.pairs, split="test"))
    messages = render(pair, RUBRIC, replace(FORMAT, photo=False), tokenizer=tokenizer)
    text, _ = prompt_text(tokenizer, messages)
    assert text.index("<|im_start|>user\n") < text.index(messages[0]["content"]) < text.index(pair.query)
    assert count_prompt_tokens(messages, tokenizer) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert turn_end(tokenizer) == "<|im_end|>"


def test_a_template_that_leaves_out_what_is_said_is_an_error(tiny):
    tokenizer = load_processor(ModelSection(name=str(tiny.text)))
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['role'] }}{% endfor %}"
    pair = next(read_pairs(tiny.pairs, split="test"))
    with pytest.raises(LoreError, match="omits part of the prompt"):
        render(pair, RUBRIC, replace(FORMAT, photo=False), tokenizer=tokenizer)
    with pytest.raises(LoreError, match="omits the assistant message"):
        turn_end(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(LoreError, match="rejects the prompt: no"):
        prompt_text(tokenizer, [{"role": "user", "content": "a"}])
