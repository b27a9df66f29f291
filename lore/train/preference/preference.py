"""Stages dpo and kto, on TRL's trainers: a judge learns which of two answers is better (DPO), or whether an answer is good or
bad (KTO). The initial model is the reference model, so all implicit rewards are 0 at step 0; the run checks this.

Differences from TRL's scripts: prompts and answers are tokenized as in stage sft, there is no truncation, the row order is
fixed, and checkpoints do not contain the reference adapter, because transformers would otherwise resume from it.

    lore run recipes/quickstart/dpo.yaml
    accelerate launch --config_file launch/accelerate/ddp.yaml recipes/dpo.yaml
"""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import read_pairs
from lore.data.rejected_rows import RejectedWriter, Rejection
from lore.engines.loading import load_model
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say, world_size
from lore.support.progress import track
from lore.train.common.arrow_rows import rendered_rows, write_rows
from lore.train.common.batch_order import training_order
from lore.train.common.neighbors import check_lengths
from lore.train.common.prefix_groups import group_by_prefix
from lore.train.common.shared_prefix import SharedPrefix
from lore.train.common.trainer import RECORDED, Recorder, set_steps, total_steps, train, training_arguments
from lore.train.common.trl_internals import TokenizedRows
from lore.train.judge.dry_pass import check_training
from lore.train.judge.image_store import photo_file
from lore.train.judge.mixed_photos import check_mixed_photos
from lore.train.judge.rows import rejection_of, takes_photos
from lore.train.judge.session import ReferenceStaysOut, Start, begin, complete_model, judge_lora, rejected_rows, trained_model
from lore.train.pool.curriculum import chosen_pairs, chosen_rows
from lore.train.preference.batch import collator, kto_weights
from lore.train.preference.config import DPORecipe, PreferenceRecipe
from lore.train.preference.report import preflight
from lore.train.preference.rows import FIELDS, Preference, Renderer, from_pool, from_table, preference_schema
from lore.train.watch.attach import probe_pairs, watched

KEPT = (*RECORDED, "rewards", "logps", "kl")  # logged values that go to metrics.jsonl
ANSWER_TOKENS = 256  # default of watch.max_tokens
START_NATS = 1.0  # tolerated rounding difference of an answer's log-probability between initial and reference model


class _DPO(TokenizedRows, DPOTrainer):
    """DPOTrainer for rows that are already tokenized."""


class _KTO(TokenizedRows, KTOTrainer):
    """KTOTrainer for rows that are already tokenized. The collator pairs prompts with other answers for the KL estimate."""


def run(recipe: PreferenceRecipe, folder: RunFolder) -> None:
    """Trains, then saves the adapter (or the full model), the processor and the judge's card in <run>/model."""
    start = begin(recipe)
    processor = start.processor
    photos, source = takes_photos(processor, start.fmt), PairSource(recipe.data, folder)
    args = arguments(recipe, folder, bf16=start.bf16, cpu=start.device == "cpu")
    with args.main_process_first(local=False, desc="preferences"):
        rows = load_rows(recipe, source, start)
    # After load_rows: the main process has imported the data by then.
    probe = probe_pairs(recipe.watch, source, photos=photos)
    if recipe.stage == "kto":
        args.desirable_weight, args.undesirable_weight = kto_weights(recipe, rows["label"][:])
    steps = total_steps(recipe.train, len(rows))
    set_steps(args, recipe.train, steps)
    model = trained_model(recipe, start)
    lora = judge_lora(recipe, model)
    asked = [("the longest prompt of the probe (watch)", probe, recipe.watch.max_tokens or ANSWER_TOKENS)]
    def neighbors() -> None:
        check_lengths(model.config, read_lengths(recipe, rows))

    check_training(recipe, folder, start, model, args, steps=steps, neighbors=neighbors, rows=rows, asked=asked)
    in_full = lora is None and recipe.model.adapter is None
    shuffle = recipe.preferences.pool is None or recipe.preferences.pool.order == "random"
    order = training_order(rows["length"][:], recipe.train.batch_size, steps, recipe.seed, shuffle=shuffle)
    if recipe.stage == "dpo" or recipe.loss != "kto":  # kto pairs prompts with answers of the pass, which have to be unlike
        order = group_by_prefix(order, rows, recipe.train, args.per_device_train_batch_size, model, lora)
    names = FIELDS[recipe.stage]
    columns = ["prompt", *names, "images"] if photos else ["prompt_ids", *(f"{name}_ids" for name in names)]
    trainer = (_DPO if recipe.stage == "dpo" else _KTO)(
        model=model,
        ref_model=load_model(recipe.model, device=start.device, for_training=True) if in_full else None,
        args=args,
        train_dataset=rows.select_columns([*columns, "pair_id", *(["label"] if recipe.stage == "kto" else [])]).select(order),
        processing_class=processor if photos else getattr(processor, "tokenizer", processor),
        data_collator=collator(recipe, processor, photos),
        peft_config=lora,
        callbacks=callbacks(recipe),
    )
    if trainer.is_fsdp_enabled and in_full:
        raise LoreError(
            f"stage {recipe.stage} trains every weight, and its reference model does not get its weights under FSDP.\n"
            "Launch with launch/accelerate/zero3.yaml, or train LoRA (model.lora).",
            same_on_every_rank=True,
        )
    answers = args.per_device_train_batch_size * (2 if recipe.stage == "dpo" else 1)  # both of a pair
    SharedPrefix(trainer, recipe.train.shared_prefix, getattr(processor, "tokenizer", processor), answers)
    if "images" in rows.column_names and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        shown = pc.sum(pc.greater(pc.list_value_length(rows.data.column("images")), 0)).as_py()
        check_mixed_photos(shown, len(rows), "preferences", "launch/accelerate/ddp.yaml")
    if is_main_process():
        preflight(recipe, rows, trainer, processor, steps)
    watch = watched(trainer, recipe, folder, start, probe, title=recipe.stage, max_tokens=ANSWER_TOKENS)
    recorder = Recorder(folder, recipe.stage, keep=recipe.train.keep_checkpoints, recorded=KEPT, on_saved=start.write_card)
    seconds = train(trainer, recorder, folder, recipe)
    seen = watch.finish(trainer)
    if is_main_process():
        complete_model(folder, start)
        last = folder.last_record("loss")
        summary = {"preferences": len(rows), "rejected": rejected_rows(folder), "steps": trainer.state.global_step}
        summary |= {"loss": last["loss"], **seen}
        folder.finish(
            {**summary, "margin": last.get("rewards/margins"), "train_seconds": round(seconds, 2), "model": str(folder / "model")}
        )


def read_lengths(recipe: PreferenceRecipe, rows: datasets.Dataset) -> list[int]:
    """Tokens of every sequence that the trainer reads. KTO's KL estimate also reads prompts with the answers of other rows."""
    answers = np.array([rows[f"{name}_tokens"][:] for name in FIELDS[recipe.stage]])
    prompts = np.array(rows["length"][:]) - answers.max(axis=0)
    found = (prompts + answers).ravel().tolist()
    if recipe.stage == "kto" and recipe.loss == "kto":
        found += [int(prompts.min() + answers.min()), int(prompts.max() + answers.max())]
    return found


def callbacks(recipe: PreferenceRecipe) -> list[TrainerCallback]:
    """Callbacks of the trainer. The Recorder is added last, so a checkpoint is complete when it writes the marker."""
    return [StartIsReference(recipe.beta), ReferenceStaysOut()]


def arguments(recipe: PreferenceRecipe, folder: RunFolder, *, bf16: bool, cpu: bool) -> DPOConfig | KTOConfig:
    """TRL's config for the stage; `set_steps` sets the number of steps later."""
    common = {"beta": recipe.beta, "max_length": None, "pad_to_multiple_of": None}
    if isinstance(recipe, DPORecipe):
        losses = {"loss_type": list(recipe.loss), "loss_weights": list(recipe.loss.values())}
        more, config = common | losses | {"label_smoothing": recipe.label_smoothing}, DPOConfig
    else:
        more, config = common | {"loss_type": recipe.loss}, KTOConfig
    args = training_arguments(config, recipe.train, folder, 1, recipe.seed, bf16=bf16, cpu=cpu, **more)
    if recipe.stage == "kto" and recipe.loss == "kto" and args.per_device_train_batch_size < 2:
        raise LoreError(
            f"One process would see {args.per_device_train_batch_size} answer per forward pass (train.batch_size "
            f"{recipe.train.batch_size}, {world_size()} processes), but KTO estimates the KL divergence by pairing each prompt "
            "with another answer of the pass.\nRaise train.batch_size or train.micro_batch_size, or set loss: apo_zero_unpaired."
        )
    return args


def load_rows(recipe: PreferenceRecipe, source: PairSource, start: Start) -> datasets.Dataset:
    """The preferences, rendered once by the main process and memory-mapped by all processes."""
    folder, rubric, fmt, processor = source.folder, start.rubric, start.fmt, start.processor
    path = folder / "data" / "rows.arrow"
    if is_main_process():
        folder.note(data_fingerprint=source.fingerprint, **start.hashes)
        if not path.is_file():
            schema = preference_schema(recipe.stage, takes_photos(processor, fmt))
            with RejectedWriter(folder / "rows.arrow", folder / "rejected.jsonl") as rejected:
                renderer = Renderer(rubric, fmt, processor, recipe.train.max_tokens)
                rows = _rendered(_preferences(recipe, source, start, rejected), renderer, rejected)
                write_rows(rejected.before(rows), schema, path)
            photo_file(folder).unlink(missing_ok=True)  # the rows contain their photos
            if rejected.count:
                say(f"{rejected.count:,} preferences were rejected; {rejected.path} lists them with their reasons")
    return rendered_rows(path)


def _preferences(recipe, source: PairSource, start: Start, rejected) -> Iterator[tuple[str, int, Pair, Preference]]:
    """(file, row, pair, preference) from the pool, then from the tables."""
    section, rubric, fmt = recipe.preferences, start.rubric, start.fmt
    if section.pool is not None:
        chosen = chosen_rows(section.pool, recipe.seed, start.hashes["renderer_hash"], recipe.model)
        found = chosen_pairs(chosen, source, photos=takes_photos(start.processor, fmt))
        by_id = {pair.pair_id: pair for pair in found}
        made = from_pool(chosen, found, recipe.stage, section, rubric, fmt, recipe.seed)
        for number, preference in enumerate(made, 1):
            yield section.pool.path, number, by_id[preference.pair_id], preference
    if not section.tables:
        return
    known = {pair.pair_id for pair in read_pairs(source.path, split=recipe.data.split, columns=[])}
    written: list[tuple[str, int, Preference]] = []
    for file in section.tables:
        for item in from_table(file, recipe.stage, known, rubric, fmt):
            if isinstance(item, Rejection):
                rejected.write(item)
            else:
                written.append((file, *item))
    needed = {preference.pair_id for _, _, preference in written}
    stored = read_pairs(source.path, split=recipe.data.split, image_roots=source.image_roots)
    by_id = {pair.pair_id: pair for pair in stored if pair.pair_id in needed}
    for file, number, preference in written:
        yield file, number, by_id[preference.pair_id], preference


def _rendered(preferences, renderer: Renderer, rejected: RejectedWriter) -> Iterator[dict[str, Any]]:
    kept, first = 0, None
    for file, number, pair, preference in track(preferences, "rendering preferences"):
        try:
            row = renderer.row(pair, preference)
        except LoreError as error:
            rejection = rejection_of(pair, error, file, number)
            first = first or rejection
            rejected.write(rejection)
            continue
        kept += 1
        yield row
    if not kept:
        example = f"; first one: {first}" if first else ""
        raise LoreError(
            f"There is no preference to learn from: {rejected.count:,} were rejected{example}.\n"
            "A pool gives preferences for pairs with right and wrong samples (pass rates between 0 and 1; preferences.gold: true "
            "adds pairs whose samples are all wrong). The rows of a table have to name pairs of the data section."
        )


class StartIsReference(TrainerCallback):
    """Stops a run whose initial model differs from its reference model, because its rewards would be wrong."""

    def __init__(self, beta: float):
        self.beta = beta

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step != 1:
            return
        for name in ("rewards/chosen", "rewards/rejected"):
            if abs(float(logs.get(name, 0.0))) > START_NATS * self.beta:
                raise LoreError(
                    f"{name} is {float(logs[name]):.3f} before the first update and has to be 0, so the reference model is not "
                    "the initial judge.\nThis launch configuration breaks the copy of the adapter. Launch with "
                    "launch/accelerate/ddp.yaml, or merge the adapter (lore export --merge) and train a new model.lora.",
                    same_on_every_rank=True,
                )
