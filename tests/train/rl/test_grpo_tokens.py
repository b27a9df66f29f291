"""What TRL is told about the tokens of a rollout: which belong to a photo, and which end an answer."""

import shutil

import pytest
import torch
from test_grpo import asked, ready
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor, GenerationConfig
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from lore.engines.config import ModelSection
from lore.engines.loading import load_processor


@pytest.fixture(scope="module")
def gemma(tiny, tmp_path_factory):
    """A Gemma 3 with random weights, whose model is told which tokens are a photo's."""
    folder = tmp_path_factory.mktemp("gemma")
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = AutoTokenizer.from_pretrained(tiny.text, extra_special_tokens=names)
    tokenizer.padding_side = "right"
    template = tokenizer.chat_template.replace("<image>", "<start_of_image>")
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4).save_pretrained(folder)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = {"hidden_size": 16, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
    config = Gemma3Config(
        text_config=text | heads | ends | {"max_position_embeddings": 1024},
        vision_config=vision | heads,
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def trainer_of(tiny, tmp_path, judge, run="tokens", **sections):
    path = tmp_path / f"{run}.yaml"
    path.write_text(tiny.align(run, judge, **sections))
    return ready(path)


def test_photo_tokens_are_marked_where_they_are_in_padded_prompts(tiny, gemma, runs, tmp_path):
    setup, trainer = trainer_of(tiny, tmp_path, gemma, prompt={"detail": "name"}, rollout={"max_tokens": 8})
    shown = [row for row in range(len(setup.prompts)) if setup.prompts.pairs[row].image is not None]
    lengths = {len(trainer._tokenize_prompts([setup.prompts.messages(row)])[0][0]): row for row in shown}
    setup.order[0] = [lengths[size] for size in sorted(lengths)[:: max(1, len(lengths) // 3)][:4]]
    batch = trainer._generate_and_score_completions(asked(setup))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    assert (batch["prompt_mask"] == 0).any()  # some are padded
    marked = batch["token_type_ids"] == 1
    in_prompt = ids == load_processor(ModelSection(name=str(gemma))).tokenizer.image_token_id
    in_prompt[:, batch["prompt_ids"].shape[1] :] = False  # an untrained judge may write one
    assert in_prompt.any() and torch.equal(marked, in_prompt)


def test_an_answer_ends_where_the_template_ends_a_turn(tiny, runs, tmp_path):
    """Checkpoints that were tuned from a base model often know another end than their template's."""
    judge = shutil.copytree(tiny.judge("text"), tmp_path / "judge")
    tokenizer = AutoTokenizer.from_pretrained(judge)
    assert tokenizer.eos_token == "<|im_end|>"
    other = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(judge)
    GenerationConfig(eos_token_id=other, pad_token_id=tokenizer.pad_token_id).save_pretrained(judge)
    texts = []
    for number, start in enumerate((tiny.judge("text"), judge)):
        setup, trainer = trainer_of(tiny, tmp_path, start, run=f"ends{number}")
        torch.manual_seed(0)
        groups = trainer.sample_groups(setup.order[0].tolist())
        texts.append([(answer.text, answer.truncated) for group in groups for answer in group.answers])
    assert texts[0] == texts[1]
    assert not all(truncated for _, truncated in texts[0])
    assert set(trainer.model.generation_config.eos_token_id) == {other, tokenizer.convert_tokens_to_ids("<|im_end|>")}
