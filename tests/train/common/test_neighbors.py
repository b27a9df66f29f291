"""In training, too, a row's log-probabilities do not depend on the rows beside it; where TRL's batches allow no mending, the run
stops before step 0."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lore.config.stages import load_recipe
from lore.engines.chat import prompt_tokens
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.common.neighbors import check_lengths
from lore.train.rl.grpo import prepare

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 1024}
LLAMA = SIZE | {"max_position_embeddings": 1024}
GRIFFIN = SIZE | {"num_key_value_heads": 1, "block_types": ["recurrent", "attention"]}


def phi3(limit: int) -> dict:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
    rope["original_max_position_embeddings"] = limit
    return SIZE | {"max_position_embeddings": 1024, "original_max_position_embeddings": limit, "rope_parameters": rope}


@pytest.fixture
def recipe_of(tiny, runs, tmp_path):
    """recipe_of("gpt2", options, stage="grpo") -> the file of a recipe that starts from a random model of this kind."""

    def write(kind: str, options: dict, stage: str = "grpo", run: str = "", **sections):
        folder = tmp_path / kind
        tokenizer = AutoTokenizer.from_pretrained(tiny.text)
        ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **options | ids | {"bos_token_id": None, "initializer_range": 0.2})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        body = json.loads(tiny.recipe(run or kind, **sections) if stage == "sft" else tiny.align(kind, folder, **sections))
        body["model"] = {"name": str(folder)}
        path = tmp_path / f"{kind}-{stage}.yaml"
        path.write_text(json.dumps(body))
        return path

    return write


def trainer_of(path):
    recipe = load_recipe(path)
    folder = RunFolder.of(recipe)
    folder.open(recipe)
    return prepare(recipe, folder)[1]


@pytest.mark.parametrize(("kind", "options"), [("gpt2", GPT2), ("phi3", phi3(900)), ("llama", LLAMA)])
def test_log_probabilities_of_grpo_do_not_depend_on_the_rows_beside(recipe_of, kind, options):
    trainer = trainer_of(recipe_of(kind, options, grpo={"kl": 0.1}))
    rng, pad = np.random.default_rng(0), trainer.prompts.tokenizer.pad_token_id
    rows = [torch.tensor(rng.integers(5, 300, size)) for size in (12, 40, 90)]
    answer, width = 8, max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((width - len(row),), pad), row]) for row in rows])
    mask = torch.stack([torch.cat([torch.zeros(width - len(row)), torch.ones(len(row))]).long() for row in rows])
    assert trainer.ref_model is not None  # TRL has loaded it by itself
    for model in (trainer.model.eval(), trainer.ref_model.eval()):
        with torch.no_grad():
            beside = trainer.token_logps(model, ids, mask, answer)
            alone = [trainer.token_logps(model, row[None], torch.ones(1, len(row)).long(), answer)[0] for row in rows]
        moved = (beside - torch.stack(alone)).abs().max().item()
        print(f"{kind}: largest difference {moved:.1e}")
        assert moved < 1e-5


def test_prompts_on_both_sides_of_a_threshold_stop_grpo_before_its_first_step(recipe_of):
    trainer = trainer_of(recipe_of("llama", LLAMA))
    prompts = trainer.prompts
    lengths = [prompt_tokens(prompts.processor, prompts.messages(row)) for row in range(len(prompts))]
    with pytest.raises(LoreError, match=rf"longrope.*{min(lengths) + 1:,} to {max(lengths) + 48:,} tokens"):
        trainer_of(recipe_of("phi3", phi3(max(lengths))))


def test_a_model_that_reads_padding_is_not_aligned_with_left_padded_prompts(recipe_of):
    with pytest.raises(LoreError, match="Padding changes what .*recurrent_gemma computes"):
        run_recipe(recipe_of("recurrent_gemma", GRIFFIN))


def test_rows_on_both_sides_of_a_threshold_are_trained_alone_or_not_at_all(recipe_of):
    options = {"steps": 1, "save_every": 0, "batch_size": 2}  # rows of 71 to 144 tokens
    with pytest.raises(LoreError, match=r"longrope.*beside it(?s:.*)within 100 tokens"):
        run_recipe(recipe_of("phi3", phi3(100), "sft", **options))
    run_recipe(recipe_of("phi3", phi3(100), "sft", **options, micro_batch_size=1, run="alone"))


def test_lengths_that_no_batch_mixes_are_fine():
    config = AutoConfig.for_model("phi3", **phi3(200))
    check_lengths(config, [100, 200])
    check_lengths(config, [201, 900])
    check_lengths(config, [100, 900], alone=True)
    dynamic = AutoConfig.for_model(
        "llama", max_position_embeddings=200, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    check_lengths(dynamic, [250, 250])
    with pytest.raises(LoreError, match="dynamic rope"):
        check_lengths(dynamic, [250, 251])
    check_lengths(AutoConfig.for_model("gpt2"), [1, 900])
