"""Private and undocumented names of TRL, transformers, peft and accelerate that LORE builds on, and the words that TRL chooses,
against the installed libraries.

A new TRL moves such names without a word. Each function is listed with its parameters, each word with the method that
uses it; the test says in a sentence which one has moved and what of LORE depends on it.
"""

import ast
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import trl
from conftest import ROOT

HOME = "lore/train/common/trl_internals.py"
GRPO = "trl.trainer.grpo_trainer:GRPOTrainer"
LOGPS = (
    "model input_ids attention_mask logits_to_keep batch_size compute_entropy compute_aux_loss pixel_values image_grid_thw "
    "num_images pixel_attention_mask spatial_shapes num_tiles image_sizes token_type_ids mm_token_type_ids image_position_ids"
)


@dataclass(frozen=True)
class Internal:
    """owner: module, or module:class. parameters: of a function or method, without self; none where it is an attribute that the
    class's methods set, or a number of the module. used: the file that builds on it."""

    owner: str
    name: str
    parameters: str | None = None
    used: str = HOME


METHODS = [
    Internal(GRPO, "_generate_and_score_completions", "inputs"),
    Internal(GRPO, "_generate", "prompts"),
    Internal(GRPO, "_tokenize_prompts", "prompts"),
    Internal(GRPO, "_generate_single_turn", "prompt_ids images multimodal_fields num_generations has_tool_images"),
    Internal(GRPO, "_calculate_rewards", "inputs prompts completions completion_ids_list"),
    Internal(GRPO, "_prepare_inputs", "generation_batch"),
    Internal(GRPO, "_get_per_token_logps_and_entropies", LOGPS),
    Internal(GRPO, "_compute_loss", "model inputs"),
    Internal(GRPO, "_save", "output_dir state_dict"),
    Internal(GRPO, "_save_checkpoint", "model trial"),
    Internal(GRPO, "_get_output_dir", "trial"),
    Internal(GRPO, "_load_from_checkpoint", "resume_from_checkpoint model"),
    Internal(GRPO, "_load_optimizer_and_scheduler", "checkpoint"),
    Internal("trl.generation.vllm_generation:VLLMGeneration", "_iter_named_params", ""),
    Internal("trl.generation.vllm_generation:VLLMGeneration", "_fix_param_name_to_vllm", "name extra_prefixes"),
    Internal("trl.trainer.dpo_trainer:DPOTrainer", "_prepare_dataset", "dataset processing_class args dataset_name"),
    Internal("trl.trainer.kto_trainer:KTOTrainer", "_prepare_dataset", "dataset processing_class args dataset_name"),
]
ATTRIBUTES = [
    Internal(GRPO, "_metrics"),
    Internal(GRPO, "_buffered_inputs"),
    Internal(GRPO, "_step"),
    Internal(GRPO, "_is_vlm"),
    Internal("transformers.training_args:TrainingArguments", "_n_gpu", used="lore/train/common/trainer.py"),
]
PUBLIC_BUT_DEEP = [
    Internal("trl.distributed:DistributedBackend", "summon_full_params", "module kwargs"),
    Internal("trl.distributed:DistributedBackend", "gather_params", "params"),
    Internal(
        "trl.models",
        "unwrap_model_for_generation",
        "model accelerator gather_deepspeed3_params generation_kwargs gradient_checkpointing_kwargs",
    ),
    Internal("trl.kernels.chunked_logprob", "TOKEN_CHUNK_SIZE"),
    Internal("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE"),
    Internal("trl.trainer.utils", "split_pixel_values_by_grid", "batch"),
    Internal("trl.trainer.utils", "split_tensor_dict", "tensor_dict num_chunks"),
    Internal("trl.trainer.utils", "unsplit_pixel_values_by_grid", "batch"),
]
PUBLIC_ATTRIBUTES = [
    Internal(GRPO, "eos_token_ids"),
    Internal("trl.generation.vllm_generation:VLLMGeneration", "model"),
    Internal("trl.generation.vllm_generation:VLLMGeneration", "accelerator"),
    Internal("transformers.trainer:Trainer", "current_gradient_accumulation_steps", used="lore/train/rl/grpo.py"),
]
OTHER_LIBRARIES = [
    Internal("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers", "peft_config model", used="lore/train/common/lora.py"),
    Internal("peft.tuners.tuners_utils", "check_target_module_exists", "config key", used="lore/train/common/lora.py"),
    Internal("peft.tuners.tuners_utils", "BaseTunerLayer", ""),
    Internal("accelerate.commands.launch", "launch_command", "args", used="lore/run/launch.py"),
    Internal("accelerate.commands.launch", "launch_command_parser", "subparsers", used="lore/run/launch.py"),
]


@dataclass(frozen=True)
class Word:
    """A string, keyword or attribute in the source of `owner`, which is module:function or module:class.method."""

    owner: str
    text: str
    used: str = HOME


DPO, KTO = "trl.trainer.dpo_trainer:DPOTrainer", "trl.trainer.kto_trainer:KTOTrainer"
SCORE, LOSS = f"{GRPO}._generate_and_score_completions", f"{GRPO}._compute_loss"
CURVES, REPORT = "lore/train/watch/collapse_rules.py", "lore/train/watch/report.py"
WORDS = [
    *(Word(f"{trainer}.__init__", "ref") for trainer in (GRPO, DPO, KTO)),
    Word("trl.trainer.utils:add_fused_lm_head", "fused_lm_head"),
    *(Word("trl.trainer.utils:add_fused_lm_head", key) for key in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits")),
    *(Word("trl.trainer.utils:add_fused_lm_head", key) for key in ("is_top1", "label_mask", "shift_labels")),
    Word("trl.trainer.utils:add_fused_lm_head", "last_hidden_state", "lore/train/common/shared_prefix.py"),
    Word(SCORE, "frac_reward_zero_std"),
    Word(SCORE, "sampling/sampling_logp_difference/mean"),
    *(Word(SCORE, key) for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages")),
    *(Word(SCORE, key) for key in ("old_per_token_logps", "num_images", "num_tiles")),
    *(Word(LOSS, key) for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages")),
    *(Word(LOSS, key) for key in ("old_per_token_logps", "num_images", "num_tiles")),
    Word("transformers.distributed.fsdp:is_fsdp_managed_module", "_is_fsdp_managed_module", "lore/train/watch/policy_engine.py"),
    # Logged values that the evaluation during training shows.
    *(Word(SCORE, key, CURVES) for key in ("reward", "frac_reward_zero_std", "sampling/sampling_logp_difference/mean")),
    *(Word(SCORE, key, REPORT) for key in ("frac_reward_zero_std", "sampling/sampling_logp_difference/mean")),
    *(Word(f"{GRPO}._generate", key, CURVES) for key in ("completions/mean_length", "completions/clipped_ratio")),
    *(Word(LOSS, key, CURVES) for key in ("entropy", "kl")),
    *(Word(f"{one}._compute_loss", f"rewards/{key}", REPORT) for one in (DPO, KTO) for key in ("chosen", "rejected", "margins")),
]
# Words of which a use in LORE is surely TRL's; the others are names of LORE's own columns, too.
SURELY_TRLS = {
    "ref",
    "fused_lm_head",
    "log_probs",
    "log_sum_sq_probs",
    "mean_logits",
    "is_top1",
    "shift_labels",
    "frac_reward_zero_std",
    "sampling/sampling_logp_difference/mean",
    "old_per_token_logps",
    "prompt_mask",
    "completion_mask",
    "tool_mask",
    "advantages",
    "num_images",
    "num_tiles",
    "eos_token_ids",
    "_is_fsdp_managed_module",
}
# Collators that TRL documents under these paths; their fields are those of a public class.
DOCUMENTED = {"trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer"}


def moved(internal: Internal, owner: object = None) -> str | None:
    """A sentence that says how the installed library differs; none where it does not. owner: looked at in place of the named
    one."""
    module, _, name = internal.owner.partition(":")
    library = f"{module.partition('.')[0].replace('trl', 'TRL')} {version(module.partition('.')[0])}"
    shown = f"{name}.{internal.name}" if name else f"{module}.{internal.name}"
    depends = f"{internal.used} builds on it: adapt that file and this table."
    if owner is None:
        owner = importlib.import_module(module)
        owner = getattr(owner, name, None) if name else owner
    if internal.parameters is None:
        there = hasattr(owner, internal.name) if not name else owner and internal.name in set_by(owner)
        return None if there else f"{library} no longer sets {shown}; {depends}"
    expected = internal.parameters.split()
    found = getattr(owner, internal.name, None)
    if not callable(found):
        return f"{library} no longer has {shown}({', '.join(expected)}); {depends}"
    parameters = [name for name in inspect.signature(found).parameters if name != "self"]
    if parameters != expected:
        return f"{library} has {shown}({', '.join(parameters)}) in place of ({', '.join(expected)}); {depends}"
    return None


def set_by(owner: type) -> set[str]:
    """Names that the methods of a class set on self."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"}


INTERNALS = [*METHODS, *ATTRIBUTES, *PUBLIC_BUT_DEEP, *PUBLIC_ATTRIBUTES, *OTHER_LIBRARIES]


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda one: f"{one.owner}.{one.name}")
def test_the_installed_libraries_have_every_internal_name_that_lore_builds_on(internal):
    problem = moved(internal)
    assert problem is None, problem


def words_of(source: str) -> set[str]:
    """Strings, keyword arguments, parameters and attributes of a source text. Docstrings are strings that equal no word."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword | ast.arg) and node.arg:
            found.add(node.arg)
    return found


def lost(word: Word, source: str | None = None) -> str | None:
    """A sentence that says which word is no longer in the library; none where it is. source: looked at in place of the installed
    one."""
    module, _, path = word.owner.partition(":")
    library = module.partition(".")[0]
    if source is None:
        owner = importlib.import_module(module)
        for name in path.split("."):
            owner = getattr(owner, name, None)
        source = inspect.getsource(owner) if owner else ""
    if word.text in words_of(source):
        return None
    shown = f"{library.replace('trl', 'TRL')} {version(library)}"
    return f"{shown} no longer has {word.text!r} in {path}; {word.used} builds on it: adapt that file and this table."


@pytest.mark.parametrize("word", WORDS, ids=lambda one: f"{one.owner}:{one.text}:{one.used}")
def test_the_installed_libraries_have_every_word_that_lore_builds_on(word):
    problem = lost(word)
    assert problem is None, problem
    assert word.text in words_of((ROOT / word.used).read_text(encoding="utf-8"))


def test_a_word_that_has_moved_is_reported_in_a_sentence():
    word = Word(SCORE, "frac_reward_zero_std")
    assert lost(word, 'def f(self):\n    self._metrics["train"]["frac_reward_zero_std"] = 0') is None
    assert lost(word, 'def f(self):\n    self._metrics["train"]["frac_zero_std"] = 0  # frac_reward_zero_std') == (
        f"TRL {trl.__version__} no longer has 'frac_reward_zero_std' in GRPOTrainer._generate_and_score_completions; "
        f"{HOME} builds on it: adapt that file and this table."
    )
    assert lost(Word("trl.trainer.utils:add_fused_lm_head", "log_probs"), "def f(model):\n    return Output(log_probs=1)") is None


def test_one_file_uses_the_words_of_trl_and_the_watch_the_ones_it_shows():
    listed = {(word.used, word.text) for word in WORDS} | {(one.used, one.name) for one in PUBLIC_ATTRIBUTES}
    assert {text for _, text in listed} >= SURELY_TRLS
    for path in (ROOT / "lore").rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        found = words_of(path.read_text(encoding="utf-8")) & SURELY_TRLS
        assert not {text for text in found if (file, text) not in listed}, file


def test_private_names_of_peft_transformers_and_accelerate_are_listed():
    listed = {(one.used, one.owner.partition(":")[0], one.name) for one in OTHER_LIBRARIES}
    found = set()
    for path in (ROOT / "lore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            if module.partition(".")[0] in ("peft", "transformers", "accelerate"):
                private = [alias.name for alias in node.names if module in {one[1] for one in listed} or alias.name.startswith("_")]
                found |= {(path.relative_to(ROOT).as_posix(), module, name) for name in private}
    assert found == listed


def test_a_name_that_has_moved_is_reported_in_a_sentence():
    class Later:
        """A GRPOTrainer of some later TRL."""

        def __init__(self):
            self._step = 0

        def _tokenize_prompts(self, prompts, tools):
            return prompts, tools

    installed = f"TRL {trl.__version__}"
    tokenize, rewards = (next(one for one in METHODS if one.name == name) for name in ("_tokenize_prompts", "_calculate_rewards"))
    assert moved(rewards, Later) == (
        f"{installed} no longer has GRPOTrainer._calculate_rewards(inputs, prompts, completions, completion_ids_list); "
        f"{HOME} builds on it: adapt that file and this table."
    )
    assert f"{installed} has GRPOTrainer._tokenize_prompts(prompts, tools) in place of (prompts); {HOME}" in moved(tokenize, Later)
    step, metrics = (next(one for one in ATTRIBUTES if one.name == name) for name in ("_step", "_metrics"))
    assert moved(step, Later) is None
    assert moved(metrics, Later).startswith(f"{installed} no longer sets GRPOTrainer._metrics; {HOME} builds on it")


def private_names_of_trl() -> set[str]:
    """What TRL's trainers, the one of transformers below them, and TRL's side of vLLM call with one underscore."""
    from transformers import Trainer
    from trl.generation.vllm_generation import VLLMGeneration
    from trl.trainer.base_trainer import _BaseTrainer

    owners = [Trainer, _BaseTrainer, VLLMGeneration, trl.GRPOTrainer, trl.DPOTrainer, trl.KTOTrainer, trl.SFTTrainer]
    names = {name for owner in owners for name in {*vars(owner), *set_by(owner)}}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_uses(path: Path, names: set[str]) -> set[str]:
    """Which of `names` a file defines in a class or reads and sets as attributes; a callback's methods are its own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    methods, own = set(), set()
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        callback = any(isinstance(base, ast.Name) and base.id == "TrainerCallback" for base in node.bases)
        (own if callback else methods).update(one.name for one in node.body if isinstance(one, ast.FunctionDef))
    return ((attributes - own) | methods) & names


def test_one_file_uses_private_names_of_trl_and_all_of_them_are_listed():
    names = private_names_of_trl()
    assert {"_compute_loss", "_prepare_dataset", "_metrics", "_iter_named_params", "_save_checkpoint"} <= names
    used = {path.relative_to(ROOT).as_posix(): private_uses(path, names) for path in (ROOT / "lore" / "train").rglob("*.py")}
    own = used.pop(HOME)
    assert not {file: found for file, found in used.items() if found}
    assert own == {one.name for one in [*METHODS, *ATTRIBUTES] if one.used == HOME}


def test_imports_from_below_trls_top_level_are_listed_or_documented():
    found = set()
    for path in (ROOT / "lore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl.") and node.module not in DOCUMENTED:
                found |= {(path.relative_to(ROOT).as_posix(), node.module, alias.name) for alias in node.names}
    listed = {(HOME, one.owner.partition(":")[0], one.owner.partition(":")[2] or one.name) for one in PUBLIC_BUT_DEEP}
    assert found == listed
