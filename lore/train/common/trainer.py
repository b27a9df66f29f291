"""Shared by all training stages, for transformers' Trainer and TRL's trainers: arguments from a recipe, metrics.jsonl, and
checkpoints that survive SIGKILL. A stage calls it in this order:

    set_seed(recipe.seed)                              # new heads and adapters are initialized at random
    args = training_arguments(TrainingArguments, recipe.train, folder, 1, recipe.seed, bf16=bf16, cpu=cpu)
    with args.main_process_first(local=False):
        rows = ...                                     # the main process writes them, every process reads them (arrow_rows)
    steps = total_steps(recipe.train, len(rows))
    set_steps(args, recipe.train, steps)
    model = load_model(recipe.model, device=device, for_training=True)
    order = training_order(rows["length"][:], recipe.train.batch_size, steps, recipe.seed)
    trainer = Trainer(model=model, args=args, train_dataset=rows.select(order), ...)
    train(trainer, Recorder(folder, "title"), folder, recipe)
    save_weights(trainer, folder / "model")

metrics.jsonl contains no timestamps, so an interrupted and resumed run ends with the same file as an uninterrupted run.
"""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from trl import SFTConfig

from lore.engines.loading import default_device, resolve_dtype
from lore.run.devices import check_world, device_arguments
from lore.run.launch_settings import DTYPES, check_optimization, mixed_precision, outside_precision
from lore.run.run_folder import RunFolder
from lore.support.bounds import MAX_SEED
from lore.support.console import Progress, TextColumn
from lore.support.errors import LoreError
from lore.support.library_logging import silence
from lore.support.processes import say, world_size
from lore.train.common.checkpoint import drop_old_checkpoints, last_checkpoint, mark_complete, step_of
from lore.train.common.checkpoint_pickles import check_pickles
from lore.train.common.config import TrackedRecipe, TrainSection
from lore.train.common.frozen_weights import FrozenWeights
from lore.train.common.lora import whole_layers_in_float32
from lore.train.common.lr_multipliers import scale_rates
from lore.train.common.trackers import tracked

RECORDED = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")
MAX_VISITS = 10**10  # 80 GB for the order of the rows
WAIT_SECONDS = 6 * 3600  # timeout of the other processes while the main process renders the rows

silence()


def training_arguments(
    config: type, train: TrainSection, folder: RunFolder, steps: int, seed: int, *, bf16: bool, cpu: bool, **more: Any
) -> Any:
    """Arguments of class `config` (transformers' TrainingArguments or a subclass of TRL) for a recipe; joins the process group.

    The trainer visits rows in the order of the data set, which `batch_order.training_order` determines. `set_steps` changes
    the number of steps later. more: arguments that `config` has in addition to TrainingArguments. Raises LoreError if the launcher
    would optimize otherwise than `train` says.
    """
    micro, passes = micro_batch(train)
    check_optimization(max_grad_norm=train.max_grad_norm, micro_batch=micro, passes=passes, batch_size=train.batch_size)
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
        logging_nan_inf_filter=False,  # the filter would log a nan loss as zero
        save_strategy="steps" if train.save_every else "no",
        save_steps=train.save_every or 500,
        dataloader_num_workers=train.workers,
        dataloader_pin_memory=not cpu,
        train_sampling_strategy="sequential",
        seed=seed % (MAX_SEED + 1 - world_size()),  # TRL adds the rank of the process
        data_seed=seed,
        bf16=bf16,
        fp16=mixed_precision("auto", "no") == "fp16" and not bf16,
        remove_unused_columns=False,
        report_to=[],  # lore.train.common.trackers
        disable_tqdm=True,
        ddp_timeout=WAIT_SECONDS,
        **device_arguments(),
        **more,
    )
    check_world(args.world_size)
    use_one_device(args)
    return args


def sft_arguments(
    train: TrainSection, folder: RunFolder, steps: int, seed: int, *, bf16: bool, vision: bool, cpu: bool
) -> SFTConfig:
    """`training_arguments` for TRL's SFTTrainer.

    The stage orders, packs and flattens the rows, so TRL does not shuffle, truncate or pack.
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


def own_network_arguments(train: TrainSection, folder: RunFolder, steps: int, seed: int) -> TrainingArguments:
    """`training_arguments` for a small network of LORE's own: bfloat16 where the device is good at it, unless the launcher says
    otherwise."""
    device = default_device()
    own = "bf16" if resolve_dtype("auto", device) == torch.bfloat16 else "no"
    bf16 = mixed_precision("auto", own) == "bf16"
    return training_arguments(TrainingArguments, train, folder, steps, seed, bf16=bf16, cpu=device == "cpu")


def refuse_sharding(trainer: Any, model: str) -> None:
    """Raises LoreError for a launch configuration that shards the weights of a network that is saved from one process. model: what
    it is, with its article."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise LoreError(
            f"The launch configuration shards the weights, and {model} is small enough to be whole on every device; its weights "
            "would not be gathered for a save.\nLaunch with launch/accelerate/ddp.yaml.",
            same_on_every_rank=True,
        )


def micro_batch(train: TrainSection) -> tuple[int, int]:
    """(micro-batch size, gradient accumulation steps) for a global batch of train.batch_size."""
    processes = world_size()
    if train.batch_size % processes:
        raise LoreError(
            f"train.batch_size is {train.batch_size} and there are {processes} processes, so the batch cannot be "
            "split evenly.\nUse a batch_size that is a multiple of the number of processes.",
            same_on_every_rank=True,
        )
    share = train.batch_size // processes
    micro = min(train.micro_batch_size or share, share)
    if share % micro:
        raise LoreError(
            f"train.batch_size {train.batch_size} over {processes} processes is {share} rows per process, which "
            f"micro_batch_size {micro} does not divide.\nUse a divisor of {share}.",
            same_on_every_rank=True,
        )
    return micro, share // micro


def use_one_device(args: Any) -> None:
    """Restricts a single process to one GPU, because TRL does not support DataParallel. Use `lore launch` for several GPUs."""
    if world_size() == 1 and args.n_gpu > 1:
        args._n_gpu = 1


def total_steps(train: TrainSection, rows: int) -> int:
    """Total number of optimizer steps. Raises LoreError if the order of all their rows could not be held in memory."""
    steps = train.steps or max(1, math.ceil(rows * train.epochs / train.batch_size))
    if steps * train.batch_size > MAX_VISITS:
        raise LoreError(
            f"{steps:,} steps of train.batch_size {train.batch_size:,} visit {steps * train.batch_size:,} rows, more than the "
            f"{MAX_VISITS:,} whose order can be prepared.\nLower train.{'steps' if train.steps else 'epochs'} or train.batch_size."
        )
    return steps


def set_steps(args: Any, train: TrainSection, steps: int) -> None:
    """Sets the number of steps, once the number of rows is known."""
    args.max_steps, args.warmup_steps = steps, round(train.warmup * steps)


class Recorder(TrainerCallback):
    """Writes metrics.jsonl and the checkpoints' `complete` markers, and shows the progress bar of the main process.

    keep: number of complete checkpoints to keep; recorded: logged values to write to metrics.jsonl, by name or by the part
    before the first `/`; on_saved: called in the main process with the checkpoint's folder before its marker is written, to
    add files. Raises LoreError if a loss or gradient norm is not finite.
    """

    def __init__(
        self,
        folder: RunFolder,
        title: str,
        *,
        keep: int = 2,
        recorded: Collection[str] = RECORDED,
        on_saved: Callable[[Path], None] | None = None,
    ):
        self.folder, self.title, self.keep, self.recorded, self.on_saved = folder, title, keep, recorded, on_saved
        self.trainer = self.bar = self.task = None

    def on_train_begin(self, args, state, control, **kwargs):
        say(computation(self.trainer))
        if not state.is_world_process_zero:
            return
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
            control.should_log = True  # the summary reports the loss of the last step
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        kept = {key: value for key, value in logs.items() if key in self.recorded or key.partition("/")[0] in self.recorded}
        self.folder.record({"step": state.global_step, **kept})
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0))):
                raise LoreError(
                    f"step {state.global_step}: {name} is {float(logs[name])}, so all further weights would be invalid.\n"
                    "Lower train.lr or raise train.warmup, and train in bfloat16 or float32 (model.dtype). The same "
                    "command resumes from the last checkpoint; to change values, choose another `run` name.",
                    same_on_every_rank=True,
                )
        if self.bar:
            self.bar.update(self.task, note=f"loss {float(logs['loss']):.3f}")

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if self.on_saved is not None:
                self.on_saved(checkpoint)
            mark_complete(checkpoint)
            drop_old_checkpoints(checkpoint.parent, self.keep)

    def stop_bar(self) -> None:
        if self.bar:
            self.bar.stop()


def computation(trainer: Any) -> str:
    """One line: dtype of the computation and what decides it, dtypes of the weights, devices and sharding. Call it when the trainer
    has placed the model. Raises LoreError if accelerate computes in another precision than the trainer's arguments say."""
    accelerator, found = trainer.accelerator, outside_precision()
    word, asked = accelerator.mixed_precision, trainer.args.mixed_precision
    decides = found[1] if found else "the recipe"
    if word != asked:
        raise LoreError(
            f"Training would compute in mixed precision {word!r}, but the recipe asks for {asked!r} ({decides}).\n"
            "Another Accelerator was created before, or a config file decides: set mixed_precision: 'no' there.",
            same_on_every_rank=True,
        )
    kinds: dict[tuple[str, str], int] = {}
    for weight in trainer.model.parameters():
        kind = "trained" if weight.requires_grad else "frozen", str(weight.dtype).removeprefix("torch.")
        kinds[kind] = kinds.get(kind, 0) + getattr(weight, "ds_numel", weight.numel())
    weights = ", ".join(f"{count:,} {state} in {dtype}" for (state, dtype), count in sorted(kinds.items(), reverse=True))
    computed = DTYPES[word] if word != "no" else " and ".join(sorted({dtype for _, dtype in kinds}))
    if accelerator.device.type == "cuda" and "float32" in computed and torch.backends.cuda.matmul.allow_tf32:
        computed += " (matrix products in TF32)"
    plugin = accelerator.state.deepspeed_plugin
    sharding = (
        f", DeepSpeed ZeRO-{plugin.zero_stage}"
        if plugin
        else f", FSDP {accelerator.state.fsdp_plugin.fsdp_version}"
        if trainer.is_fsdp_enabled
        else ""
    )
    compiled = accelerator.state.dynamo_plugin.backend.value.lower()
    processes = f"{accelerator.num_processes} process{'es' * (accelerator.num_processes > 1)} on {accelerator.device.type}"
    return (
        f"computes in {computed} ({decides}); weights: {weights}; {processes}{sharding}"
        f"{'' if compiled == 'no' else f', torch.compile ({compiled})'}"
    )


def train(trainer: Any, recorder: Recorder, folder: RunFolder, recipe: TrackedRecipe | None = None) -> float:
    """Trains to the end, from the newest complete checkpoint if there is one; returns the training time in seconds. recipe: None
    uses one learning rate and no trackers. Raises LoreError if a frozen weight changes, or if the checkpoint's
    files would run code that is not the trainer's."""
    recorder.trainer = trainer
    whole_layers_in_float32(trainer)
    scale_rates(trainer, recipe.train.lr_factors if recipe else {})
    frozen = FrozenWeights(trainer)
    trainer.check_frozen = frozen.check
    trainer.callback_handler.callbacks.insert(0, frozen)  # before callbacks that sample when training begins
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(recorder)
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        check_pickles(checkpoint)
    folder.truncate_metrics(step_of(checkpoint))
    trainer.accelerator.wait_for_everyone()
    with tracked(recipe, folder):
        try:
            done = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            recorder.stop_bar()
    frozen.check("at the end of training")  # after all callbacks, which may write to weights, too
    return done.metrics["train_runtime"]
