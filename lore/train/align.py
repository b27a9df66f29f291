"""What grpo and ppo share: from the pool to a trainer that is ready, and from its last step to the judge's folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import set_seed
from trl import GRPOConfig
from trl.models.utils import unwrap_model_for_generation

from lore.card import check_card, check_template, judge_card, write_card
from lore.engines.loading import default_device, load_model, load_processor, resolve_dtype
from lore.engines.transformers_engine import TransformersEngine
from lore.fingerprints import template_fingerprint
from lore.folder import RunFolder, is_main_process, say
from lore.judgement import FormatFailure, PromptFormat, renderer_hash, with_verdict_prefix
from lore.launch import main_process_checks, world_size
from lore.pairs import Pair
from lore.rejected import RejectedWriter
from lore.rubric import Rubric, load_rubric
from lore.template import template_options
from lore.train.align_config import DynamicSection, RolloutRecipe
from lore.train.groups import Group, Tally
from lore.train.loop import RECORDED, Recorder, last_checkpoint, train, training_arguments
from lore.train.lora import freeze_photo_parts, peft_config
from lore.train.prompt_choice import PromptChoice, schedule, window
from lore.train.prompts import Prompts, check_same_prompt, usable
from lore.train.replay import Replay, write_replay
from lore.train.rewards import Answer, Rewards, print_self_test, self_test
from lore.train.rollouts import JudgeRollouts
from lore.train.select import chosen_pairs, describe, read_pool, select
from lore.train.watch import preflight_rollouts
from lore.train.watching import mean_rewards, probe_of, watched

# What metrics.jsonl keeps of a step; no clock among them.
KEPT = (
    *RECORDED,
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards",
    "rollout",
    "dynamic",
    "guided",
    "completions",
    "clip_ratio",
    "kl",
    "sampling",
    "sft_loss",
    "value",
)


@dataclass
class Setup:
    """Everything a stage needs before its trainer is made."""

    recipe: RolloutRecipe
    folder: RunFolder
    rubric: Rubric
    fmt: PromptFormat
    processor: Any
    card: dict[str, Any]
    args: GRPOConfig
    model: Any
    prompts: Prompts
    rewards: Rewards
    choice: PromptChoice
    order: np.ndarray  # rows [rollouts, prompts]
    windows: Callable[[int], np.ndarray]
    replay: Replay | None


def set_up(recipe: RolloutRecipe, folder: RunFolder, **losses: Any) -> Setup:
    """Pool, prompts, rewards and model of a run. losses: what TRL is told of the policy's loss. Raises LoreError when the
    rewards do not pass their own test."""
    set_seed(recipe.seed)
    rubric = load_rubric(recipe.data.rubric)
    fmt = PromptFormat(**recipe.prompt.model_dump())
    renderer = renderer_hash(rubric, fmt)
    check_card(recipe.model, renderer, "model")
    processor = load_processor(recipe.model)
    check_template(recipe.model, processor, "model")
    card = judge_card(recipe, renderer, rubric.hash, template_fingerprint(processor))
    device = default_device()
    bf16 = resolve_dtype(recipe.model.dtype, device) == torch.bfloat16
    args = rollout_arguments(recipe, folder, processor, bf16=bf16, cpu=device == "cpu", **losses)
    if is_main_process():
        folder.note(rubric_hash=rubric.hash, renderer_hash=renderer, template=template_fingerprint(processor))
    with args.main_process_first(local=False, desc="prompts"):
        pairs, rates, samples = pool_pairs(recipe, folder, rubric, fmt, processor)
        if recipe.replay is not None:
            write_replay(recipe, folder, rubric, fmt, processor)
    rewards = Rewards(recipe.rewards, rubric, fmt)
    if is_main_process():
        tokenizer = getattr(processor, "tokenizer", processor)
        print_self_test(self_test(rewards, pairs[:64], tokenizer))
    model = load_model(recipe.model, device=device, for_training=True)
    if not recipe.prompt.photo:
        freeze_photo_parts(model)
    rounds = -(-recipe.train.steps // recipe.rollout.updates)
    asked = recipe.train.batch_size * recipe.rollout.updates // recipe.rollout.group
    curriculum = recipe.pool.order != "random"
    order = schedule(len(pairs), rounds, asked, recipe.seed, curriculum=curriculum)

    def windows(step: int) -> np.ndarray:
        return window(len(pairs), rounds, step // recipe.rollout.updates) if curriculum else np.arange(len(pairs))

    return Setup(
        recipe,
        folder,
        rubric,
        fmt,
        processor,
        card,
        args,
        model,
        Prompts(pairs, rubric, fmt, processor),
        rewards,
        PromptChoice(rates, samples, recipe.rollout.group, recipe.dynamic or DynamicSection()),
        order,
        windows,
        Replay(recipe, folder, fmt, processor) if recipe.replay is not None else None,
    )


def rollout_arguments(
    recipe: RolloutRecipe, folder: RunFolder, processor: Any, *, bf16: bool, cpu: bool, **losses: Any
) -> GRPOConfig:
    """TRL's configuration. Nothing filters the sampling (top_p, top_k, penalties): the trainer's log-probabilities would not
    know of it."""
    rollout = recipe.rollout
    vllm: dict[str, Any] = {}
    if rollout.engine != "transformers":
        vllm = {
            "use_vllm": True,
            "vllm_mode": rollout.engine.removeprefix("vllm_"),
            "vllm_gpu_memory_utilization": rollout.gpu_memory,
            "vllm_tensor_parallel_size": rollout.tensor_parallel,
            "vllm_max_model_length": recipe.prompt.max_prompt_tokens + rollout.max_tokens,
        }
        if rollout.engine == "vllm_server":
            vllm["vllm_server_base_url"] = rollout.server
    args = training_arguments(
        GRPOConfig,
        recipe.train,
        folder,
        recipe.train.steps,
        recipe.seed,
        bf16=bf16,
        cpu=cpu,
        num_generations=rollout.group,
        max_completion_length=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=1.0,
        top_k=0,
        shuffle_dataset=False,
        log_multimodal=False,  # a process whose prompts have no photo would not take part, and the others wait for it
        chat_template_kwargs=template_options(processor),
        trust_remote_code=recipe.model.trust_remote_code,
        **vllm,
        **losses,
    )
    args.steps_per_generation = args.gradient_accumulation_steps * rollout.updates
    args.generation_batch_size = args.per_device_train_batch_size * args.steps_per_generation * world_size()
    return args


def pool_pairs(
    recipe: RolloutRecipe, folder: RunFolder, rubric: Rubric, fmt: PromptFormat, processor: Any
) -> tuple[list[Pair], np.ndarray, int]:
    """The pool's chosen pairs that can be shown, their pass rates [N] and the samples behind each rate."""
    table = select(recipe.pool, recipe.seed)
    pairs = list(chosen_pairs(table, recipe.data, folder))
    if is_main_process():
        describe(read_pool(recipe.pool.path), table)
        with RejectedWriter(folder / "prompts.arrow", folder / "rejected.jsonl") as rejected:
            good = usable(pairs, rubric, fmt, processor, rejected, recipe.pool.path)
        if rejected.count:
            say(f"{rejected.count:,} pairs are left out, each with its reason in {rejected.path}")
    else:
        good = usable(pairs, rubric, fmt, processor, None, recipe.pool.path)
    rates = np.asarray(table["pass_rate"].to_pylist(), dtype=float)[good]
    return [pairs[number] for number in good], np.nan_to_num(rates, nan=0.5), len(table["samples"][0])


def prompt_rows(order: np.ndarray) -> datasets.Dataset:
    """The rows that TRL's sampler walks over, in the schedule's order; the trainer makes prompts of them."""
    rows = order.reshape(-1).tolist()
    return datasets.Dataset.from_dict({"prompt": [""] * len(rows), "row": rows})


def trainer_arguments(setup: Setup) -> dict[str, Any]:
    """What both trainers are made with."""
    return {
        "recipe": setup.recipe,
        "prompts": setup.prompts,
        "rewards": setup.rewards,
        "choice": setup.choice,
        "windows": setup.windows,
        "replay": setup.replay,
        "score": scorer(setup) if setup.rewards.needs_probabilities else None,
        "model": setup.model,
        "args": setup.args,
        "train_dataset": prompt_rows(setup.order),
        "processing_class": setup.processor,
        "peft_config": peft_config(setup.recipe, setup.model),
    }


def scorer(setup: Setup) -> Callable[[Any, list[list[dict]], list[Answer]], list[Answer]]:
    """A function that gives answers their tier probabilities, read behind the reason that each of them wrote."""

    def score(trainer: Any, messages: list[list[dict]], answers: list[Answer]) -> list[Answer]:
        out = list(answers)
        read = [place for place, answer in enumerate(answers) if not isinstance(answer.judgement, FormatFailure)]
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            engine = TransformersEngine(model, setup.processor, setup.rubric)
            begun = [
                with_verdict_prefix(messages[place], setup.rubric, setup.fmt, engine.verdict, answers[place].judgement.rationale)
                for place in read
            ]
            model.eval()
            scored = engine.score(begun)
            model.train()
        for place, row in zip(read, scored, strict=True):
            out[place] = replace(out[place], probabilities=row.tolist())
        return out

    return score


def run_trainer(setup: Setup, trainer: JudgeRollouts, title: str) -> None:
    """Preflight, training under watch, and the best weights in <run>/model."""
    recipe, folder = setup.recipe, setup.folder
    check_same_prompt(setup.prompts, trainer._tokenize_prompts, range(min(8, len(setup.prompts))))
    if recipe.watch.preflight_prompts and last_checkpoint(folder) is None:
        preflight(setup, trainer)
    probe = probe_of(
        recipe.watch,
        recipe.data,
        folder,
        setup.rubric,
        setup.fmt,
        setup.processor,
        recipe.seed,
        title=title,
        rewards=mean_rewards(setup.rewards),
        max_tokens=recipe.rollout.max_tokens,
        card=setup.card,
    )
    watched(probe, trainer)
    recorder = Recorder(folder, title, setup.card, recipe.train.keep_checkpoints, recorded=KEPT)
    seconds = train(trainer, recorder, folder)
    facts = {"prompts": len(setup.prompts), "steps": trainer.state.global_step, **probe.finish(trainer)}
    if is_main_process():
        load_processor(recipe.model).save_pretrained(folder / "model")
        write_card(folder / "model", setup.card)
        folder.finish({**facts, "train_seconds": round(seconds, 2), "model": str(folder / "model")})


def preflight(setup: Setup, trainer: JudgeRollouts) -> None:
    """Rolls groups for a few prompts before step 0. Raises LoreError when all is cut or no group has spread."""
    share = max(1, setup.recipe.watch.preflight_prompts // world_size())
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        first = trainer.accelerator.process_index * share
        rows = [int(row) for row in setup.order.reshape(-1)[np.arange(first, first + share) % setup.order.size]]
        trainer.model.train()
        groups: list[Group] = trainer._roll(rows, Tally())
    everyone = gather_object([(group.answers, group.totals.tolist(), group.row) for group in groups])
    answers, totals, asked = zip(*everyone, strict=True)
    labels = [setup.prompts.pairs[row].label for row in asked]
    main_process_checks(lambda: preflight_rollouts(answers, totals, labels))
