"""Writing a trained judge out: merged weights score as the adapter does, or nothing is written."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_python
from peft.tuners.lora import LoraModel
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from lore.codec.prompt import PromptFormat
from lore.config.stages import load_recipe
from lore.data.parquet import read_pairs
from lore.engines.config import ModelSection
from lore.engines.loading import load_model, load_processor
from lore.judge.card import check_card, check_template, read_card
from lore.judge.trained import trained_judge
from lore.rubric.rubric import load_rubric
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support.errors import LoreError
from lore.train.export import JUDGE_STAGES, SAMPLE_PAIRS, TOLERANCE, compare, export, sample_pairs, score_pairs

RUBRIC = load_rubric("shop")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run folder with an adapter (and a retrained output layer) that has clearly moved."""
    folder = tmp_path_factory.mktemp("export")
    path = folder / "sft.yaml"
    path.write_text(tiny.recipe("judge", lora={"modules_to_save": ["lm_head"]}, steps=12, lr=3e-2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORE_RUNS", str(folder / "runs"))
        return run_recipe(path)


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "judge"
    assert export(trained.path, out, merge=True).written < 1e-3
    return out


ANSWERS = [f"<reason>why</reason>\n<verdict>{tier}</verdict>" for tier in RUBRIC.tier_ids]


def aligned(tiny, trained, stage: str, folder, **model) -> RunFolder:
    """A run of one or two steps that goes on with the adapter of `trained`."""
    pairs = list(read_pairs(tiny.asked))[:16]
    rows = [{"pair_id": pair.pair_id, "chosen": ANSWERS[3], "rejected": ANSWERS[0]} for pair in pairs]
    if stage == "kto":
        rows = [{"pair_id": p.pair_id, "completion": ANSWERS[i % 4], "good": bool(i % 2)} for i, p in enumerate(pairs)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"steps": 1, "batch_size": 8, "lr": 3e-2}
    sections = {"train": train, "rollout": {"group": 4, "max_tokens": 4}, "replay": {"rows": 4, "weight": 1.0}}
    if stage in ("dpo", "kto"):
        sections = {"train": train, "preferences": {"tables": [str(folder / "table.jsonl")]}, "pool": None, "rollout": None}
    recipe = load_recipe(trained.recipe_path)
    model = {"name": recipe.model.name, "adapter": str(trained / "model")} | model
    prompt = recipe.prompt.model_dump()
    (folder / f"{stage}.yaml").write_text(tiny.align(stage, tiny.vision, stage=stage, model=model, prompt=prompt, **sections))
    return run_recipe(folder / f"{stage}.yaml")


@pytest.mark.parametrize(
    "stage", ["grpo", *(pytest.param(stage, marks=pytest.mark.slow) for stage in JUDGE_STAGES if stage not in ("sft", "grpo"))]
)
def test_the_judge_of_every_stage_is_merged_into_the_base_of_its_adapter(stage, tiny, trained, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lore.train.export.SAMPLE_PAIRS", 8)
    run = aligned(tiny, trained, stage, tmp_path)
    out = tmp_path / "judge"
    found = export(run.path, out)
    assert found.merged < 1e-3 and found.written < 1e-3 and found.pairs == 8
    adapter, whole, fmt, pairs = parts(run, out)
    with_adapter = score_pairs(adapter, RUBRIC, fmt, pairs)
    np.testing.assert_allclose(with_adapter, score_pairs(whole, RUBRIC, fmt, pairs), atol=1e-3)
    before = score_pairs(adapter.model_copy(update={"adapter": str(trained / "model")}), RUBRIC, fmt, pairs)
    assert np.abs(with_adapter - before).max() > 0.01  # the stage's adapter, and not the one that it began with
    assert not (out / "adapter_config.json").exists() and read_card(out) == read_card(run / "model")
    assert trained_judge(out).fmt == trained_judge(run.path).fmt
    export(run.path, tmp_path / "copy", merge=False)
    assert (tmp_path / "copy" / "adapter_model.safetensors").read_bytes() == (
        run / "model" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_new_adapter_on_an_exported_judge_is_merged_into_that_judge(tiny, trained, merged, runs, tmp_path):
    run = aligned(tiny, trained, "dpo", tmp_path, name=str(merged), adapter=None, lora={"rank": 4})
    assert export(run.path, tmp_path / "judge").written < 1e-3
    assert read_card(tmp_path / "judge")["base"] == str(merged)
    with pytest.raises(LoreError, match="an input of this command"):
        export(run.path, merged, force=True)


def test_a_run_without_a_judge_is_refused_with_the_stages_that_have_one(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("stage: sft", "stage: pretrain"))
    with pytest.raises(LoreError, match="stage pretrain, which trains no judge(?s:.*)sft, grpo, ppo, dpo, kto"):
        export(tmp_path / "run", tmp_path / "judge")
    recipe.write_text(recipe.read_text().replace("stage: pretrain", "stage: distill"))
    with pytest.raises(LoreError, match=f"Export its student: lore export student {tmp_path / 'run'}"):
        export(tmp_path / "run", tmp_path / "judge")


def parts(trained, merged):
    recipe = load_recipe(trained.recipe_path)
    adapter = recipe.model.model_copy(update={"adapter": str(trained / "model"), "lora": None})
    fmt = PromptFormat(**recipe.prompt.model_dump())
    return adapter, ModelSection(name=str(merged)), fmt, sample_pairs(recipe, RunFolder(trained.path))


def test_the_merged_judge_gives_the_adapters_tier_probabilities(trained, merged):
    adapter, whole, fmt, pairs = parts(trained, merged)
    assert len(pairs) == SAMPLE_PAIRS
    assert sum(pair.image is not None for pair in pairs) >= SAMPLE_PAIRS // 2
    with_adapter = score_pairs(adapter, RUBRIC, fmt, pairs)
    np.testing.assert_allclose(with_adapter, score_pairs(whole, RUBRIC, fmt, pairs), atol=1e-3)
    base = score_pairs(ModelSection(name=adapter.name), RUBRIC, fmt, pairs)
    assert np.abs(with_adapter - base).max() > 0.05  # the comparison would mean nothing for an adapter that does nothing


def test_the_folder_is_whole(merged):
    names = {path.name for path in merged.iterdir()}
    assert {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "lore.json"} <= names
    assert "adapter_config.json" not in names
    assert read_card(merged)["rubric"] == "shop"
    assert not [path for path in merged.parent.iterdir() if path.name.startswith(".")]


def test_a_corrupted_weight_is_found_and_both_numbers_are_named(trained, merged, tmp_path):
    adapter, whole, fmt, pairs = parts(trained, merged)
    before = score_pairs(adapter, RUBRIC, fmt, pairs)
    weights = load_file(merged / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.1.mlp.down_proj.weight"))
    sound = weights[name].copy()
    weights[name] = sound + 0.5
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    try:
        with pytest.raises(LoreError, match=r"from 0\.\d+ to 0\.\d+; at most 0\.001") as error:
            compare(before, score_pairs(whole, RUBRIC, fmt, pairs), RUBRIC, pairs, TOLERANCE, "")
    finally:
        save_file(weights | {name: sound}, merged / "model.safetensors", metadata={"format": "pt"})
    assert "nothing was written" in str(error.value)


def test_a_merge_that_went_wrong_is_found_by_the_scores_of_the_adapter_beside_its_base(trained, tmp_path, monkeypatch):
    merge = LoraModel.merge_and_unload

    def wrong(self, *arguments, **options):
        model = merge(self, *arguments, **options)
        next(p for name, p in model.named_parameters() if name.endswith("layers.1.mlp.down_proj.weight")).data += 0.5
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(LoreError, match="Merging moved"):
        export(trained.path, tmp_path / "judge")


def test_a_merge_that_fails_leaves_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("lore.train.export.TOLERANCE", -1.0)
    with pytest.raises(LoreError, match="Merging moved"):
        export(trained.path, tmp_path / "judge")
    assert list(tmp_path.iterdir()) == []


def test_a_judge_on_a_bfloat16_base_is_merged_in_float32_and_its_rounding_is_told_apart(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LORE_RUNS", str(tmp_path / "runs"))
    base = tmp_path / "base"
    model = load_model(ModelSection(name=str(tiny.text)), device="cpu")
    model.to(torch.bfloat16).save_pretrained(base)
    load_processor(ModelSection(name=str(tiny.text))).save_pretrained(base)
    body = json.loads(tiny.recipe("half", model="text", lora={}, lr=3e-2))
    body["model"] |= {"name": str(base), "dtype": "bfloat16"}
    (tmp_path / "half.yaml").write_text(json.dumps(body))
    run = run_recipe(tmp_path / "half.yaml").path
    found = export(run, tmp_path / "judge")
    assert found.merged < 1e-3 and found.dtype == "bfloat16" and found.written > found.merged
    assert "as written in bfloat16" in capsys.readouterr().out
    assert load_tensors(tmp_path / "judge" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    with pytest.raises(LoreError, match="writing it in bfloat16 moves this much"):
        export(run, tmp_path / "strict", tolerance=found.written / 2)
    assert not (tmp_path / "strict").exists()
    whole = export(run, tmp_path / "whole", dtype="float32")
    assert whole.written < 1e-3 and whole.dtype == "float32"


def test_an_adapter_on_a_retrained_base_or_another_template_is_refused(trained, tiny, tmp_path):
    model = load_recipe(trained.recipe_path).model.model_copy(update={"adapter": str(trained / "model"), "lora": None})
    card, processor = read_card(trained / "model"), load_processor(model)
    check_card(model, card["renderer_hash"], "judge")
    check_template(model, processor, "judge")
    base = tmp_path / "base"
    shutil.copytree(model.name, base)
    check_card(model.model_copy(update={"name": str(base)}), card["renderer_hash"], "judge")
    weights = load_file(base / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoreError, match="was trained on base weights"):
        check_card(model.model_copy(update={"name": str(base)}), card["renderer_hash"], "judge")
    processor.chat_template = "{# another #}" + processor.chat_template
    with pytest.raises(LoreError, match="was trained with chat template"):
        check_template(model, processor, "judge")


def test_nothing_is_overwritten_and_only_finished_judges_are_written(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(LoreError, match="not empty"):
        export(trained.path, tmp_path / "full")
    with pytest.raises(LoreError, match="is not a finished run"):
        export(tmp_path, tmp_path / "out")


def test_the_command_line_copies_without_merge(trained, tmp_path):
    done = run_python("-m", "lore", "export", trained.path, "-o", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "adapter_config.json").is_file()
    assert json.loads((tmp_path / "copy" / "lore.json").read_text())["base"]
    assert "Traceback" not in done.stderr and "copied" in done.stdout


def test_force_replaces_an_earlier_export_and_nothing_else(trained, tmp_path):
    out, link = tmp_path / "judge", tmp_path / "link"
    link.symlink_to("judge")
    export(trained.path, link, merge=False)
    assert link.is_symlink() and (out / "lore.json").is_file()
    with pytest.raises(LoreError, match="pass --force"):
        export(trained.path, out, merge=False)
    (out / "note").touch()
    export(trained.path, out, merge=False, force=True)
    assert not (out / "note").exists() and (out / "lore.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "lore.json").touch()
    (tmp_path / "mine" / "inner").mkdir()
    for place, said in (
        (tmp_path / "mine", "no earlier export"),
        (tmp_path, "no earlier export"),
        (trained.path, "lies in"),
        (trained.path / "model", "lies in"),
        (trained.path / "judge", "lies in"),
        (trained.path.parent, "holds"),
        (tmp_path / "mine" / "lore.json", "is a file"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(LoreError, match=said):
            export(trained.path, place, merge=False, force=True)
        assert sorted(tmp_path.rglob("*")) == before
