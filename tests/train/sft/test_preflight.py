"""What is printed and checked before step 0."""

import datasets
import pytest
from peft import get_peft_model

from lore.codec.prompt import PromptFormat
from lore.config.stages import load_recipe
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.train.common.arrow_rows import IGNORE
from lore.train.judge.rows import sft_row
from lore.train.judge.session import judge_lora, new_lora_parameters, parameter_counts
from lore.train.sft.preflight import collated, masked_text, preflight

RUBRIC = load_rubric("shop")


@pytest.fixture
def text(tiny, runs, tmp_path):
    """(recipe, rows, model, tokenizer) of a run on the tiny text model."""
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("a", model="text", lora={"modules_to_save": ["lm_head"]}))
    recipe = load_recipe(path)
    section = ModelSection(name=str(tiny.text))
    tokenizer = load_processor(section)
    fmt = PromptFormat("reason_first", "name", max_prompt_tokens=300)
    pairs = [*read_pairs(tiny.pairs, split="train", limit=6)]
    pairs.append(Pair(pair_id="long", query="lamp", title="lamp", description="light " * 500, label="L4"))
    rows = datasets.Dataset.from_list([sft_row(pair, RUBRIC, fmt, tokenizer) for pair in pairs])
    assert sum(rows["cut"]) == 1
    model = load_model(section, device="cpu")
    return recipe, rows, get_peft_model(model, judge_lora(recipe, model)), tokenizer


def relabel(rows, change):
    return rows.map(lambda row: {"labels": change(row)})


def test_it_shows_what_will_be_trained(text, capsys):
    recipe, rows, model, tokenizer = text
    preflight(recipe, rows, model, tokenizer, steps=8, sequences=len(rows), memory="about 0.01 GB")
    shown = capsys.readouterr().out
    assert "8 of 8 = 1 processes x 1 accumulation steps x 8 rows" in shown
    assert f"{sum(rows['cut'])} item texts cut to 512 prompt tokens" in shown
    assert "14 modules (model.layers: q_proj x 2, k_proj x 2" in " ".join(shown.split())
    assert "memory per process" in shown and "about 0.01 GB" in shown
    assert "⟦<reason>" in shown and "<|im_end|>⟧" in shown
    assert "<|im_start|>assistant\n⟦" in shown


def test_no_supervised_token_stops_the_run(text):
    recipe, rows, model, tokenizer = text
    none = relabel(rows, lambda row: [IGNORE] * row["length"])
    with pytest.raises(LoreError, match="0% of the tokens carry loss.*nothing"):
        preflight(recipe, none, model, tokenizer, steps=8, sequences=len(rows), memory="about 0.01 GB")


def test_only_supervised_tokens_stop_the_run(text):
    recipe, rows, model, tokenizer = text
    everything = relabel(rows, lambda row: row["input_ids"])
    with pytest.raises(LoreError, match="100% of the tokens carry loss.*to write prompts"):
        preflight(recipe, everything, model, tokenizer, steps=8, sequences=len(rows), memory="about 0.01 GB")


def test_every_supervised_stretch_is_marked(text):
    _, _, _, tokenizer = text
    ids = tokenizer("red lamp blue lamp", add_special_tokens=False)["input_ids"]
    labels = [IGNORE if i % 2 else token for i, token in enumerate(ids)]
    coloured = masked_text(ids, labels, tokenizer)
    assert sum(span.style == "green" for span in coloured.spans) == (len(ids) + 1) // 2
    assert masked_text(ids, labels, tokenizer, color=False).plain.count("⟦") == 1 + (len(ids) + 1) // 2


def test_the_shown_row_of_a_vision_model_is_the_collated_one(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    fmt = PromptFormat("reason_first", "name", max_prompt_tokens=512)
    pairs = [p for p in read_pairs(tiny.pairs, split="train") if p.image][:2]
    rows = datasets.Dataset.from_list([sft_row(pair, RUBRIC, fmt, processor) for pair in pairs])
    ids, labels = next(collated(rows, processor))
    shown = masked_text(ids, labels, processor, color=False).plain
    assert shown.count("<image>") == processor.image_seq_len
    assert len(ids) == rows[0]["length"]


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"modules_to_save": ["lm_head"]},
        {"dora": True},
        {"targets": ["q_proj", "v_proj"]},
        {"rank": 2},
        {"targets": r".*\.mlp\..*_proj|.*q_proj"},
    ],
    ids=["all-linear", "saved", "dora", "named", "rank", "pattern"],
)
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_trained_parameters_are_counted_as_peft_makes_them(tiny, tmp_path, kind, lora):
    path = tmp_path / "sft.yaml"
    path.write_text(tiny.recipe("a", model=kind, lora=lora))
    recipe = load_recipe(path)
    model = load_model(recipe.model, device="cpu", for_training=True)
    expected = new_lora_parameters(model, recipe)
    adapted = get_peft_model(model, judge_lora(recipe, model))
    assert parameter_counts(adapted) == adapted.get_nb_trainable_parameters()
    assert parameter_counts(adapted)[0] == expected
