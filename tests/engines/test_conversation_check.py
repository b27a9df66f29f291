"""Guards that ids trained = ids scored = ids of the template's own conversation, over the chat templates that TRL ships and every
kind of tokenizer."""

import copy
import re
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tokenizers_for_tests as small

from lore.codec.chat_template import (
    answer_glue,
    answer_ids,
    conversation_ids,
    own_conversation,
    server_options,
    template_text,
    text_ids,
)
from lore.codec.judgement import Judgement, render_answer
from lore.codec.prompt import PromptFormat, render
from lore.codec.verdict_tokens import verdict_tokens
from lore.data.pair import Pair
from lore.engines.chat import at_verdict, prompt_text, stop_ids, turn_end
from lore.engines.config import EndpointSection
from lore.engines.conversation_check import check_conversation, check_server_template
from lore.engines.engine import Sampling
from lore.engines.transformers import TransformersEngine
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.train.judge.rows import sft_row
from lore.train.rl.prompts import trainer_processor

TEMPLATES = {path.stem: path.read_text() for path in (Path(find_spec("trl").origin).parent / "chat_templates").glob("*.jinja")}
IN_PARTS = ("llava_next", "idefics3", "smolvlm")  # templates of processors, which take messages in parts
MARKS = re.compile(r"<\|[^|>{}'\"\s]{1,40}\|>|<｜[^｜]{1,40}｜>|</?think>|<(?:start|end)_of_\w+>|<\|?turn\|?>|\[/?INST\]")
RUBRIC = load_rubric("rair")
MESSAGES = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "red dress"}]
ORDERS = ("reason_first", "answer_first", "answer_only")


class Processor:
    """A tokenizer with the template and the message form of a multimodal processor."""

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template

    def apply_chat_template(self, messages, **options):
        return self.tokenizer.apply_chat_template(messages, **{"chat_template": self.chat_template} | options)


def with_template(name: str, kind: str = "gpt2_like", special: bool = True):
    """A tokenizer with TRL's template, and its turn markers as (special) tokens."""
    tokenizer = copy.deepcopy(small.TOKENIZERS[kind]())
    marks = sorted({*MARKS.findall(TEMPLATES[name]), *(["</s>"] if "</s>" in TEMPLATES[name] else [])})
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
    else:
        tokenizer.add_tokens(marks)
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.chat_template = TEMPLATES[name]
    return Processor(tokenizer) if name.removesuffix("_training") in IN_PARTS else tokenizer


def test_there_are_templates_to_test():
    assert len(TEMPLATES) > 60 and len(small.TOKENIZERS) >= 9


UNREADABLE = ("wordpiece", "normalizing", "tier_tokens")  # an answer's text is not its ids: such judges can only score
FEW = ("gpt2_like", "llama2", "unigram", "wordpiece")  # one of each kind; the others take ten seconds each as well


@pytest.mark.parametrize("kind", [*FEW, *(pytest.param(k, marks=pytest.mark.slow) for k in small.TOKENIZERS if k not in FEW)])
def test_ids_trained_are_ids_scored_and_ids_of_the_templates_conversation(kind):
    """Independent of the check under test: compares with the tokenizer on the text of apply_chat_template."""
    for name in sorted(TEMPLATES):
        processor = with_template(name, kind)
        tokenizer = getattr(processor, "tokenizer", processor)
        tokens, end = verdict_tokens(processor, RUBRIC), turn_end(processor)
        for order in ORDERS[1:2] if name.endswith("_training") else ORDERS:
            fmt = PromptFormat(order=order, detail="name", photo=False, max_prompt_tokens=100_000)
            check_conversation(processor, RUBRIC, fmt, written=kind not in UNREADABLE)
            pair = Pair(pair_id="p", query="red dress", title="Red cotton dress", label="L3", rationale="colour: red | red")
            row = sft_row(pair, RUBRIC, fmt, processor)
            messages = render(pair, RUBRIC, fmt, tokenizer=processor)
            answer = render_answer(Judgement("L3", rationale=pair.rationale), RUBRIC, fmt, tokenizer=tokenizer)
            theirs = text_ids(processor, own_conversation(processor, messages, answer))
            trained = row["input_ids"]
            last = len(text_ids(processor, end)) if end not in own_conversation(processor, messages, answer) else 0
            assert not last or name.startswith("glm4moe") or end == tokenizer.eos_token, name  # the template writes no end
            assert theirs[: len(trained) - last] == trained[: len(trained) - last], (name, order)
            prompt = text_ids(processor, prompt_text(processor, messages)[0])
            assert trained[: len(prompt)] == prompt and row["labels"].count(-100) == len(prompt), (name, order)
            if order != "reason_first":
                read = text_ids(processor, prompt_text(processor, at_verdict(messages, tokens.prefix_text))[0])
                assert trained[: len(read)] == read and trained[len(read)] == tokens.tier_ids[2], (name, order)
            assert trained[-1] in stop_ids(processor, set())


@pytest.mark.parametrize(("kind", "first"), [("llama2", "▁<verdict>L"), ("inst", "▁")])
def test_a_word_mark_belongs_to_the_answer_where_the_template_ends_with_a_space(kind, first):
    """With Llama 2's template and tokenizer `[/INST] <verdict>` is `[/INST]`, `▁<`...: no token ends at the space."""
    tokenizer = copy.deepcopy(small.TOKENIZERS[kind]())
    assert answer_glue(tokenizer) == " "
    prompt = template_text(tokenizer, MESSAGES)
    assert prompt.endswith("[/INST]")
    whole = tokenizer(own_conversation(tokenizer, MESSAGES, "<verdict>L3</verdict>"), add_special_tokens=False)["input_ids"]
    ids, length = conversation_ids(tokenizer, prompt, "<verdict>L3</verdict>" + turn_end(tokenizer))
    assert ids == whole
    assert tokenizer.convert_ids_to_tokens(ids)[length] == first
    apart = tokenizer("<verdict>L3</verdict>", add_special_tokens=False)["input_ids"]
    print(f"{kind}: behind a prompt {tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, '<verdict>L3'))}, apart", end=" ")
    print(tokenizer.convert_ids_to_tokens(apart))


@pytest.mark.parametrize(
    ("name", "prompt_end", "end"),
    [
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>", "<|return|>"),
        ("muse_glimmer", "<|start|>assistant to=user<|message|>", "<|eot|>"),
        ("deepseek_r1_distill", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        ("glm4moe", "<|assistant|>\n<think></think>\n", "<|endoftext|>"),
        ("qwen3_5_think", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ("gemma3", "<start_of_turn>model\n", "<end_of_turn>"),
        ("llama3_2", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("phi3", "<|assistant|>\n", "<|end|>"),
        ("idefics3", "Assistant:", "<end_of_utterance>"),
    ],
)
def test_the_header_before_an_answer_is_the_one_of_a_finished_conversation(name, prompt_end, end):
    processor = with_template(name)
    assert template_text(processor, MESSAGES).endswith(prompt_end)
    assert turn_end(processor) == end


@pytest.mark.parametrize("name", ["gemma3", "gemma"])
def test_a_turn_ends_with_the_templates_token_even_if_it_is_not_special(name):
    tokenizer = with_template(name, special=False)
    assert "<end_of_turn>" not in tokenizer.all_special_tokens
    assert turn_end(tokenizer) == "<end_of_turn>"
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in stop_ids(tokenizer, set())


def test_an_answer_with_the_templates_own_token_is_no_preference():
    from lore.train.preference.rows import Preference, Renderer

    tokenizer = with_template("gemma3", special=False)
    renderer = Renderer(RUBRIC, PromptFormat(detail="name"), tokenizer, 2048)
    pair = Pair(pair_id="p", query="red dress", title="Red dress", label="L3")
    bad = "<verdict>L3</verdict><end_of_turn>"
    with pytest.raises(LoreError, match="contains the control token '<end_of_turn>'"):
        renderer.row(pair, Preference("p", {"chosen": bad, "rejected": "<verdict>L1</verdict>"}, "table", None))


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking", "enable_reasoning"])
def test_reasoning_is_switched_off_whatever_the_switch_is_called(switch):
    tokenizer = copy.deepcopy(small.gpt2_like())
    tokenizer.chat_template = small.CHATML.replace(
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n{% if " + switch + " is not defined or " + switch + " %}<think>\n{% endif %}",
    ).replace(
        "<|im_start|>{{ message['role'] }}\n",
        "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' and (" + switch + " is not defined or "
        + switch + ") %}<think>{% endif %}",
    )
    assert "<think>" in tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert "<think>" not in template_text(tokenizer, MESSAGES)
    assert server_options(tokenizer) == {switch: False}
    assert server_options(None)["thinking"] is False


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "in parts"])
def test_a_template_writes_the_same_date_every_day(name, monkeypatch):
    import transformers.utils.chat_template_utils as templates

    if name == "in parts":  # of a processor
        tokenizer = copy.deepcopy(small.gpt2_like())
        tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + small.CHATML
        processor = Processor(tokenizer)
    else:
        processor = with_template(name)
    today = template_text(processor, MESSAGES)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 2, 3, tzinfo=tz)

    monkeypatch.setattr(templates, "datetime", Later)
    plain = getattr(processor, "tokenizer", processor).apply_chat_template(MESSAGES, tokenize=False)
    assert "2031" in plain  # the template does write the date
    assert template_text(processor, MESSAGES) == today and "2024" in today


def test_a_server_that_writes_another_prompt_is_refused_before_the_run(tmp_path):
    check_server_template(with_template("llama3_2"), begun=False)  # it takes the date as an option
    check_server_template(with_template("qwen3"), begun=False)
    check_server_template(with_template("idefics3"), begun=False)
    for name in ("gptoss", "deepseek_r1_distill", "glm4moe"):
        with pytest.raises(LoreError, match="A server that applies this chat template writes"):
            check_server_template(with_template(name), begun=False)
    check_server_template(with_template("deepseek_r1_distill"), begun=True)
    check_server_template(with_template("glm4moe"), begun=True)
    with pytest.raises(LoreError, match="today's date"):
        check_server_template(with_template("gptoss"), begun=True)


def test_the_endpoint_refuses_before_it_sends_anything(tmp_path):
    from transformers import LlamaConfig

    from lore.engines.http.endpoint import EndpointEngine

    tokenizer = with_template("gptoss")
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    section = EndpointSection(url="http://127.0.0.1:9/v1", model="judge", tokenizer=str(tmp_path), max_down_seconds=0.1)
    engine = EndpointEngine(section, RUBRIC)
    with pytest.raises(LoreError, match="A server that applies this chat template writes"):
        engine.generate([MESSAGES], Sampling())
    with pytest.raises(LoreError, match="A server that applies this chat template writes"):
        engine.score([MESSAGES])


def test_a_server_that_refuses_the_templates_options_is_not_asked_without_them(tmp_path):
    from openai_server import error, reply, serve
    from transformers import LlamaConfig

    from lore.engines.engine import EndpointStopped
    from lore.engines.http.endpoint import EndpointEngine

    tokenizer = with_template("llama3_2")
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)

    def answer(request):
        if "chat_template_kwargs" in request.body:
            return error(400, "Unrecognized request argument supplied: chat_template_kwargs")
        return reply("<verdict>L3</verdict>")

    with serve(answer) as server:
        engine = EndpointEngine(EndpointSection(url=server.url, model="m", tokenizer=str(tmp_path)), RUBRIC)
        with pytest.raises(EndpointStopped, match="does not take chat_template_kwargs .*Unrecognized request argument"):
            engine.generate([MESSAGES], Sampling())
        # The second request finds out whether it is the prompt that the server refuses.
        assert len(server.requests) <= 2 and all("chat_template_kwargs" in request.body for request in server.requests)


@pytest.mark.parametrize("name", ["gptoss", "deepseek_r1_distill", "glm4moe", "gemma", "llama3_2"])
def test_trl_reads_the_prompts_that_the_engines_read(name):
    tokenizer = with_template(name)
    theirs = trainer_processor(tokenizer)
    asked = [MESSAGES, [MESSAGES[0], {"role": "user", "content": "a blue lamp"}]]
    options = {"add_generation_prompt": True}
    ids = theirs.apply_chat_template(conversation=asked, tokenize=True, return_dict=True, **options)["input_ids"]
    assert ids == [text_ids(tokenizer, template_text(tokenizer, messages)) for messages in asked]
    assert theirs.apply_chat_template(MESSAGES, tokenize=False, **options) == template_text(tokenizer, MESSAGES)
    assert type(theirs).__name__ == type(tokenizer).__name__ and theirs.padding_side == "left"


@pytest.mark.parametrize("kind", ["llama2", "inst", "gpt2_like", "wordpiece"])
def test_score_reads_the_logits_at_the_trained_ids(kind):
    """The probabilities of `score` are those behind the row's own ids, for every pair."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = copy.deepcopy(small.TOKENIZERS[kind]())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=1024, initializer_range=0.3,
    )
    engine = TransformersEngine(LlamaForCausalLM(config).eval(), tokenizer, RUBRIC)
    fmt = PromptFormat(order="answer_only", detail="name")
    pairs = [Pair(pair_id=str(i), query=f"red dress {i}", title=f"Dress {i} in red", label="L2") for i in range(12)]
    scores = engine.score([render(pair, RUBRIC, fmt, tokenizer=tokenizer) for pair in pairs])
    for pair, row in zip(pairs, scores, strict=True):
        trained = sft_row(pair, RUBRIC, fmt, tokenizer)["input_ids"]
        place = max(i for i, token in enumerate(trained) if token == engine.verdict.tier_ids[1])
        with torch.inference_mode():
            logits = engine.model(torch.tensor([trained[:place]])).logits[0, -1, list(engine.verdict.tier_ids)]
        assert np.abs(torch.softmax(logits.double(), -1).numpy() - row).max() < 1e-5


def test_a_template_that_rewrites_the_answer_is_refused():
    tokenizer = copy.deepcopy(small.gpt2_like())
    rewritten = "{{ message['content'] | replace('verdict', 'Verdict') }}"
    tokenizer.chat_template = small.CHATML.replace("{{ message['content'] }}", rewritten)
    with pytest.raises(LoreError, match="the chat template's own conversation has other tokens"):
        check_conversation(tokenizer, RUBRIC, PromptFormat(detail="name"), written=True)


MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}<s>{%- for message in rest %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}{{ '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + '</s>' }}{%- endif %}{%- endfor %}"
)


@pytest.mark.parametrize("kind", ["llama2", "inst"])
def test_a_template_that_shows_the_system_text_only_in_an_unanswered_turn_gets_it_in_the_users(kind):
    """As Mistral's instruction-tuned checkpoints have it: a finished conversation would be without the rules."""
    tokenizer = copy.deepcopy(small.TOKENIZERS[kind]())
    tokenizer.chat_template = MISTRAL
    for order in ORDERS:
        check_conversation(tokenizer, RUBRIC, PromptFormat(order=order, detail="name"), written=True)
    assert "Judge." in template_text(tokenizer, MESSAGES)
    assert "Judge." in own_conversation(tokenizer, MESSAGES, "<verdict>L3</verdict>")
    check_server_template(tokenizer, begun=False)
    check_server_template(tokenizer, begun=True)


def edited(old: str, new: str, kind: str = "gpt2_like"):
    tokenizer = copy.deepcopy(small.TOKENIZERS[kind]())
    assert old in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(old, new)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [
        (lambda: small.tier_tokens(), "would be read as .*unknown_tier"),
        (lambda: small.wordpiece(), "would be read as '< reason >.*no_verdict"),
        (lambda: edited("<|im_end|>\n{% endfor %}", "\n</answer><|im_end|>\n{% endfor %}"), "would be read as .*trailing_text"),
        (lambda: edited("<|im_end|>\n{% endfor %}", " [END]\n{% endfor %}"), "ends an answer with ' .END."),
        (
            lambda: edited("<|im_start|>{{ message['role'] }}\n", "<|im_start|>{{ message['role'] }}\n{% if message['role'] == "
                           "'assistant' %}<think>\n{% endif %}"),
            "opens a reasoning block before the answer",
        ),
    ],
)
def test_a_judge_whose_trained_answer_would_not_be_read_is_refused(tokenizer, match):
    with pytest.raises(LoreError, match=match):
        check_conversation(tokenizer(), RUBRIC, PromptFormat(detail="name"), written=True)


def test_the_end_of_a_turn_is_that_of_a_conversation_with_a_system_message():
    by_system = "{% if messages[0]['role'] == 'system' %}<|im_end|>{% else %}<|endoftext|>{% endif %}\n{% endfor %}"
    assert turn_end(edited("<|im_end|>\n{% endfor %}", by_system)) == "<|im_end|>"


def test_switches_that_the_template_sets_itself_are_left_alone():
    own = "{% if messages[0]['role'] == 'x' %}{% set reasoning = 'a' %}{% endif %}"
    own += "{% if reasoning is defined %}{{ reasoning }}{% endif %}"
    tokenizer = edited("{% for message in messages %}", own + "{% for message in messages %}")
    assert "False" not in template_text(tokenizer, MESSAGES)
    default = "{% if not thinking is defined %}{% set thinking = true %}{% endif %}{% if thinking %}THINK{% endif %}"
    tokenizer = edited("{% for message in messages %}", default + "{% for message in messages %}")
    assert "THINK" not in template_text(tokenizer, MESSAGES)


def test_a_checkpoint_with_several_templates_takes_its_default(tmp_path):
    from transformers import LlamaConfig

    from lore.engines.config import ModelSection
    from lore.engines.loading import load_processor

    tokenizer = copy.deepcopy(small.gpt2_like())
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.chat_template = {"default": small.CHATML, "tool_use": "{{ 'a\n' }}" + small.CHATML}
    tokenizer.save_pretrained(tmp_path)
    assert load_processor(ModelSection(name=str(tmp_path)), chat=True).chat_template == small.CHATML


@pytest.mark.parametrize("template", ["idefics3", None])
def test_rows_with_photos_have_the_ids_of_the_whole_conversation(template, tmp_path_factory):
    """SFT, DPO and KTO collate prompt and answer apart; Idefics3's `Assistant:` and ` <` share their space with the answer."""
    from PIL import Image
    from tiny import make
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
    from trl.trainer.kto_trainer import DataCollatorForVisionUnpairedPreference

    from lore.engines.config import ModelSection
    from lore.engines.loading import load_processor
    from lore.train.judge.collator import AnswerProcessor, PhotoCollator

    processor = load_processor(ModelSection(name=str(make(tmp_path_factory.mktemp("photos")).vision)))
    if template:
        tokenizer = copy.deepcopy(small.gpt2_like())  # joins a space with what follows
        marks = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<|begin_of_text|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": marks})
        processor = type(processor)(processor.image_processor, tokenizer, image_seq_len=processor.image_seq_len)
        processor.chat_template = TEMPLATES[template]
        assert answer_glue(processor) == " "
    red = Image.new("RGB", (56, 56), "red")
    fmt = PromptFormat(order="answer_only", detail="name")
    rows = []
    for number, image in enumerate((red, None, red)):
        pair = Pair(pair_id=str(number), query=f"dress {number}", title="Red dress " * (number + 1), label="L2", image=image)
        messages = render(pair, RUBRIC, fmt, tokenizer=processor, image=image)
        prompt, images = prompt_text(processor, messages)
        rows.append({"prompt": prompt, "images": images, "answer": "<verdict>L2</verdict>" + turn_end(processor)})
    glue = answer_glue(processor)
    whole = [
        processor(text=[row["prompt"] + glue + row["answer"]], images=[row["images"]] if row["images"] else None,
                  add_special_tokens=False)["input_ids"][0]
        for row in rows
    ]
    seen = AnswerProcessor(processor)
    sft = PhotoCollator(processor)
    sft.open_photo = lambda image: image
    batch = sft([{"prompt": row["prompt"], "completion": row["answer"], "images": row["images"]} for row in rows])
    dpo = DataCollatorForVisionPreference(seen)(
        [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "no", "images": row["images"]} for row in rows]
    )
    kto = DataCollatorForVisionUnpairedPreference(seen)(
        [{"prompt": row["prompt"], "completion": row["answer"], "images": row["images"], "label": True} for row in rows]
    )
    for found in (batch, dpo, kto):
        ids = [row[mask.bool()].tolist() for row, mask in zip(found["input_ids"], found["attention_mask"], strict=True)]
        assert ids[:3] == [list(row) for row in whole]
    answered = [row[row != -100].tolist() for row in batch["labels"]]
    assert answered == [answer_ids(processor, row["answer"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama2", "inst"])
def test_a_judge_that_has_learned_answers_as_it_was_trained(kind):
    """A small judge learns which garment a title names. Its verdicts at the trained ids and those of `score` are the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, fmt = copy.deepcopy(small.TOKENIZERS[kind]()), PromptFormat(order="answer_only", detail="name")
    garments, rng = ("dress", "lamp", "sofa", "shoe"), np.random.default_rng(0)

    def pairs(count: int) -> list[Pair]:
        picks = [(int(rng.integers(4)), int(rng.integers(1000))) for _ in range(count)]
        return [
            Pair(pair_id=str(n), query=f"thing {n}", title=f"{garments[g]} {n}", label=RUBRIC.tier_ids[g]) for g, n in picks
        ]

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        rows = [sft_row(pair, RUBRIC, fmt, tokenizer) for pair in pairs(16)]
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (width - row["length"]) for row in rows])
        labels = torch.tensor([row["labels"] + [-100] * (width - row["length"]) for row in rows])
        mask = torch.tensor([[1] * row["length"] + [0] * (width - row["length"]) for row in rows])
        model(input_ids=ids, labels=labels, attention_mask=mask).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    engine, held = TransformersEngine(model.eval(), tokenizer, RUBRIC), pairs(200)
    scored = engine.score([render(pair, RUBRIC, fmt, tokenizer=tokenizer) for pair in held]).argmax(axis=1)
    at_rows = []
    for pair in held:
        trained = sft_row(pair, RUBRIC, fmt, tokenizer)["input_ids"]
        place = max(i for i, token in enumerate(trained) if token in engine.verdict.tier_ids)
        with torch.inference_mode():
            at_rows.append(int(model(torch.tensor([trained[:place]])).logits[0, -1, list(engine.verdict.tier_ids)].argmax()))
    truth = np.array([RUBRIC.tier_ids.index(pair.label) for pair in held])
    accuracy, differ = (truth == scored).mean(), (np.array(at_rows) != scored).sum()
    written = engine.generate([render(pair, RUBRIC, fmt, tokenizer=tokenizer) for pair in held[:20]], Sampling(max_tokens=16))
    read = [completion[0].text.strip() for completion in written]
    print(f"{kind}: Acc@4 {accuracy:.3f} by score and {(truth == at_rows).mean():.3f} at the trained ids, {differ} of 200 differ")
    assert differ == 0 and accuracy > 0.9
    assert read == [f"<verdict>{RUBRIC.tier_ids[tier]}</verdict>" for tier in scored[:20]]
