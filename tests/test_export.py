"""Writing a trained judge out: merged weights score as the adapter does, or nothing is written."""

import json

import numpy as np
import pytest
from conftest import run_python
from safetensors.numpy import load_file, save_file

from lore.card import read_card
from lore.errors import LoreError
from lore.folder import RunFolder
from lore.judgement import PromptFormat
from lore.recipe import ModelSection, load_recipe
from lore.rubric import load_rubric
from lore.run import run_recipe
from lore.train.export import SAMPLE_PAIRS, compare, export, sample_pairs, score_pairs

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
    assert export(trained.path, out, merge=True) < 1e-3
    return out


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
    weights = load_file(merged / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.1.mlp.down_proj.weight"))
    sound = weights[name].copy()
    weights[name] = sound + 0.5
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    try:
        with pytest.raises(LoreError, match=r"from 0\.\d+ to 0\.\d+; at most 0\.001") as error:
            compare(adapter, whole, RUBRIC, fmt, pairs)
    finally:
        save_file(weights | {name: sound}, merged / "model.safetensors", metadata={"format": "pt"})
    assert "nothing was written" in str(error.value)


def test_a_merge_that_fails_leaves_nothing(trained, tmp_path):
    with pytest.raises(LoreError, match="Merging moved"):
        export(trained.path, tmp_path / "judge", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_only_finished_judges_are_written(trained, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(LoreError, match="not empty"):
        export(trained.path, tmp_path / "full")
    with pytest.raises(LoreError, match="no finished run"):
        export(tmp_path, tmp_path / "out")


def test_the_command_line_copies_without_merge(trained, tmp_path):
    done = run_python("-m", "lore", "export", trained.path, "-o", tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "adapter_config.json").is_file()
    assert json.loads((tmp_path / "copy" / "lore.json").read_text())["base"]
    assert "Traceback" not in done.stderr and "copied" in done.stdout
