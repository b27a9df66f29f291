"""What grpo and ppo share: from the pool to a trainer that is ready, and from its last step to the judge's folder."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback
from trl import GRPOConfig

from lore.codec.chat_template import template_options
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.rejected_rows import RejectedWriter
from lore.engines.chat import stop_ids
from lore.engines.loading import known_stops
from lore.rewards.reward import Rewards
from lore.rewards.self_test import print_self_test, self_test
from lore.run.devices import main_process_checks
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say, world_size
from lore.train.common.checkpoint import last_checkpoint
from lore.train.common.trainer import RECORDED, Recorder, train, training_arguments
from lore.train.judge.mixed_photos import check_mixed_photos, deepspeed_stage
from lore.train.judge.rows import takes_photos
from lore.train.judge.session import ReferenceStaysOut, Start, begin, complete_model, judge_lora, trained_model
from lore.train.pool.curriculum import chosen_pairs, chosen_rows
from lore.train.rl.config import DynamicSection, LossSection, RolloutRecipe
from lore.train.rl.dynamic_sampling import PromptChoice, schedule, window
from lore.train.rl.prompts import Prompts, check_same_prompt, usable
from lore.train.rl.sft_replay import Replay, replayed_passes, write_replay
from lore.train.watch.attach import probe_pairs, watched
from lore.train.watch.collapse_rules import RECORDED as WATCHED
from lore.train.watch.collapse_rules import preflight_rollouts

# What metrics.jsonl keeps of a step; no clock among them.
KEPT = (*RECORDED, *WATCHED, "reward_std", "rollout", "dynamic", "guided", "clip_ratio", "sft_loss", "value")
OFTEN = 20  # passes over the prompts after which a run is told


@dataclass
class Setup:
    """Everything a stage needs before its trainer is made."""

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
    """Pool, prompts, rewards and model of a run. losses: what TRL is told of the policy's loss beside the section. Raises
    LoreError when the rewards do not pass their own test."""
    if recipe.replay is not None:
        replayed_passes(recipe)
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
    # After the main process has brought the data into their form.
    probe = probe_pairs(recipe.watch, source, photos=photos)
    good = shown_alike(pairs, start, folder, recipe.pool.path)
    pairs = [pairs[number] for number in good]
    if recipe.guided is not None:
        check_reasoning(pairs, recipe)
    rates = np.nan_to_num(np.asarray(table["pass_rate"].to_pylist(), dtype=float)[good], nan=0.5)
    rewards = Rewards(recipe.rewards, start.rubric, start.fmt)
    if is_main_process():
        print_self_test(self_test(rewards, pairs, getattr(start.processor, "tokenizer", start.processor)))
    model = trained_model(recipe, start)
    model.generation_config.eos_token_id = stop_ids(start.processor, known_stops(recipe.model))
    rounds = -(-recipe.train.steps // recipe.rollout.updates)
    asked = recipe.train.batch_size * recipe.rollout.updates // recipe.rollout.group
    curriculum = recipe.pool.order != "random"
    if rounds * asked > OFTEN * len(pairs):
        say(
            f"{len(pairs):,} prompts are asked {rounds * asked:,} times: they will be learnt by heart. More pairs pass wider "
            "windows of the pool; pool.balance without pool.limit takes no more of any tier or slice than the rarest one has."
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
        Prompts(pairs, start.rubric, start.fmt, start.processor),
        rewards,
        PromptChoice(rates, len(table["samples"][0]), recipe.rollout.group, recipe.dynamic or DynamicSection()),
        order,
        windows,
        Replay(recipe, folder, start) if recipe.replay is not None else None,
        probe,
    )


def check_reasoning(pairs: list[Pair], recipe: RolloutRecipe) -> None:
    """Says for how many pairs guided replay has something to give; raises LoreError where there is none."""
    reasoned = sum(bool(pair.rationale) for pair in pairs)
    if not reasoned:
        raise LoreError(
            f"guided: none of the {len(pairs):,} chosen pairs of {recipe.data.path} has a reasoning to begin an answer with.\n"
            "Give the pairs of stage synthesize as data.path, here and in the pool, or leave guided out (guided=null).",
            same_on_every_rank=True,
        )
    say(f"guided: {reasoned:,} of {len(pairs):,} prompts have a reasoning")


def shown_alike(pairs: list[Pair], start: Start, folder: RunFolder, pool: str) -> list[int]:
    """Numbers of the pairs that can be shown, found out by the main process for all; the others are in rejected.jsonl."""
    good: list[int] = []

    def find() -> None:
        with RejectedWriter(folder / "prompts.arrow", folder / "rejected.jsonl") as rejected:
            good.extend(usable(pairs, start.rubric, start.fmt, start.processor, rejected, pool))
        if rejected.count:
            say(f"{rejected.count:,} pairs are left out, each with its reason in {rejected.path}")

    main_process_checks(find)
    return broadcast_object_list([good], from_process=0)[0]


def rollout_arguments(recipe: RolloutRecipe, folder: RunFolder, start: Start, **losses: Any) -> GRPOConfig:
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
            "vllm_max_model_length": longest(recipe, start),
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
        disable_dropout=True,  # an adapter's own would sample answers from other models than the loss scores them by
        shuffle_dataset=False,
        ddp_broadcast_buffers=False,  # they never change, and a process with a pass more than the others would wait for them
        log_multimodal=False,  # a process whose prompts have no photo would not take part, and the others wait for it
        chat_template_kwargs=template_options(start.processor),
        trust_remote_code=recipe.model.trust_remote_code,
        **vllm,
        **losses,
    )
    args.steps_per_generation = args.gradient_accumulation_steps * rollout.updates
    args.generation_batch_size = args.per_device_train_batch_size * args.steps_per_generation * world_size()
    return args


def longest(recipe: RolloutRecipe, start: Start) -> int:
    """Tokens of the longest prompt with its answer, which vLLM has to hold. A photo's tokens come on top of
    prompt.max_prompt_tokens, and train.max_tokens has room for them. An answer that begins with gold reasoning is as long again."""
    text = recipe.prompt.max_prompt_tokens + recipe.rollout.max_tokens * (1 if recipe.guided is None else 2)
    return max(text, recipe.train.max_tokens) if takes_photos(start.processor, start.fmt) else text


def prompt_rows(order: np.ndarray) -> datasets.Dataset:
    """The rows that TRL's sampler walks over, in the schedule's order; the trainer makes prompts of them."""
    rows = order.reshape(-1).tolist()
    return datasets.Dataset.from_dict({"prompt": [""] * len(rows), "row": rows})


def padded_left(processor: Any) -> Any:
    """A copy that pads on the left, as TRL does with the prompts themselves: which tokens are a photo's it takes from the
    processor's padded rows."""
    processor = copy.deepcopy(processor)
    getattr(processor, "tokenizer", processor).padding_side = "left"
    return processor


def trainer_arguments(setup: Setup) -> dict[str, Any]:
    """What both trainers are made with."""
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
        "processing_class": padded_left(setup.start.processor),
        "peft_config": judge_lora(setup.recipe, setup.model),
    }


def run_trainer(setup: Setup, trainer: Any, title: str) -> None:
    """trainer: a GRPO or PPO. Preflight, training under watch, and the best weights in <run>/model."""
    recipe, folder = setup.recipe, setup.folder
    trainer.add_callback(ReferenceStaysOut())
    if trainer.reads_photos and recipe.prompt.photo and (trainer.is_fsdp_enabled or deepspeed_stage(trainer) == 3):
        shown = sum(pair.image is not None for pair in setup.prompts.pairs)
        check_mixed_photos(shown, len(setup.prompts), "prompts", "launch/accelerate/zero2.yaml or ddp.yaml")
    check_same_prompt(setup.prompts, trainer.tokenize, range(min(8, len(setup.prompts))))
    if recipe.watch.preflight_prompts and last_checkpoint(folder) is None:
        trainer.add_callback(Preflight(setup, trainer))
    shown = {"title": title, "max_tokens": recipe.rollout.max_tokens, "rewards": setup.rewards}
    watch = watched(trainer, recipe, folder, setup.start, setup.probe, **shown)
    recorder = Recorder(folder, title, keep=recipe.train.keep_checkpoints, recorded=KEPT, on_saved=setup.start.write_card)
    seconds = train(trainer, recorder, folder, recipe.train.lr_factors)
    facts = {"prompts": len(setup.prompts), "steps": trainer.state.global_step, **watch.finish(trainer)}
    if is_main_process():
        complete_model(recipe, folder, setup.start.card)
        folder.finish({**facts, "train_seconds": round(seconds, 2), "model": str(folder / "model")})


class Preflight(TrainerCallback):
    """Runs `preflight` when the trainer has put the model where it trains: under DeepSpeed that is after its start."""

    def __init__(self, setup: Setup, trainer: Any):
        self.setup, self.trainer = setup, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        preflight(self.setup, self.trainer)


def preflight(setup: Setup, trainer: Any) -> None:
    """Samples groups for a few prompts before step 0. trainer: a GRPO or PPO. Raises LoreError when all answers are truncated or
    every group is a zero-advantage group."""
    share = max(1, setup.recipe.watch.preflight_prompts // world_size())
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        first = trainer.accelerator.process_index * share
        rows = [int(row) for row in setup.order.reshape(-1)[np.arange(first, first + share) % setup.order.size]]
        trainer.model.train()
        at_once = setup.order.shape[1] // world_size()
        groups: list[Any] = []
        for start in range(0, share, at_once):  # never more answers at a time than a step has, for which memory has to do
            groups += trainer.sample_groups(rows[start : start + at_once])
    everyone = gather_object([(group.answers, group.rewards_G.tolist(), group.row) for group in groups])
    answers, totals, asked = zip(*everyone, strict=True)
    labels = [setup.prompts.pairs[row].label for row in asked]
    grouped = setup.recipe.stage != "ppo"
    main_process_checks(lambda: preflight_rollouts(answers, totals, labels, grouped=grouped))
