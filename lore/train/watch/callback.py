"""Periodic evaluation during training: samples answers to labeled pairs, keeps the best weights, stops a collapsed run.

Works with any transformers Trainer and does not affect training: it restores random state, training mode and data order. It
samples instead of decoding greedily, because samples show what training can still reach, and it does not use vLLM, whose weights
may lag behind the trainer's. See docs/watch.md.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from lore.codec.prompt import PromptFormat, render
from lore.data.pair import Pair
from lore.engines.chat import photo_of
from lore.engines.engine import Completion, Messages, Sampling
from lore.judge.answer import Answer, read_answer
from lore.judge.card import write_card
from lore.rubric.rubric import Rubric
from lore.run.devices import main_process_checks
from lore.run.nested import refuse_runs_in, remove_own
from lore.run.run_folder import RunFolder
from lore.support.atomic_files import folder_written_whole, replace_folder, write_atomic
from lore.support.console import Console
from lore.support.errors import LoreError
from lore.support.processes import is_main_process
from lore.train.common.checkpoint import COMPLETE, save_weights
from lore.train.watch.collapse_rules import Probed, Watch, label_shares, probe_metrics, training_metrics
from lore.train.watch.config import WatchSection
from lore.train.watch.console import print_watch
from lore.train.watch.policy_engine import PolicyEngine, policy
from lore.train.watch.report import ANSWERS, write_training_report

ENTROPY_ANSWERS = 32
Rewards = Callable[[list[Pair], list[list[Answer]]], dict[str, float]]


class ProbeCallback(TrainerCallback):
    """Evaluates the judge during training. Set `.trainer` before training and call `finish` afterwards.

    pairs: labeled pairs, the same in every process; processor: the trainer's; rewards: function that returns the mean of each
    reward component over the answers, with the total under `reward`; card: the judge's card, saved with the weights;
    max_tokens: longest answer if the section sets none. Every process samples its share of the answers; the main process
    computes metrics, decides and writes.
    """

    def __init__(
        self,
        section: WatchSection,
        folder: RunFolder,
        pairs: Sequence[Pair],
        rubric: Rubric,
        fmt: PromptFormat,
        processor: Any,
        seed: int,
        *,
        title: str,
        max_tokens: int,
        rewards: Rewards | None = None,
        card: dict[str, Any] | None = None,
    ):
        self.section, self.folder, self.rubric, self.fmt, self.seed = section, folder, rubric, fmt, seed
        self.title, self.rewards, self.card = title, rewards, card
        self.max_tokens = section.max_tokens or max_tokens
        self.processor = copy.deepcopy(processor)  # trainers modify padding and template of their processor
        self.pairs = [pair for pair in pairs if pair.label is not None][: section.pairs]
        if section.every and not self.pairs:
            raise LoreError(
                "The probe holds no labeled pair, so the judge cannot be evaluated during training.\nSet watch.path and "
                "watch.split so that they select labeled pairs, or disable the evaluation with watch.every: 0."
            )
        self.trainer: Any = None
        self.watch: Watch | None = None
        self.logged: list[dict[str, Any]] = []
        self._share: list[tuple[Pair, Messages]] | None = None
        self._begun = False

    def on_train_begin(self, args, state, control, **kwargs):
        if not self.section.every:
            return control
        if self.trainer is None:
            raise LoreError("ProbeCallback has no trainer, so it cannot sample answers.\nSet `.trainer` before training.")
        self.watch = Watch(self.section, self.folder, self.rubric, label_shares([pair.label for pair in self.pairs]))
        self.watch.history = _from_main(self.watch.history)
        main_process_checks(lambda: self._check_best(state.global_step))
        last = max(self.watch.steps, default=-1)
        lines = self.folder.metrics() if is_main_process() else []
        self.logged = [line for line in lines if "loss" in line and line.get("step", 0) > last]
        if self._is_due(state) and not self.watch.stopped:
            self._look(state, control)
        return control

    def on_step_end(self, args, state, control, **kwargs):
        if self.watch is None:
            return control
        if self.watch.stopped:  # the run was resumed from the step at which a rule stopped it
            control.should_training_stop = True
        elif self._is_due(state):
            control.should_log |= state.global_step >= state.max_steps  # the last evaluation includes the last step's logged values
            if not control.should_log:
                self._look(state, control)
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.watch is None or "loss" not in logs:
            return control
        self.logged.append(dict(logs))
        broken = not all(math.isfinite(float(logs.get(name) or 0)) for name in ("loss", "grad_norm"))
        if self._is_due(state) and not self.watch.stopped and not broken:  # the Recorder raises the error for a non-finite loss
            self._look(state, control)
        return control

    def on_train_end(self, args, state, control, **kwargs):
        if self.watch is not None and not self.watch.stopped and state.global_step not in self.watch.steps:
            self._look(state, control)
        return control

    def _is_due(self, state: Any) -> bool:
        step = state.global_step
        return (step % self.section.every == 0 or step >= state.max_steps) and step not in self.watch.steps

    def _look(self, state: Any, control: Any) -> None:
        probed, entropy = self._sample()
        line = None
        if is_main_process():
            groups = [one.answers for one in probed]
            parts = self.rewards(self.pairs, groups) if self.rewards else None
            metrics = probe_metrics(probed, self.rubric, entropy, parts)
            line = self.watch.weigh(state.global_step, metrics, training_metrics(self.logged))
        line = _from_main(line)
        if not is_main_process():
            self.watch.history.append(line)
        self.logged = []
        if self.watch.best_step == state.global_step:
            self._keep(state.global_step)
        self.folder.record(line)  # recorded after saving: a run killed in between repeats this evaluation
        if is_main_process():
            self._show(probed)
        if self.watch.stopped:
            control.should_training_stop = True

    def _sample(self) -> tuple[list[Probed], float]:
        """Every pair with its sampled answers, in pair order, and the policy's mean token entropy in nats."""
        accelerator = self.trainer.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        if self._share is None:
            self._share = [(pair, self._messages(pair)) for pair in share_of(self.pairs, rank, world)]
        prompts = [messages for _, messages in self._share]
        with policy(self.trainer) as model:
            engine = PolicyEngine(model, self.processor, self.rubric, batch_tokens=2**62)
            longest = max(gather_object([engine.longest(prompts)]))
            # A fixed number of prompts per batch: with sharded weights every process has to make the same number of calls.
            rows = max(1, self.section.batch_tokens // ((longest + self.max_tokens) * self.section.samples))
            completions: list[list[Completion]] = []
            for number, start in enumerate(range(0, len(prompts), rows)):
                seed = self.seed + number * world + rank
                sampling = Sampling(self.section.temperature, 1.0, self.max_tokens, self.section.samples, seed)
                completions += engine.generate(prompts[start : start + rows], sampling)
            asked = [(i, j) for j in range(self.section.samples) for i in range(len(prompts))][: -(-ENTROPY_ANSWERS // world)]
            total, tokens = engine.entropy([(prompts[i], completions[i][j]) for i, j in asked], self.section.temperature)
        mine = [
            Probed(pair.pair_id, pair.label, [read_answer(one, self.rubric, self.fmt) for one in row])
            for (pair, _), row in zip(self._share, completions, strict=True)
        ]
        shares, sums = gather_object([mine]), gather_object([(total, tokens)])
        probed = [shares[number % world][number // world] for number in range(len(self.pairs))]
        return probed, sum(total for total, _ in sums) / sum(tokens for _, tokens in sums)

    def _messages(self, pair: Pair) -> Messages:
        photo, _ = photo_of(pair, self.fmt, self.processor) if hasattr(self.processor, "tokenizer") else (None, "")
        fmt = self.fmt if photo is not None else replace(self.fmt, photo=False)
        return render(pair, self.rubric, fmt, tokenizer=self.processor, image=photo)

    def _show(self, probed: list[Probed]) -> None:
        bars = (getattr(callback, "bar", None) for callback in self.trainer.callback_handler.callbacks)
        bar = next((bar for bar in bars if bar), None)
        print_watch(self.watch, bar.console if bar else Console(), started_here=not self._begun)
        self._begun = True
        examples = [_example(pair, one) for pair, one in zip(self.pairs, probed, strict=True)]
        step = self.watch.history[-1]["step"]
        write_atomic(self.folder / ANSWERS, json.dumps({"step": step, "pairs": examples}, ensure_ascii=False, indent=1) + "\n")
        write_training_report(self.folder, self.title, self.watch)

    def _best(self, step: int) -> Path:
        return self.folder / f"best-{step}"

    def _check_best(self, step: int) -> None:
        """Main process: deletes weights that a killed run saved after `step`; checks that the best weights still exist."""
        for path, saved in self._saved():
            if saved > step:
                remove_own(path)
        best = self.watch.best_step
        if best is not None and not self._best(best).is_dir():
            raise LoreError(
                f"{self.folder.path} was best at step {best} but {self._best(best)} is gone, so the run would end without its best "
                "weights.\nRestore the folder, or delete the run folder to start over."
            )

    def _keep(self, step: int) -> None:
        """Saves the weights atomically as best-<step>, and deletes older ones that a resumed run cannot need.

        A killed run resumes from its newest checkpoint, where an older step may be the best one, so that one is kept.
        """
        self._save(self._best(step))
        if is_main_process():
            checkpoints = (self.folder / "checkpoints").glob(f"checkpoint-*/{COMPLETE}")
            resumed = max((int(path.parent.name.rpartition("-")[2]) for path in checkpoints), default=0)
            self._drop_all_but({step, self.watch.best_until(resumed)})
        self.trainer.accelerator.wait_for_everyone()

    def _drop_all_but(self, steps: set[int | None]) -> None:
        for path, step in self._saved():
            if step not in steps:
                remove_own(path)

    def _saved(self) -> list[tuple[Path, int]]:
        """The folders best-<step> with their steps. Other names are not the run's own."""
        found = [(path, path.name.partition("-")[2]) for path in self.folder.path.glob("best-*")]
        return [(path, int(step)) for path, step in found if step.isdecimal()]

    def _save(self, target: Path) -> None:
        part = target.with_name(f".{target.name}.part")  # one name for all processes, which write into it together
        if is_main_process():
            refuse_runs_in(target)
            remove_own(part)
        self.trainer.accelerator.wait_for_everyone()
        plugin = getattr(self.trainer.accelerator.state, "fsdp_plugin", None)
        kind = plugin.state_dict_type if plugin is not None else None
        save_weights(self.trainer, part)
        if plugin is not None:
            plugin.set_state_dict_type(kind)  # restores the type that the checkpoints use
        if is_main_process():
            self.processor.save_pretrained(part)
            if self.card is not None:
                write_card(part, self.card)
            replace_folder(part, target)
        self.trainer.accelerator.wait_for_everyone()

    def finish(self, trainer: Any) -> dict[str, Any]:
        """Puts the best weights in <run>/model; without periodic evaluation, the final weights. Call it in every process.

        Returns values for the run's summary: best_step, pass_at_1 at that step, and `stopped` if a rule ended training.
        """
        target = self.folder / "model"
        if self.watch is None or self.watch.best_step is None:
            self.trainer = trainer
            self._save(target)
            return {}
        best = self.watch.best_step
        if is_main_process():
            refuse_runs_in(target)
            with folder_written_whole(target) as part:
                shutil.copytree(self._best(best), part)
            self._drop_all_but({best})
            write_training_report(self.folder, self.title, self.watch)
        trainer.accelerator.wait_for_everyone()
        line = next(line for line in self.watch.history if line["step"] == best)
        summary = {"best_step": best, "pass_at_1": round(line["probe"]["pass_at_1"], 4)}
        return summary | ({"stopped": self.watch.stopped} if self.watch.stopped else {})


def share_of(pairs: Sequence[Pair], rank: int, world: int) -> list[Pair]:
    """pairs[rank::world], padded with the first pair so that every process has the same number of pairs."""
    own = list(pairs[rank::world])
    return own + [pairs[0]] * (-(-len(pairs) // world) - len(own))


def _from_main(value: Any) -> Any:
    """Broadcasts the main process's value to every process."""
    return broadcast_object_list([value], from_process=0)[0]


def _example(pair: Pair, probed: Probed) -> dict[str, Any]:
    answers = [
        {
            "text": answer.text,
            "tokens": answer.tokens,
            "truncated": answer.truncated,
            "tier": answer.tier,
            "failure": answer.failure,
        }
        for answer in probed.answers
    ]
    about = {"pair_id": pair.pair_id, "query": pair.query, "title": pair.title, "label": pair.label}
    return about | {"answers": answers}
