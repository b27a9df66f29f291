"""Rows per second of training on rows that begin with the same rubric: TRL's trainers, and with the rubric computed once.

    OMP_NUM_THREADS=1 python benchmarks/shared_prefix_training.py [--width 256] [--layers 3] [--vocabulary 8192] [--only 1200/16]
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix_training.py --group
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix_training.py --break-even [--width 256] [--layers 3]
    OMP_NUM_THREADS=1 python benchmarks/shared_prefix_training.py --width 576 --layers 30 --vocabulary 49152 \
        --checkpointing --trl-rows 4    SmolLM2-135M's shape; TRL's own trainer would need more memory for 16 rows at once

Three ways take turns, each time in a process of its own: TRL's SFTTrainer; the same with logits at labels only; the same with the
rubric computed once (`train.shared_prefix`). Rows have a rubric of 1,200 or 3,000 tokens, 90 tokens of their own, and a verdict of
10 labeled tokens among them. With --grpo the ways are measured on all that a step of GRPO computes after sampling: TRL's pass for
the old log-probabilities, its loss, the gradient, and AdamW's step, for groups of answers of 64 tokens to a prompt of 2,350 tokens.

With --group a step of 16 rows in micro-batches of 4 is measured with its rows in shuffled order, sorted by length, and grouped by
what they begin with, each time with `train.shared_prefix`: 4 items for each of 4 queries under one rubric, and under 4 rubrics.

With --break-even one model computes log-probabilities and their gradient with and without sharing, in turns, for rows that share
from nothing to a third of their tokens. LEAST_SAVED of lore/train/common/shared_prefix.py comes from these numbers.

The models are Llamas with random weights. Seconds are CPU seconds, because the machine is shared; losses of the ways are compared.
Memory is the peak of the process above what it had before the trainer.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import datasets
import numpy as np
import tiny
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from lore.train.common import shared_prefix
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.prefix_groups import in_groups
from lore.train.common.shared_prefix import SharedPrefix, join_attention, lay_out
from lore.train.common.trl_internals import fused_logps

WAYS = ("TRL", "logits at labels", "rubric once")
OWN, LABELED = 90, 10
PROMPT, ANSWER = 2350, 64
SFT, GRPO = ((1200, 16), (3000, 32)), ((PROMPT, 8), (PROMPT, 16))
BREAK_EVEN = (  # rows, tokens of each, (tokens of a prefix, rows that begin with it)
    (4, 150, ((33, 2), (33, 3), (33, 4), (60, 4))),
    (16, 150, ((60, 2), (60, 4), (60, 6), (60, 10))),
    (4, 450, ((50, 2), (50, 4), (100, 4), (150, 4))),
)
ORDERS, QUERY, MICRO = ("shuffled", "sorted by length", "grouped by prefix"), 40, 4


def model_of(chosen: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = chosen.width // 64
    config = LlamaConfig(
        vocab_size=chosen.vocabulary,
        hidden_size=chosen.width,
        num_hidden_layers=chosen.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        intermediate_size=8 * chosen.width // 3,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def tokens(count: int, limit: int) -> list[int]:
    return torch.randint(10, limit, (count,)).tolist()


def sft(chosen: argparse.Namespace, tokenizer, way: str, prefix: int, rows: int) -> tuple[float, list[float]]:
    """(CPU seconds a step, losses)."""
    model, passes = model_of(chosen), 1
    rubric, made = tokens(prefix, chosen.vocabulary), []
    for number in range(rows * chosen.steps):
        own = tokens(OWN - number % 9, chosen.vocabulary)
        labels = [IGNORE] * (prefix + len(own) - LABELED) + own[-LABELED:]
        made.append({"input_ids": rubric + own, "labels": labels})
    if way == WAYS[0] and chosen.trl_rows:
        passes = rows // chosen.trl_rows
    return train(chosen, tokenizer, way, model, made, rows // passes, passes)


def train(chosen: argparse.Namespace, tokenizer, way: str, model, made: list[dict], rows: int, passes: int):
    """(CPU seconds a step, losses) of TRL's SFTTrainer on `made`, in its order, `passes` micro-batches of `rows` a step."""
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder,
            max_steps=chosen.steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=passes,
            train_sampling_strategy="sequential",
            shuffle_dataset=False,
            max_length=None,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=chosen.checkpointing,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = SFTTrainer(model, args, train_dataset=datasets.Dataset.from_list(made), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        share(trainer, tokenizer, way)
        trainer.add_callback(clock := Clock())
        trainer.train()
    return median(clock.seconds), [line["loss"] for line in trainer.state.log_history if "loss" in line]


class Clock(TrainerCallback):
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__) -> None:
        self.began = time.process_time()

    def on_step_end(self, *_, **__) -> None:
        self.seconds.append(time.process_time() - self.began)


def grpo(chosen: argparse.Namespace, tokenizer, way: str, prefix: int, rows: int) -> tuple[float, list[float]]:
    """(CPU seconds of a step after its sampling, [loss, norm of the gradient])."""
    model = model_of(chosen)
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(folder, per_device_train_batch_size=rows, num_generations=rows, report_to=[], use_cpu=True, bf16=False)
        asked = datasets.Dataset.from_list([{"prompt": "a"}] * rows)
        trainer = GRPOTrainer(model, lambda **_: [], args, asked, processing_class=tokenizer)
        sharing = share(trainer, tokenizer, way)
        trainer.model_wrapped, trainer.current_gradient_accumulation_steps = trainer.model, 1
        sharing and sharing.on_train_begin(None, None, None)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
        prompt = torch.tensor([tokens(prefix, chosen.vocabulary)] * rows)
        answers = torch.tensor([tokens(ANSWER, chosen.vocabulary) for _ in range(rows)])
        lengths = ANSWER - torch.arange(rows) % 5 * 8
        mask = (torch.arange(ANSWER) < lengths[:, None]).long()
        batch = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": answers, "completion_mask": mask}
        batch |= {"advantages": torch.linspace(-1, 1, rows), "num_items_in_batch": mask.sum()}
        whole = torch.cat([prompt, answers], dim=1), torch.cat([batch["prompt_mask"], mask], dim=1)
        began = time.process_time()
        with torch.no_grad():
            batch["old_per_token_logps"] = trainer._get_per_token_logps_and_entropies(model, *whole, ANSWER, batch_size=rows)[0]
        loss = trainer._compute_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds = time.process_time() - began
    return seconds, [loss.item(), norm.item()]


def break_even(chosen: argparse.Namespace, tokenizer) -> None:
    """Prints how many times as fast sharing is, by the share of the tokens that it saves."""
    model = model_of(chosen).train()
    trainer = SimpleNamespace(model=model, args=SimpleNamespace(per_device_train_batch_size=2), add_callback=lambda _: None)
    add_fused_lm_head(model)
    sharing = SharedPrefix(trainer, True, tokenizer)
    join_attention(model.config._attn_implementation)
    shared_prefix.LEAST_SAVED = 0
    print("rows  tokens  prefix  rows with it  saved  times as fast")
    for rows, length, cases in BREAK_EVEN:
        for prefix, having in cases:
            first = tokens(prefix, chosen.vocabulary)
            own = [tokens(length, chosen.vocabulary) for _ in range(rows)]
            ids = torch.tensor([first + row[prefix:] if number < having else row for number, row in enumerate(own)])
            labels = ids.clone()
            labels[:, :-LABELED] = IGNORE
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            ratios = []
            for turn in range(2 * chosen.turns + 1):
                spent = {}
                for sharing.active in (True, False) if turn % 2 else (False, True):
                    began = time.process_time()
                    fused_logps(model, batch).sum().backward()
                    spent[sharing.active] = time.process_time() - began
                if turn:  # the first one warms up
                    ratios.append(spent[False] / spent[True])
            saved = 1 - len(sharing.laid.ids) / ids.numel()
            found = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{rows:4}  {length:6}  {prefix:6}  {having:12}  {saved:5.1%}  {found}", flush=True)


def grouped(chosen: argparse.Namespace, tokenizer, order: str, prefix: int, rubrics: int) -> tuple[float, list[float], int]:
    """(CPU seconds a step, losses, tokens that a step computes) of rows in one of ORDERS."""
    model, made = model_of(chosen), []
    heads = [tokens(prefix, chosen.vocabulary) for _ in range(rubrics)]
    for query in range(4):
        begins = heads[query % rubrics] + tokens(QUERY, chosen.vocabulary)
        for item in range(4):
            own = tokens(OWN - QUERY - item * 5 + query % 2 * 8, chosen.vocabulary)
            made.append({"input_ids": begins + own, "labels": [IGNORE] * (len(begins) + len(own) - LABELED) + own[-LABELED:]})
    made = [made[row] for row in torch.randperm(len(made), generator=torch.Generator().manual_seed(1)).tolist()]
    lengths = [len(row["input_ids"]) for row in made]
    if order == ORDERS[1]:
        made = sorted(made, key=lambda row: -len(row["input_ids"]))
    elif order == ORDERS[2]:
        made = [made[row] for row in in_groups([np.array(row["input_ids"], np.int32).tobytes() for row in made], lengths, MICRO)]
    batches = [[row["input_ids"] for row in made[first : first + MICRO]] for first in range(0, len(made), MICRO)]
    computed = sum(len(layout.ids) if (layout := lay_out(rows)) else sum(map(len, rows)) for rows in batches)
    seconds, losses = train(chosen, tokenizer, WAYS[2], model, made * chosen.steps, MICRO, len(made) // MICRO)
    return seconds, losses, computed


def share(trainer, tokenizer, way: str) -> SharedPrefix | None:
    return SharedPrefix(trainer, way == WAYS[2], tokenizer) if way != WAYS[0] else None


def apart(measure, *arguments) -> tuple:
    """(CPU seconds, numbers to compare, ..., MB) of a measurement in a process of its own."""
    context = multiprocessing.get_context("fork")
    out, into = context.Pipe(duplex=False)

    def work() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = measure(*arguments)
        into.send((*found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000))

    process = context.Process(target=work)
    process.start()
    into.close()
    try:
        return out.recv()
    except EOFError:
        sys.exit(f"{measure.__name__} {arguments[2:]} failed")
    finally:
        process.join()


def compare_orders(chosen: argparse.Namespace, tokenizer) -> None:
    for prefix, rubrics in ((1200, 1), (1200, 4)):
        found = {order: [] for order in ORDERS}
        for turn in range(chosen.turns):
            for order in ORDERS if turn % 2 == 0 else ORDERS[::-1]:
                found[order].append(apart(grouped, chosen, tokenizer, order, prefix, rubrics))
        print(f"4 queries x 4 items under {rubrics} rubric{'s' * (rubrics > 1)} of {prefix:,}, micro-batches of {MICRO} of 16")
        first = [run[0] for run in found[ORDERS[0]]]
        for order, runs in found.items():
            ratios = [one / run[0] for one, run in zip(first, runs, strict=True)]
            far = max(abs(a - b) / abs(b) for run in runs for a, b in zip(run[1], found[ORDERS[0]][0][1], strict=True))
            speed, memory = 16 / median(run[0] for run in runs), max(run[-1] for run in runs)
            print(
                f"  {order}: {runs[0][2]:,} tokens a step, {speed:.2f} rows/s, {median(ratios):.2f} x ({min(ratios):.2f} to "
                f"{max(ratios):.2f}), {memory:,.0f} MB; losses differ by {far:.0e}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, in every way")
    parser.add_argument("--trl-rows", type=int, help="rows a micro-batch of TRL's own trainer; a step has as many as the others")
    parser.add_argument("--whole-rows", type=int, help="rows a step of the ways that read every rubric; losses are not compared")
    parser.add_argument("--grpo", action="store_true")
    parser.add_argument("--break-even", action="store_true")
    parser.add_argument("--group", action="store_true")
    parser.add_argument("--only", help="one size, as prefix/rows: 1200/16")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(tiny.make(Path(folder)).text)
    size = sum(weight.numel() for weight in model_of(chosen).parameters()) / 1e6
    print(f"width {chosen.width}, {chosen.layers} layers, {chosen.vocabulary:,} tokens of vocabulary: {size:.1f} M parameters")
    if chosen.break_even:
        return break_even(chosen, tokenizer)
    if chosen.group:
        compare_orders(chosen, tokenizer)
        return
    measure, own = (grpo, ANSWER - 16) if chosen.grpo else (sft, OWN - 4)
    for prefix, rows in GRPO if chosen.grpo else SFT:
        if chosen.only and chosen.only != f"{prefix}/{rows}":
            continue
        found = {way: [] for way in WAYS}
        taken = {way: rows if way == WAYS[2] else chosen.whole_rows or rows for way in WAYS}
        for turn in range(chosen.turns):
            for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                found[way].append(apart(measure, chosen, tokenizer, way, prefix, taken[way]))
        ratio = (prefix + own) / (prefix / rows + own)
        print(f"prefix {prefix:,}, {rows} rows a micro-batch; ratio of tokens {ratio:.1f}")
        whole = [seconds / taken[WAYS[0]] for seconds, _, _ in found[WAYS[0]]]
        for way, runs in found.items():
            spent = [seconds / taken[way] for seconds, _, _ in runs]
            ratios = [one / other for one, other in zip(whole, spent, strict=True)]
            far = max(abs(a - b) / abs(b) for run in runs for a, b in zip(run[1], found[WAYS[0]][0][1], strict=True))
            compared = f"numbers differ by {far:.0e}" if taken[way] == taken[WAYS[0]] else "other rows, numbers not compared"
            print(
                f"  {way}: {1 / median(spent):.2f} rows/s, {median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}), "
                f"{max(run[2] for run in runs):,.0f} MB; {compared}",
                flush=True,
            )


if __name__ == "__main__":
    main()
