"""What all training stages share: Trainer arguments from a recipe, metrics.jsonl, checkpoints that survive SIGKILL.

A checkpoint counts once its `complete` marker is there, written after every process has saved its part; only then do
older ones go, their marker first. metrics.jsonl holds no clock, so a run that was killed and resumed ends with the
same file as one that was not.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from lore.judge.card import write_card
from lore.run.devices import check_world, device_arguments
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.library_logging import silence
from lore.support.processes import world_size
from lore.train.common.checkpoint import COMPLETE, _step_of, drop_old_checkpoints, last_checkpoint
from lore.train.common.config import TrainSection
from lore.train.common.lora import whole_layers_in_float32
from lore.train.common.lr_multipliers import scale_rates

RECORDED = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")
WAIT_SECONDS = 6 * 3600  # the other processes wait this long while the main process renders the rows

silence()


def total_steps(train: TrainSection, rows: int) -> int:
    """Optimiser steps of the whole run."""
    return train.steps or max(1, math.ceil(rows * train.epochs / train.batch_size))


def micro_batch(train: TrainSection) -> tuple[int, int]:
    """(rows per process and forward pass, forward passes per step) so that the global batch is train.batch_size."""
    processes = world_size()
    if train.batch_size % processes:
        raise LoreError(
            f"train.batch_size is {train.batch_size} and there are {processes} processes, so the batch cannot be "
            "shared evenly.\nUse a batch_size that the number of processes divides."
        )
    share = train.batch_size // processes
    micro = min(train.micro_batch_size or share, share)
    if share % micro:
        raise LoreError(
            f"train.batch_size {train.batch_size} over {processes} processes leaves {share} rows a process, which "
            f"micro_batch_size {micro} does not divide.\nUse a divisor of {share}."
        )
    return micro, share // micro


def sft_arguments(
    train: TrainSection, folder: RunFolder, steps: int, seed: int, *, bf16: bool, vision: bool, cpu: bool
) -> SFTConfig:
    """`training_arguments` for TRL's SFTTrainer.

    Rows come in the order of `order.training_order` and packed or flattened by the stage, so TRL shuffles, cuts and
    packs nothing.
    """
    return training_arguments(
        SFTConfig,
        train,
        folder,
        steps,
        seed,
        bf16=bf16,
        cpu=cpu,
        shuffle_dataset=False,
        max_length=None,
        packing=False,
        padding_free=not vision and (train.packing or train.padding_free),
    )


def training_arguments(
    config: type, train: TrainSection, folder: RunFolder, steps: int, seed: int, *, bf16: bool, cpu: bool, **more: Any
) -> Any:
    """A TRL configuration of class `config` for a recipe; joins the process group. `set_steps` changes the steps later."""
    micro, passes = micro_batch(train)
    args = config(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=passes,
        learning_rate=train.lr,
        lr_scheduler_type=train.schedule,
        warmup_steps=round(train.warmup * steps),
        weight_decay=train.weight_decay,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        gradient_checkpointing=train.gradient_checkpointing,
        logging_steps=train.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would log a loss that is no number as zero
        save_strategy="steps" if train.save_every else "no",
        save_steps=train.save_every or 500,
        dataloader_num_workers=train.workers,
        dataloader_pin_memory=not cpu,
        train_sampling_strategy="sequential",
        seed=seed,
        data_seed=seed,
        bf16=bf16,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        ddp_timeout=WAIT_SECONDS,
        **device_arguments(),
        **more,
    )
    check_world(args.world_size)
    use_one_device(args)
    return args


def use_one_device(args: Any) -> None:
    """One process trains on one GPU, however many it sees: several are for `lore launch`, and TRL refuses DataParallel."""
    if world_size() == 1 and args.n_gpu > 1:
        args._n_gpu = 1


def set_steps(args: Any, train: TrainSection, steps: int) -> None:
    """The length of the run, once the rows are counted."""
    args.max_steps, args.warmup_steps = steps, round(train.warmup * steps)


class Recorder(TrainerCallback):
    """Writes metrics.jsonl, the checkpoints' cards and `complete` markers, and draws the main process's bar.

    keep: whole checkpoints that stay on disk; recorded: the logged values that metrics.jsonl gets, by name or by the
    part before the first `/`. Raises LoreError on the first loss or gradient that is no number.
    """

    def __init__(
        self,
        folder: RunFolder,
        title: str,
        card: dict[str, Any] | None = None,
        keep: int = 2,
        recorded: Collection[str] = RECORDED,
    ):
        self.folder, self.title, self.card, self.keep, self.recorded = folder, title, card, keep, recorded
        self.trainer = self.bar = self.task = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, note="")
        self.bar.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True  # the summary's loss is the last one
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        kept = {key: value for key, value in logs.items() if key in self.recorded or key.partition("/")[0] in self.recorded}
        self.folder.record({"step": state.global_step, **kept})
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0))):
                raise LoreError(
                    f"step {state.global_step}: {name} is {float(logs[name])}, so every later weight would be no number.\n"
                    "Lower train.lr or raise train.warmup, and train in bfloat16 or float32 (model.dtype). The same "
                    "command goes on from the last checkpoint; for other values give another `run` name.",
                    same_on_every_rank=True,
                )
        if self.bar:
            self.bar.update(self.task, note=f"loss {float(logs['loss']):.3f}")

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.card is not None:
                write_card(checkpoint, self.card)
            (checkpoint / COMPLETE).touch()
            drop_old_checkpoints(checkpoint.parent, self.keep)

    def stop_bar(self) -> None:
        if self.bar:
            self.bar.stop()








def train(trainer: Any, recorder: Recorder, folder: RunFolder, lr_factors: dict[str, float] | None = None) -> float:
    """Trains from the newest whole checkpoint, or from the start, to the end; returns the seconds this took."""
    recorder.trainer = trainer
    whole_layers_in_float32(trainer)
    scale_rates(trainer, lr_factors or {})
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder)
    checkpoint = last_checkpoint(folder)
    folder.truncate_metrics(_step_of(checkpoint))
    trainer.accelerator.wait_for_everyone()
    try:
        done = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        recorder.stop_bar()
    return done.metrics["train_runtime"]
