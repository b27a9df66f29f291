"""Setup and end of stages grpo and ppo: from the pool to the trainer's arguments, and from the last step to the judge's folder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback
from trl import GRPOConfig

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.rejected_rows import RejectedWriter
from lore.engines.chat import prompt_tokens, stop_ids
from lore.engines.loading import known_stops
from lore.engines.row_independence import length_rule, padding_moves
from lore.rewards.reward import Rewards
from lore.rewards.self_test import print_self_test, self_test
from lore.run.devices import main_process_checks
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say, world_size
from lore.support.progress import track
from lore.train.common.arrow_rows import rendered_rows
from lore.train.common.checkpoint import last_checkpoint
from lore.train.common.lora import adapted_line
from lore.train.common.neighbors import check_lengths
from lore.train.common.shared_prefix import SharedPrefix
from lore.train.common.trainer import RECORDED, Recorder, train, training_arguments
from lore.train.judge.dry_pass import check_training
from lore.train.judge.mixed_photos import check_mixed_photos, deepspeed_stage
from lore.train.judge.rows import takes_photos
from lore.train.judge.session import ReferenceStaysOut, Start, begin, complete_model, judge_lora, trained_model
from lore.train.pool.curriculum import chosen_pairs, chosen_rows
from lore.train.rl.config import DynamicSection, LossSection, RolloutRecipe
from lore.train.rl.dynamic_sampling import PromptChoice, schedule, window
from lore.train.rl.prompts import Prompts, check_same_prompt, renderable_rows, trainer_processor
from lore.train.rl.sft_replay import Replay, replay_rows_per_pass, write_replay
from lore.train.watch.attach import probe_pairs, watched
from lore.train.watch.collapse_rules import RECORDED as WATCHED
from lore.train.watch.collapse_rules import preflight_rollouts
from lore.train.watch.policy_engine import policy

# Metrics that metrics.jsonl keeps. No times: a resumed run must write the same lines.
KEPT_METRICS = (*RECORDED, *WATCHED, "reward_std", "rollout", "dynamic", "guided", "clip_ratio", "sft_loss", "value")
MAX_PASSES_BEFORE_WARNING = 20  # passes over the prompts; with more, the judge memorizes them


@dataclass
class Setup:
    """Everything that a stage needs to create its trainer."""

    recipe: RolloutRecipe
    folder: RunFolder
    start: Start
    args: GRPOConfig
    model: Any
    prompts: Prompts
    rewards: Rewards
    choice: PromptChoice
    order: np.ndarray  # rows [rollouts, prompts]
    windows: Callable[[int], np.ndarray]
    replay: Replay | None
    probe: list[Pair]


def set_up(recipe: RolloutRecipe, folder: RunFolder, loss: LossSection, **losses: Any) -> Setup:
    """Pool, prompts, rewards and model of a run. losses: further TRL arguments for the policy loss. Raises LoreError when the
    rewards fail their self-test."""
    if recipe.replay is not None:
        replay_rows_per_pass(recipe)
    start = begin(recipe)
    args = rollout_arguments(
        recipe,
        folder,
        start,
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        beta=loss.kl,
        mask_truncated_completions=loss.mask_truncated,
        **losses,
    )
    if is_main_process():
        folder.note(**start.hashes)
    photos, source = takes_photos(start.processor, start.fmt), PairSource(recipe.data, folder)
    with args.main_process_first(local=False, desc="prompts"):
        table = chosen_rows(recipe.pool, recipe.seed, start.hashes["renderer_hash"], recipe.model)
        pairs = chosen_pairs(table, source, photos=photos)
        if recipe.replay is not None:
            write_replay(recipe, source, start)
    # After the main process has converted the data.
    probe = probe_pairs(recipe.watch, source, photos=photos)
    good = renderable_pairs(pairs, start, folder, recipe.pool.path)
    pairs = [pairs[number] for number in good]
    if recipe.guided is not None:
        check_reasoning(pairs, recipe)
    rates = np.nan_to_num(np.asarray(table["pass_rate"].to_pylist(), dtype=float)[good], nan=0.5)
    rewards = Rewards(recipe.rewards, start.rubric, start.fmt)
    if is_main_process():
        print_self_test(self_test(rewards, pairs, getattr(start.processor, "tokenizer", start.processor)))
    model = trained_model(recipe, start)
    judge_lora(recipe, model)  # its errors come before the dry pass, as in the other stages
    # Gold reasoning that begins an answer is at most as long as the longest answer of the pool, about rollout.max_tokens.
    answer = recipe.rollout.max_tokens * (1 if recipe.guided is None else 2)
    asked = [
        ("the longest prompt of the pool", pairs, answer),
        ("the longest prompt of the probe (watch)", probe, recipe.watch.max_tokens or recipe.rollout.max_tokens),
    ]
    replayed = rendered_rows(folder / "data" / "replay.arrow") if recipe.replay is not None else None
    prompts = Prompts(pairs, start.rubric, start.fmt, start.processor)
    replay = Replay(recipe, folder, start) if recipe.replay is not None else None
    lengths = row_lengths(model, prompts, answer)
    check_training(
        recipe,
        folder,
        start,
        model,
        args,
        steps=recipe.train.steps,
        neighbors=lambda: check_row_lengths(model, lengths, replay),
        rows=replayed,
        asked=asked,
    )
    keep_short_frequencies(args, model, lengths)
    model.generation_config.eos_token_id = stop_ids(start.processor, known_stops(recipe.model))
    rounds = -(-recipe.train.steps // recipe.rollout.updates)
    asked = recipe.train.batch_size * recipe.rollout.updates // recipe.rollout.group
    curriculum = recipe.pool.order != "random"
    if rounds * asked > MAX_PASSES_BEFORE_WARNING * len(pairs):
        say(
            f"The run samples {rounds * asked:,} groups from {len(pairs):,} prompts: the judge will memorize them. For more "
            "prompts, widen the windows of the pool. Without pool.limit, pool.balance cuts each tier or slice to the size of the "
            "smallest one."
        )
    order = schedule(len(pairs), rounds, asked, recipe.seed, curriculum=curriculum)

    def windows(step: int) -> np.ndarray:
        return window(len(pairs), rounds, step // recipe.rollout.updates) if curriculum else np.arange(len(pairs))

    return Setup(
        recipe,
        folder,
        start,
        args,
        model,
        prompts,
        rewards,
        PromptChoice(rates, len(table["samples"][0]), recipe.rollout.group, recipe.dynamic or DynamicSection()),
        order,
        windows,
        replay,
        probe,
    )


def row_lengths(model: Any, prompts: Prompts, answer: int) -> list[int]:
    """Tokens of the shortest prompt with an answer of one token and of the longest with an answer of `answer` tokens; empty for a
    model that reads every length in the same way."""
    if length_rule(model.config) is None:
        return []  # most models: no need to tokenize all prompts
    asked = [prompt_tokens(prompts.processor, prompts.messages(row)) for row in track(range(len(prompts)), "prompt lengths")]
    return [min(asked) + 1, max(asked) + answer]


def check_row_lengths(model: Any, lengths: list[int], replay: Replay | None) -> None:
    """Raises LoreError if a prompt with its answer, or a replayed row, would change others in its batch."""
    check_lengths(model.config, lengths, padded_left=True)
    if replay is not None:
        check_lengths(model.config, replay.lengths)


def keep_short_frequencies(args: GRPOConfig, model: Any, lengths: list[int]) -> None:
    """Keeps vLLM's context within the short frequencies of longrope if all rows are: beyond, vLLM reads every row with the long
    ones."""
    rule = length_rule(model.config)
    if rule is not None and not rule.exact and max(lengths) <= rule.tokens and args.vllm_max_model_length is not None:
        args.vllm_max_model_length = min(args.vllm_max_model_length, rule.tokens)


def check_reasoning(pairs: list[Pair], recipe: RolloutRecipe) -> None:
    """Reports how many pairs have gold reasoning for guided replay. Raises LoreError if none has."""
    reasoned = sum(bool(pair.rationale) for pair in pairs)
    if not reasoned:
        raise LoreError(
            f"guided: none of the {len(pairs):,} chosen pairs of {recipe.data.path} has gold reasoning to start an answer with.\n"
            "Set data.path to the pairs of stage synthesize, here and in the pool, or remove guided (guided=null).",
            same_on_every_rank=True,
        )
    say(f"guided: {reasoned:,} of {len(pairs):,} prompts have gold reasoning")


def renderable_pairs(pairs: list[Pair], start: Start, folder: RunFolder, pool: str) -> list[int]:
    """Numbers of the pairs that can be rendered as prompts, the same on every process. The main process checks the pairs and writes
    the others to rejected.jsonl."""
    good: list[int] = []

    def find() -> None:
        with RejectedWriter(folder / "prompts.arrow", folder / "rejected.jsonl") as rejected:
            good.extend(renderable_rows(pairs, start.rubric, start.fmt, start.processor, rejected, pool))
        if rejected.count:
            say(f"{rejected.count:,} pairs were rejected; {rejected.path} has the reasons")

    main_process_checks(find)
    return broadcast_object_list([good], from_process=0)[0]


def rollout_arguments(recipe: RolloutRecipe, folder: RunFolder, start: Start, **losses: Any) -> GRPOConfig:
    """TRL's configuration. It disables all sampling filters (top_p, top_k, penalties), because the trainer's log-probabilities do
    not include them."""
    rollout = recipe.rollout
    vllm: dict[str, Any] = {}
    if rollout.engine != "transformers":
        vllm = {
            "use_vllm": True,
            "vllm_mode": rollout.engine.removeprefix("vllm_"),
            "vllm_gpu_memory_utilization": rollout.gpu_memory,
            "vllm_tensor_parallel_size": rollout.tensor_parallel,
            "vllm_max_model_length": max_model_length(recipe, start),
            "generation_kwargs": {"stop_token_ids": stop_ids(start.processor, known_stops(recipe.model))},
        }
        if rollout.engine == "vllm_server":
            vllm["vllm_server_base_url"] = rollout.server
    args = training_arguments(
        GRPOConfig,
        recipe.train,
        folder,
        recipe.train.steps,
        recipe.seed,
        bf16=start.bf16,
        cpu=start.device == "cpu",
        num_generations=rollout.group,
        max_completion_length=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=1.0,
        top_k=0,
        disable_dropout=True,  # LoRA dropout would sample answers from a different model than the loss scores
        shuffle_dataset=False,
        ddp_broadcast_buffers=False,  # buffers never change, and a process with one more forward pass would hang
        log_multimodal=False,  # a process without photos would skip the gather, and the others would hang
        trust_remote_code=recipe.model.trust_remote_code,
        **vllm,
        **losses,
    )
    args.steps_per_generation = args.gradient_accumulation_steps * rollout.updates
    args.generation_batch_size = args.per_device_train_batch_size * args.steps_per_generation * world_size()
    return args


def max_model_length(recipe: RolloutRecipe, start: Start) -> int:
    """vLLM's context length in tokens: the longest prompt with its answer. prompt.max_prompt_tokens excludes photos, so with photos
    it is at least train.max_tokens. With guided replay, gold reasoning may precede a full-length answer."""
    text = recipe.prompt.max_prompt_tokens + recipe.rollout.max_tokens * (1 if recipe.guided is None else 2)
    return max(text, recipe.train.max_tokens) if takes_photos(start.processor, start.fmt) else text


def prompt_rows(order: np.ndarray) -> datasets.Dataset:
    """The rows for TRL's sampler, in the order of the schedule. The trainer replaces each row by its prompt."""
    rows = order.reshape(-1).tolist()
    return datasets.Dataset.from_dict({"prompt": [""] * len(rows), "row": rows})


def trainer_arguments(setup: Setup) -> dict[str, Any]:
    """Arguments of both trainers."""
    return {
        "recipe": setup.recipe,
        "prompts": setup.prompts,
        "rewards": setup.rewards,
        "choice": setup.choice,
        "windows": setup.windows,
        "replay": setup.replay,
        "model": setup.model,
        "args": setup.args,
        "train_dataset": prompt_rows(setup.order),
        "processing_class": trainer_processor(setup.start.processor),
        "peft_config": judge_lora(setup.recipe, setup.model),
    }


def shared_prefix(setup: Setup, trainer: Any) -> SharedPrefix:
    """train.shared_prefix for the policy, its reference and the replayed pairs. trainer: a GRPO or PPO."""
    rows = setup.args.per_device_train_batch_size
    if setup.replay is not None and setup.args.temperature == 1:  # at others, replayed pairs do not pass through the fused layer
        rows = max(rows, setup.replay.size)
    return SharedPrefix(trainer, setup.recipe.train.shared_prefix, setup.prompts.tokenizer, rows)


def run_trainer(setup: Setup, trainer: Any, title: str) -> None:
    """Preflight, training with periodic evaluation, and the best weights in <run>/model. trainer: a GRPO or PPO."""
    recipe, folder = setup.recipe, setup.folder
    trainer.add_callback(ReferenceStaysOut())
    say(f"adapter: {adapted_line(None, trainer.model)}")
    trainer.add_callback(PaddingIsHarmless(setup, trainer))
    if trainer.reads_photos and recipe.prompt.photo and (trainer.is_fsdp_enabled or deepspeed_stage(trainer) == 3):
        shown = sum(pair.image is not None for pair in setup.prompts.pairs)
        check_mixed_photos(shown, len(setup.prompts), "prompts", "launch/accelerate/zero2.yaml or ddp.yaml")
    check_same_prompt(setup.prompts, trainer.tokenize, range(min(8, len(setup.prompts))))
    if recipe.watch.preflight_prompts and last_checkpoint(folder) is None:
        trainer.add_callback(Preflight(setup, trainer))
    shown = {"title": title, "max_tokens": recipe.rollout.max_tokens, "rewards": setup.rewards}
    watch = watched(trainer, recipe, folder, setup.start, setup.probe, **shown)
    recorder = Recorder(folder, title, keep=recipe.train.keep_checkpoints, recorded=KEPT_METRICS, on_saved=setup.start.write_card)
    seconds = train(trainer, recorder, folder, recipe)
    summary = {"prompts": len(setup.prompts), "steps": trainer.state.global_step, **watch.finish(trainer)}
    if is_main_process():
        complete_model(folder, setup.start)
        folder.finish({**summary, "train_seconds": round(seconds, 2), "model": str(folder / "model")})


class PaddingIsHarmless(TrainerCallback):
    """Stops a run before step 0 if padding changes the model's numbers, because TRL pads prompts on the left."""

    def __init__(self, setup: Setup, trainer: Any):
        self.setup, self.trainer = setup, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processor = self.setup.start.processor
        with policy(self.trainer) as model:
            moves = padding_moves(model, getattr(processor, "tokenizer", processor))
        if moves:
            raise LoreError(
                f"Padding changes what {self.setup.recipe.model.name} computes, and the trainer pads prompts to the longest of a "
                "batch. The log-probabilities of an answer would depend on the prompts beside it.\n"
                "Align a model without recurrent or convolutional layers that read padding, or train with stage sft, dpo or kto, "
                "which pad behind the answer.",
                same_on_every_rank=True,
            )


class Preflight(TrainerCallback):
    """Runs `preflight` once the trainer has placed the model. With DeepSpeed that happens only after training starts."""

    def __init__(self, setup: Setup, trainer: Any):
        self.setup, self.trainer = setup, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        preflight(self.setup, self.trainer)


def preflight(setup: Setup, trainer: Any) -> None:
    """Samples groups for a few prompts before step 0. trainer: a GRPO or PPO. Raises LoreError when all answers are truncated or
    all groups are zero-advantage groups."""
    share = max(1, setup.recipe.watch.preflight_prompts // world_size())
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        first = trainer.accelerator.process_index * share
        rows = [int(row) for row in setup.order.reshape(-1)[np.arange(first, first + share) % setup.order.size]]
        trainer.model.train()
        at_once = setup.order.shape[1] // world_size()
        groups: list[Any] = []
        for start in range(0, share, at_once):  # at most the answers of one step at a time, to fit in memory
            groups += trainer.sample_groups(rows[start : start + at_once])
    everyone = gather_object([(group.answers, group.rewards_G.tolist(), group.row) for group in groups])
    answers, totals, asked = zip(*everyone, strict=True)
    labels = [setup.prompts.pairs[row].label for row in asked]
    grouped = setup.recipe.stage != "ppo"
    main_process_checks(lambda: preflight_rollouts(answers, totals, labels, grouped=grouped))
