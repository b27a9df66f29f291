"""Names of transformers, TRL, PEFT, vLLM and other trainers are answered with the keys of a recipe."""

import ast
import importlib.util
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from lore.config.library_names import counterpart, names
from lore.config.stages import STAGES, load_recipe, recipe_class
from lore.config.validation import _paths, _unknown_key
from lore.config.yaml_text import RecipeError
from lore.run.runner import run_command

CLASSES = {
    "transformers": ["TrainingArguments"],
    "trl": ["_BaseConfig", "SFTConfig", "DPOConfig", "KTOConfig", "GRPOConfig", "ModelConfig"],
    "peft": ["LoraConfig", "PeftConfigMixin", "PeftConfig"],
    "vllm": ["EngineArgs"],
}


def paths(stage: str) -> tuple[str, ...]:
    return _paths(recipe_class(stage))


def stages():
    return {stage: recipe_class(stage) for stage in STAGES}


@cache
def fields(package: str) -> set[str]:
    """Fields of the configs of an installed library, read from its source: importing vLLM takes longer than this file."""
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    files = {
        "transformers": [folder / "training_args.py"],
        "trl": [*folder.glob("trainer/*_config.py"), folder / "scripts" / "utils.py"],
        "peft": [folder / "config.py", folder / "tuners" / "lora" / "config.py"],
        "vllm": [folder / "engine" / "arg_utils.py"],
    }[package]
    wanted = [*CLASSES[package], *["ScriptArguments"] * (package == "trl")]
    classes = [node for file in files for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    own = [node for one in classes if one.name in wanted for node in one.body if isinstance(node, ast.AnnAssign)]
    return {node.target.id for node in own if "ClassVar" not in ast.unparse(node.annotation)}


def answer(stage: str, name: str, *at: str) -> tuple[str, str]:
    return _unknown_key((*at, name), None, recipe_class(stage), stages)


def test_every_key_of_the_table_is_one_of_some_stage():
    known = {path for stage in STAGES for path in paths(stage)}
    unknown = {key for told in names().values() for key in told.keys if not told.among(known)}
    unknown |= {
        key for told in names().values() for key in told.keys if key not in known and not any(p.endswith(f".{key}") for p in known)
    }
    assert not unknown


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_answered_with_keys_that_it_has(stage):
    for name, told in names().items():
        expected, nearest = answer(stage, name.replace("*", "x"))
        assert expected, name
        if nearest and told.keys:
            assert set(nearest.split(" or ")) <= set(paths(stage)), name
        elif told.keys and "*" not in name:
            assert "a key of this stage" in expected and not told.among(paths(stage)), name


def test_every_name_is_one_of_the_installed_libraries():
    table = yaml.safe_load((ROOT / "lore" / "config" / "library_names.yaml").read_text())["libraries"]
    installed = [package for package in CLASSES if importlib.util.find_spec(package)]
    known = set().union(*map(fields, installed))
    if "vllm" in installed:
        assert not [name for name in table if not any(fnmatchcase(field, name) for field in known)]


@pytest.mark.parametrize("package", ["transformers", "trl", "peft"])
def test_every_setting_of_the_training_libraries_is_answered(package):
    own = {path.rpartition(".")[2] for stage in STAGES for path in paths(stage)}
    assert len(fields(package)) > 40
    assert not [name for name in fields(package) if name not in own and counterpart(name) is None]


@pytest.mark.parametrize(
    ("recipe", "key", "nearest", "said"),
    [
        ("sft", "learning_rate", "train.lr", "learning_rate is called train.lr here"),
        ("sft", "model.learning_rate", "train.lr", "train.lr"),
        ("sft", "train.per-device-train-batch-size", "train.micro_batch_size", "global batch"),
        ("sft", "gradient_accumulation_steps", "train.batch_size or train.micro_batch_size", "batch_size / (processes"),
        ("sft", "model.lora.lora_r", "model.lora.rank", "model.lora.rank"),
        ("sft", "model.lora.r", "model.lora.rank", "model.lora.rank"),
        ("sft", "target_modules", "model.lora.targets", "model.lora.targets"),
        ("sft", "warmup_ratio", "train.warmup", "train.warmup"),
        ("sft", "max_seq_length", "train.max_tokens", "train.max_tokens"),
        ("sft", "weight_decay", "train.weight_decay", "train.weight_decay"),
        ("sft", "load_in_4bit", "model.quantize", "nf4"),
        ("sft", "bf16", "", "accelerate's config"),
        ("sft", "train.deepspeed", "", "--config zero2"),
        ("sft", "ddp_find_unused_parameters", "", "--config ddp"),
        ("sft", "num_generations", "", "rollout.group in grpo, ppo"),
        ("sft", "push_to_hub", "", "Nothing is uploaded"),
        ("grpo", "beta", "grpo.kl", "grpo.kl"),
        ("ppo", "epsilon", "ppo.clip_low", "ppo.clip_low"),
        ("dpo", "train.beta", "beta", "beta"),
        ("grpo", "temperature", "rollout.temperature", "rollout.temperature"),
        ("grpo", "max_completion_length", "rollout.max_tokens", "rollout.max_tokens"),
        ("pool", "gpu_memory_utilization", "vllm.gpu_memory", "vllm.gpu_memory"),
        ("evaluate", "judges.judge.vllm.max_model_len", "judges.judge.vllm.max_model_tokens", "max_model_len is called"),
        ("sft", "train.lr_", "train.lr", "a key of train"),
        ("sft", "modle", "model", "a key of this recipe"),
        ("sft", "rank", "model.lora.rank", "model.lora.rank"),
    ],
)
def test_an_unknown_key_is_answered_by_name(recipe, key, nearest, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe(ROOT / "recipes" / f"{recipe}.yaml", [f"{key}=1"])
    (problem,) = (problem for problem in caught.value.problems if problem.key == key)
    assert problem.nearest == nearest
    assert said in problem.expected and len(problem.expected) < 300


def test_sections_of_other_trainers_files_are_answered_one_by_one(tmp_path):
    recipe = (ROOT / "recipes" / "sft.yaml").read_text()
    nested = "training_arguments: {learning_rate: 1e-4, lora_config: {r: 8, lora_alpha: 16}}\nbase_model: x\nsequence_len: 9\n"
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.replace('# """', nested + '# """'))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    found = {problem.key: problem.nearest for problem in caught.value.problems}
    assert found == {
        "training_arguments": "",
        "training_arguments.learning_rate": "train.lr",
        "training_arguments.lora_config.r": "model.lora.rank",
        "training_arguments.lora_config.lora_alpha": "model.lora.alpha",
        "base_model": "model.name",
        "sequence_len": "train.max_tokens",
    }


def test_options_of_a_librarys_script_are_answered(capsys):
    assert run_command([str(ROOT / "recipes" / "sft.yaml"), "--learning_rate=2e-4"]) == 1
    assert "--learning_rate is written train.lr=2e-4 here." in capsys.readouterr().err
    assert run_command([str(ROOT / "recipes" / "sft.yaml"), "--fsdp", "full"]) == 1
    assert "--config fsdp2" in capsys.readouterr().err
