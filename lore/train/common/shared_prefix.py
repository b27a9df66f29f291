"""What rows of a micro-batch begin with is computed once, in training as in the engines; logits are computed only at labels.

A judge's prompts begin with the same instructions and rubric, the answers of a GRPO group follow one prompt, and so do the chosen
and the rejected answer of DPO. Rows that begin alike, by token ids, are laid in one sequence [1, T]:

    rubric | query | rest of row 1 | rest of row 2 | another query | rest of row 3 | ...

Positions go on from the end of the prefix, and a row attends to its prefixes and itself, so losses and gradients are those of
separate rows up to rounding. Attention has no T x T mask: each part attends causally to itself, and to the parts before it that are
its prefixes; the results are merged by their log-sum-exp. It is registered in transformers' attention interface.

All of it is inside the forward pass in which TRL's trainers compute log-probabilities: it takes and returns padded batches, so
collators, losses and trainers are as they were. A batch without a common prefix is computed as before.

Left out: attention with a window, logit soft-capping, sinks or dropout, and photos before the end of a prefix or in other models
than Idefics3 and SmolVLM. Dropout of an adapter is drawn once for the shared tokens, not for each row.
"""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from peft import LoraConfig
from transformers import AttentionInterface, TrainerCallback

from lore.engines.row_independence import LOW_PRECISION_TOLERANCE, TOLERANCE, base_of, length_rule
from lore.engines.shared_prefix import MIN_TOKENS, shared_tokens
from lore.support.allocator import give_back_freed_memory
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.trl_internals import fused_inputs, fused_logps, fused_pass, gather_output_layer, per_token_fields

INPUT = "shared_prefix"  # keyword argument by which a layout reaches the attention
SHARED_INPUTS = {"input_ids", "attention_mask", "position_ids", "use_cache"}  # a batch with others is computed whole
PHOTOS = ("pixel_values", "pixel_attention_mask")
PHOTOS_BY_ROW = {"idefics3", "smolvlm"}  # models whose PHOTOS are [rows, photos, ...], placed in the order of the tokens
LEAST_SAVED = 0.1  # of the tokens of a padded batch; below it, calls for every part cost what the tokens save (docs/lab/speed.md)
KERNEL_SIZE, EFFICIENT_QUERIES = 8, 32  # CUDA: multiples that head sizes have, and the log-sum-exp of memory-efficient attention
PROBE_TOKENS = (40, 24, 33, 9)  # prefix of the check, and what follows it in each row


class Refused(Exception):
    """Why a model cannot share prefixes."""


# The layout of a batch


@dataclass(frozen=True)
class Part:
    """Tokens [start, end) of the sequence. All of [end, last) begin with it; last is end if no row goes on from it."""

    start: int
    end: int
    last: int


class Layout:
    """Rows in one sequence.

    ids, positions: of its tokens. places: for each row, where each of its tokens is. order: row numbers in the order in which the
    rows end. attended: for each call of the attention, shape of the queries, shape of the keys, dtype.

    Not a dataclass: FSDP would copy it for each layer.
    """

    def __init__(self, rows: int):
        self.parts: list[Part] = []
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.places: list[list[int]] = [[] for _ in range(rows)]
        self.order: list[int] = []
        self.attended: list[tuple[torch.Size, torch.Size, torch.dtype]] = []


def lay_out(rows: Sequence[list[int]], photo: int | None = None) -> Layout | None:
    """The layout of rows of token ids; None if no two of them share MIN_TOKENS, or if all save less than LEAST_SAVED. A prefix
    within a prefix has MIN_TOKENS more.

    photo: id of the tokens that stand for a photo. A prefix ends before one, because two rows may have different photos."""
    room = [row.index(photo) if photo in row else len(row) for row in rows]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    near = [min(room[one], room[other], shared_tokens(rows[one], rows[other])) for one, other in pairwise(order)]
    if max(near, default=0) < MIN_TOKENS:
        return None
    layout = Layout(len(rows))
    layout.order = order

    def grow(first: int, last: int, begun: int) -> None:
        """Adds order[first:last], which begin with `begun` tokens that are laid already."""
        for at, after in alike(near, first, last, begun):
            members = order[at:after]
            until = min(near[at : after - 1], default=len(rows[members[0]]))
            start, number = len(layout.ids), len(layout.parts)
            layout.ids.extend(rows[members[0]][begun:until])
            layout.positions.extend(range(begun, until))
            end = len(layout.ids)
            for row in members:
                layout.places[row].extend(range(start, end))
            if end > start:
                layout.parts.append(Part(start, end, end))
            if len(members) > 1:
                grow(at, after, until)
                layout.parts[number] = Part(start, end, len(layout.ids))

    grow(0, len(rows), 0)
    return layout if len(layout.ids) <= (1 - LEAST_SAVED) * len(rows) * max(map(len, rows)) else None


def alike(near: Sequence[int], first: int, last: int, begun: int) -> Iterator[tuple[int, int]]:
    """[start, end) of neighbors that go on alike, among sorted rows [first, last) that share `begun` tokens: they share MIN_TOKENS
    more. near: tokens that each row shares with the next one. A row of its own counts, too."""
    while first < last:
        after = first + 1
        while after < last and near[after - 1] >= begun + MIN_TOKENS:
            after += 1
        yield first, after
        first = after


# Attention


def attend(
    plain: Callable[..., tuple],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared_prefix: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """transformers' attention function: `plain` for a batch without a layout. query [1, heads, T, size], key and value
    [1, key heads, T, size]; returns [1, T, heads, size]. Raises Refused for attention that the layout does not cover."""
    if shared_prefix is None:
        return plain(module, query, key, value, attention_mask, **options)
    for name in ("sliding_window", "softcap", "s_aux", "position_bias", "dropout"):
        if isinstance(found := options.get(name), torch.Tensor) or found:
            raise Refused(f"its attention has {name}{'' if isinstance(found, torch.Tensor) else f' {found}'}")
    if attention_mask is not None and attention_mask.numel() != 1:  # not the one that comes with a layout
        raise Refused("its attention has a mask of its own")
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if not causal or query.shape[2] != key.shape[2] or query.shape[3] != value.shape[3]:
        raise Refused("its attention is not causal attention over the tokens of a row")
    shared_prefix.attended.append((query.shape, key.shape, value.dtype))
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return SharedAttention.apply(query, key, value, scale, shared_prefix.parts).transpose(1, 2).contiguous(), None


class SharedAttention(torch.autograd.Function):
    """softmax(q k^T * scale) v of a layout, and its gradient. Both follow the parts: attention to several sets of keys is their
    average weighted by exp(log-sum-exp), and its gradient is the sum over the sets if each knows the whole output and the whole
    log-sum-exp (Ring Attention, arXiv 2310.01889)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, parts: list[Part]):
        keys, values = for_all_heads(key, query), for_all_heads(value, query)
        out = torch.empty_like(query, dtype=torch.promote_types(query.dtype, torch.float32))
        lse = out.new_empty(out.shape[:3])
        for part in parts:
            own = slice(part.start, part.end)
            out[:, :, own], lse[:, :, own] = kernel(query[:, :, own], keys[:, :, own], values[:, :, own], scale, causal=True)
        for part in parts:
            if part.last > part.end:
                own, after = slice(part.start, part.end), slice(part.end, part.last)
                more, heard = kernel(query[:, :, after], keys[:, :, own], values[:, :, own], scale, causal=False)
                both = torch.logaddexp(lse[:, :, after], heard)
                kept, added = (lse[:, :, after] - both).exp().unsqueeze(-1), (heard - both).exp().unsqueeze(-1)
                out[:, :, after] = out[:, :, after] * kept + more * added
                lse[:, :, after] = both
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.scale, ctx.parts = scale, parts
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):
        query, key, value, out, lse = ctx.saved_tensors
        keys, values = for_all_heads(key, query), for_all_heads(value, query)
        of_query = torch.zeros_like(query, dtype=lse.dtype)
        of_keys, of_values = torch.zeros_like(keys, dtype=lse.dtype), torch.zeros_like(values, dtype=lse.dtype)
        for part in ctx.parts:
            own = slice(part.start, part.end)
            for asked, causal in ((own, True), (slice(part.end, part.last), False)):
                if asked.stop > asked.start:
                    rows = (grad[:, :, asked], query[:, :, asked], keys[:, :, own], values[:, :, own])
                    found = kernel_gradient(*rows, out[:, :, asked], lse[:, :, asked], ctx.scale, causal=causal)
                    of_query[:, :, asked] += found[0]
                    of_keys[:, :, own] += found[1]
                    of_values[:, :, own] += found[2]
        of_keys, of_values = (of.unflatten(1, (key.shape[1], -1)).sum(2) for of in (of_keys, of_values))
        return of_query.to(query.dtype), of_keys.to(key.dtype), of_values.to(value.dtype), None, None


def for_all_heads(key: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values [1, key heads, T, size], repeated for the heads of the query."""
    return key.repeat_interleave(query.shape[1] // key.shape[1], dim=1) if query.shape[1] != key.shape[1] else key


def kernel_for(query: torch.Tensor) -> Literal["cpu", "flash", "efficient"]:
    """Which kernels of torch's SDPA compute on the query's device. On CUDA, flash attention knows 16 bits only."""
    if query.device.type == "cpu":
        return "cpu"
    return "flash" if query.dtype in (torch.float16, torch.bfloat16) else "efficient"


def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool):
    """(attention [1, heads, queries, size], log-sum-exp [1, heads, queries]) by the kernels of torch's SDPA."""
    kind, size, aten = kernel_for(query), query.shape[-1], torch.ops.aten
    if kind == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    rows = [widened(one) for one in (query, key, value)]
    if kind == "flash":
        out, lse = aten._scaled_dot_product_flash_attention(*rows, 0.0, causal, False, scale=scale)[:2]
    else:
        out, lse = aten._scaled_dot_product_efficient_attention(*rows, None, True, 0.0, causal, scale=scale)[:2]
    return out[..., :size], lse[..., : query.shape[2]]


def kernel_gradient(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    *,
    causal: bool,
) -> tuple[torch.Tensor, ...]:
    """Gradients of query, key and value, which are some of the keys that `out` and `lse` come from."""
    kind, queries, size, aten = kernel_for(query), query.shape[2], query.shape[-1], torch.ops.aten
    if kind == "cpu":
        rows = (grad, query, key, value, out, lse)
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(*rows, 0.0, causal, scale=scale)
    # The kernels take for granted that attention lies in memory as they write it: [1, queries, heads, size].
    grad, query, key, value, out = (widened(one) for one in (grad, query, key, value, out))
    grad, out = (one.transpose(1, 2).contiguous().transpose(1, 2) for one in (grad, out))
    if kind == "flash":
        seeds = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of dropout, which is off
        rows = (grad, query, key, value, out, lse.contiguous(), None, None, queries, key.shape[2])
        found = aten._scaled_dot_product_flash_attention_backward(*rows, 0.0, causal, seeds, seeds, scale=scale)
    else:
        seeds = torch.zeros((), dtype=torch.int64, device=query.device)
        lse = torch.nn.functional.pad(lse, (0, -queries % EFFICIENT_QUERIES), value=float("inf"))  # as the kernel pads it
        rows = (grad, query, key, value, None, out, lse.contiguous(), seeds, seeds, 0.0, [True, True, True, False], causal)
        found = aten._scaled_dot_product_efficient_attention_backward(*rows, scale=scale)
    return tuple(one[..., :size] for one in found[:3])


def widened(rows: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, size], with zeros up to a multiple of the KERNEL_SIZE that CUDA's kernels take."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % KERNEL_SIZE)) if rows.shape[-1] % KERNEL_SIZE else rows


# The forward pass


class SharedPrefix(TrainerCallback):
    """Shares prefixes in the log-probability passes of a trainer of TRL, once the model has passed a check before step 0. Create it
    when the trainer has its model; it adds itself to the trainer's callbacks.

    asked: train.shared_prefix; auto computes rows whole where dropout would be drawn once for the tokens that they share.
    tokenizer: of the rows of the check. rows: of the largest log-probability pass; None: a micro-batch. active: whether prefixes
    are shared. laid: the last layout.
    """

    def __init__(self, trainer: Any, asked: bool | Literal["auto"], tokenizer: Any, rows: int | None = None):
        self.trainer, self.asked, self.tokenizer = trainer, asked, tokenizer
        self.rows = trainer.args.per_device_train_batch_size if rows is None else rows
        self.active, self.laid, self.config = False, None, base_of(trainer.model).config
        for model in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
            log_probs_at_labels(base_of(model), self)
        trainer.add_callback(self)

    def layout(self, inputs: dict[str, Any]) -> Layout | None:
        """The layout of a padded batch; None where rows have nothing in common, the model reads more than their tokens, or the
        tokens of a row do not lie side by side at positions 0, 1, 2, ..."""
        given = {name for name, value in inputs.items() if value is not None}
        mask, photo = inputs.get("attention_mask"), None
        if not given.isdisjoint(PHOTOS) and self.config.model_type in PHOTOS_BY_ROW:
            given, photo = given.difference(PHOTOS), self.config.image_token_id
        if not self.active or not given <= SHARED_INPUTS or mask is None or mask.dim() != 2 or len(mask) < 2:
            return None
        mask, positions = mask.cpu().bool(), inputs.get("position_ids")
        begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
        if begins.sum(dim=1).max() > 1 or (positions is not None and not counts(positions.cpu(), mask)):
            return None
        rows = zip(inputs["input_ids"].cpu(), mask, strict=True)
        self.laid = lay_out([row[kept].tolist() for row, kept in rows], photo)
        return self.laid

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.active = False
        if reason := self.turned_off():
            if self.asked:
                say(f"train.shared_prefix: {reason}")
            return
        try:
            self.check()
        except Refused as refused:
            self.active = False
            if self.asked is True:
                raise LoreError(
                    f"train.shared_prefix is true, and the model cannot share what rows begin with: {refused}. The losses would be "
                    "wrong.\nSet train.shared_prefix to auto or false; every row is then computed whole.",
                    same_on_every_rank=True,
                ) from refused
            say(f"train.shared_prefix: every row is computed whole, because the model cannot share what rows begin with: {refused}")
        except torch.AcceleratorError as error:
            raise LoreError(
                f"The check of train.shared_prefix stopped the device before step 0 ({str(error).splitlines()[0]}), and it cannot "
                "be used any more.\nSet train.shared_prefix to false; every row is then computed whole."
            ) from error
        else:
            say("train.shared_prefix: what rows of a micro-batch begin with is computed once")
        give_back_freed_memory()  # of the check's logits, over 100 MB on a CPU

    def check(self) -> None:
        """Sets `active`. Raises Refused if rows that share a prefix do not get the log-probabilities that they get apart. Runs
        three short forward passes on every process."""
        self.join()
        text = self.config.get_text_config()
        model, batch = self.trainer.model_wrapped, probe(self.tokenizer, self.trainer.accelerator.device)
        cuda = [self.trainer.accelerator.device] if self.trainer.accelerator.device.type == "cuda" else []
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad(), self.trainer.accelerator.autocast():
                self.active = False
                apart = fused_logps(model, batch)
                self.active = True
                together = fused_logps(model, batch)
                laid = self.laid
                with torch.random.fork_rng(devices=cuda):
                    model.train()  # only here the attention is asked for its dropout
                    fused_logps(model, batch)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:  # each model refuses in its own way
            raise Refused(f"it stops at a sequence of several rows ({error})") from error
        finally:
            for module, training in modes:
                module.training = training
        if len(laid.attended) != text.num_hidden_layers:
            used = f"{len(laid.attended)} of its {text.num_hidden_layers} layers"
            raise Refused(f"{used} compute attention through transformers' attention interface")
        compare(apart, together, laid.attended[-1][2], "log-probabilities")
        compare_gradients(laid, self.trainer.accelerator.device)

    def turned_off(self) -> str | None:
        """Why every row is computed whole, whatever the model can; None if that depends on the model."""
        if not self.asked:
            return "it is false"
        if self.rows < 2:
            return "there is nothing to share, because a micro-batch has one row"
        if dropout := avoided_dropout(self.asked, self.trainer.model):
            return (
                "every row is computed whole, because the tokens that rows share would draw their dropout "
                f"({dropout:g}) once for all rows; true allows it"
            )
        return None

    def join(self) -> None:
        """Lets the model's attention take layouts. Raises Refused for a model or a trainer whose settings say that it cannot."""
        if reason := why_not(self.config):
            raise Refused(reason)
        if self.trainer.accelerator.state.dynamo_plugin.backend.value.lower() != "no":
            raise Refused("it is compiled, and would be compiled again for every batch")
        if getattr(self.trainer, "aux_loss_enabled", False):
            raise Refused("its load-balancing loss counts the tokens of every row")
        join_attention(self.config.get_text_config()._attn_implementation)

    @contextmanager
    def expected(self) -> Iterator[bool]:
        """In this context prefixes are shared, before the check, unless the settings say that the model cannot. Gives whether they
        are."""
        try:
            if self.turned_off() is None:
                self.join()
                self.active = True
        except Refused:
            pass
        try:
            yield self.active
        finally:
            self.active = False


def avoided_dropout(asked: bool | Literal["auto"], model: torch.nn.Module, lora: LoraConfig | None = None) -> float:
    """The largest dropout of the model, its adapter and a new adapter, if auto computes rows whole because of it; otherwise 0."""
    found = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] + [lora.lora_dropout if lora else 0.0]
    return max(found) if asked == "auto" else 0.0


def counts(positions: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the positions are those that a layout gives: 0, 1, 2, ... in each row [tokens] of the mask."""
    return positions.shape == mask.shape and torch.equal(positions[mask], (mask.cumsum(dim=1) - 1)[mask])


def why_not(config: Any) -> str | None:
    """Why a model with this config cannot share prefixes, as far as the config says it."""
    text = config.get_text_config()
    if text._attn_implementation not in AttentionInterface():
        return f"its attention ({text._attn_implementation}) is not in transformers' attention interface, as sdpa is"
    if length_rule(text) is not None:
        return "its numbers depend on the longest row of a batch"
    window = attention_window(text)
    return f"its attention has {window}" if window else None


def attention_window(text: Any) -> str | None:
    """The window of a text config in words; None without one. Some models apply it in the mask alone, and the check's rows may be
    shorter than it."""
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        window = getattr(text, "sliding_window", None)
        return f"sliding_window {window}" if window else None
    return next((f"layers of kind {kind}" for kind in kinds if "sliding" in kind or "chunked" in kind), None)


def probe(tokenizer: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Rows that share a prefix, padded on the right, each of their tokens a label."""
    ids = tokenizer("red running shoes for a child, size 31: ", add_special_tokens=False)["input_ids"] * 100
    prefix, rest = ids[: PROBE_TOKENS[0]], ids[PROBE_TOKENS[0] :]
    rows = [prefix + rest[number : number + tokens] for number, tokens in enumerate(PROBE_TOKENS[1:])]
    width = max(map(len, rows))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, IGNORE)}


def compare_gradients(layout: Layout, device: torch.device) -> None:
    """Raises Refused if the gradients of the attention differ from those of one masked attention on this device."""
    asked, held, dtype = layout.attended[-1]
    random = torch.Generator().manual_seed(0)
    shapes = (asked, held, held, asked)
    query, key, value, grad = (torch.randn(one, generator=random).to(device, dtype).requires_grad_() for one in shapes)
    seen = torch.zeros(asked[2], asked[2], dtype=torch.bool, device=device)
    for part in layout.parts:
        seen[part.start : part.last, part.start : part.end] = True
    all_heads = (query, for_all_heads(key, query), for_all_heads(value, query))
    whole = torch.nn.functional.scaled_dot_product_attention(*all_heads, attn_mask=seen.tril())
    try:
        shared = SharedAttention.apply(query, key, value, query.shape[-1] ** -0.5, layout.parts)
        expected, found = (torch.autograd.grad(one, (query, key, value), grad) for one in (whole, shared))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"{device.type} has no gradient of this attention ({error})") from error
    for one, other in zip(expected, found, strict=True):
        compare(one, other, dtype, "gradients of attention")


def compare(expected: torch.Tensor, found: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    """Raises Refused if numbers differ by more than the rounding of dtype."""
    moved = ((expected.float() - found.float()).norm() / expected.float().norm().clamp(min=1e-9)).item()
    if not moved < (TOLERANCE if dtype == torch.float32 else LOW_PRECISION_TOLERANCE):
        raise Refused(f"its {what} change by {moved:.1%}")


@functools.cache
def join_attention(name: str) -> None:
    """Lets an implementation of transformers' attention interface take layouts; without one it is as it was."""
    AttentionInterface.register(name, functools.partial(attend, AttentionInterface()[name]))


def log_probs_at_labels(base: Any, sharing: SharedPrefix) -> None:
    """Changes the log-probability passes of a model with TRL's fused output layer: they share prefixes, and only the hidden states
    before a label are multiplied by the output layer. Their output is TRL's, [rows, tokens - 1]."""
    plain, wanted = base.forward, []

    def keep(_: Any, __: Any, output: Any) -> None:
        """Forward hook of the model without its output layer: leaves the hidden states before a label, [1, labels, size]."""
        if wanted:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden.flatten(0, 1)[wanted[0].to(hidden.device)].unsqueeze(0)

    @functools.wraps(type(base).forward)  # `generate` reads the signature
    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        asked = None if arguments else fused_inputs(inputs)
        if asked is None:
            return plain(*arguments, **inputs)
        batch, labels = asked
        labeled = labels[:, 1:] != IGNORE
        rows, columns = labeled.nonzero(as_tuple=True)
        gather_output_layer(self)
        if not len(rows):
            return plain(**inputs)
        layout = sharing.layout(batch)
        if layout is None:
            wanted.append(rows * labels.shape[1] + columns)
        else:
            mask = batch["attention_mask"].cpu().bool()
            places = torch.zeros(mask.shape, dtype=torch.long)
            places[mask] = torch.tensor([place for row in layout.places for place in row])
            wanted.append(places.to(labels.device)[rows, columns])
            # A mask with four axes goes to the attention as it is: transformers would make one of T x T from the positions.
            batch |= {
                "input_ids": torch.tensor([layout.ids], device=labels.device),
                "position_ids": torch.tensor([layout.positions], device=labels.device),
                "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=labels.device),
                INPUT: layout,
                **{name: batch[name][layout.order] for name in PHOTOS if batch.get(name) is not None},
            }
        try:
            output = fused_pass(plain, batch, labels[:, 1:][labeled].unsqueeze(0))
        finally:
            wanted.clear()
        return per_token_fields(output, labeled)

    base.base_model.register_forward_hook(keep, prepend=True)  # other hooks read what it leaves
    base.forward = types.MethodType(forward, base)
