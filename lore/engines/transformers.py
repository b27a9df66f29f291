"""The transformers engine: batched `generate` and `score` on CPU or GPU, for text and photos, with adapters or merged models.

Prompts are sorted by length and left-padded into batches of at most `batch_tokens` padded tokens. Rows that would change one
another's numbers never share a batch (lore/engines/row_independence.py). Greedy answers and scores therefore do not depend on
how the caller groups prompts, except for floating-point rounding. The tokens that all prompts of a call begin with are processed
once (lore/engines/shared_prefix.py). Not implemented: paged attention and continuous batching; use vLLM for those.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

from lore.codec.chat_template import text_ids
from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.chat import at_verdict, image_tokens, prompt_text, stop_ids
from lore.engines.config import ModelSection
from lore.engines.engine import Completion, EngineUsage, Messages, Sampling
from lore.engines.loading import default_device, load_model, load_processor
from lore.engines.row_independence import PROBE, base_of, keep_rows_apart, length_rule, padding_moves
from lore.engines.shared_prefix import MIN_TOKENS, Prefix, Prefixes, behind, moves, padded, runs, shared_tokens
from lore.rubric.rubric import Rubric

ROWS_READ = 4  # behind a prefix, the rows of one pass may hold this many times batch_tokens with the prefix counted in each


class Row(NamedTuple):
    """A prompt. ids: token ids with one placeholder for each photo; length: tokens with the photos."""

    text: str
    images: list
    ids: list[int]
    length: int


def folded(model: Any) -> Any:
    """The model with its adapter merged into the weights, which saves about a quarter of the time.

    Returns the model unchanged if merging would change its answers: bfloat16 and quantized weights would be rounded, and
    with tied embeddings merging into the embeddings would also change the output layer.
    """
    if not hasattr(model, "merge_and_unload") or any(p.dtype != torch.float32 for p in model.parameters()):
        return model
    configs = model.config, model.config.get_text_config()
    if any(getattr(config, "tie_word_embeddings", False) for config in configs):
        return model
    return model.merge_and_unload()


class TransformersEngine:
    """A judge in memory. Build it with `load`, or from a loaded model and processor.

    batch_tokens: padded tokens of a forward pass. shared_prefix: process the tokens that the prompts of a call begin with once,
    where that is exact. Answers then differ from those without it by floating-point rounding. `load` does; a model in training does
    not, because its weights change and its processes have to run the same forward passes.
    """

    def __init__(
        self, model: Any, processor: Any, rubric: Rubric, *, batch_tokens: int = 16384, shared_prefix: bool = False
    ):
        self.model, self.processor, self.rubric, self.batch_tokens = model, processor, rubric, batch_tokens
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_images = processor is not self.tokenizer
        self.usage = EngineUsage()
        self.verdict = verdict_tokens(processor, rubric)
        known = model.generation_config.eos_token_id
        self._stop_ids = stop_ids(processor, set(known if isinstance(known, list) else [known]) - {None})
        keep_rows_apart(model)
        self._rule, self._equal_lengths = length_rule(base_of(model).config), padding_moves(model, self.tokenizer)
        # A window of GPT-Neo counts the padding behind a prefix.
        windows = "local" in getattr(model.config, "attention_layers", ())
        exact = self._can_share and self._rule is None and not self._equal_lengths and not windows
        self._prefixes = Prefixes(model, batch_tokens) if shared_prefix and exact else None
        self._shares: dict[bool, bool] = {}  # by whether rows have photos, once it is measured
        self._processed = 0  # tokens of the latest prefix that had to be processed, until a batch has used it
        self._takes_positions = "position_ids" in inspect.signature(base_of(model).forward).parameters

    @classmethod
    def load(
        cls,
        section: ModelSection,
        rubric: Rubric,
        *,
        batch_tokens: int = 16384,
        device: str | None = None,
        shared_prefix: bool = True,
    ):
        model = folded(load_model(section, device=device or default_device()))
        processor = load_processor(section, chat=True)
        return cls(model, processor, rubric, batch_tokens=batch_tokens, shared_prefix=shared_prefix)

    @torch.inference_mode()
    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """See Engine.generate. Sampled completions depend on the seed and the batching; greedy completions depend on neither."""
        out: list[list[Completion]] = [[] for _ in prompts]
        rows = self._rows(prompts)
        per_prompt = sampling.n if sampling.temperature > 0 else 1  # greedy samples are equal: decode once
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
        for indices, prefix in self._planned(rows, extra=sampling.max_tokens, copies=per_prompt):
            chosen = [rows[i] for i in indices]
            inputs = self._behind(chosen, self._encoded(chosen), prefix, grows=True)
            rereads = self._rereads(int(inputs["attention_mask"][0].sum()), sampling.max_tokens)
            shares = per_prompt > 1 and self._can_share and not rereads
            with self._generation(sampling, 1 if shares else per_prompt, use_cache=not rereads) as config:
                asked = self._read_once(inputs, per_prompt) if shares else inputs
                ids = self.model.generate(**asked, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
            prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
            self.usage.prompt_tokens += sum(prompt_tokens)
            for k, index in enumerate(indices):
                answers = ids[k * per_prompt : (k + 1) * per_prompt]
                completions = [self._completion(answer, prompt_tokens[k]) for answer in answers]
                self.usage.generated_tokens += sum(completion.tokens for completion in completions)
                out[index] = completions * (sampling.n if per_prompt == 1 else 1)
        return out

    @torch.inference_mode()
    def score(self, prompts: list[Messages]) -> np.ndarray:
        """See Engine.score."""
        out = np.zeros((len(prompts), len(self.verdict.tier_ids)), dtype=np.float64)
        rows = self._rows([at_verdict(messages, self.verdict.prefix_text) for messages in prompts])
        for indices, prefix in self._planned(rows):
            chosen = [rows[i] for i in indices]
            inputs = self._behind(chosen, self._encoded(chosen), prefix, grows=False)
            logits = self.model(**inputs, use_cache="past_key_values" in inputs, logits_to_keep=1).logits[:, -1]
            out[indices] = torch.softmax(logits[:, self.verdict.tier_ids].double(), dim=-1).cpu().numpy()
            self.usage.prompt_tokens += int(inputs["attention_mask"].sum())
        return out

    @property
    def _can_share(self) -> bool:
        """Whether the samples of a prompt can start from copies of its KV cache.

        False for models that store photo positions outside the cache (M-RoPE of Qwen-VL) and for models whose state is not a
        full KV cache (sliding window, linear attention).
        """
        config = self.model.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        return "mrope_section" not in rope and kinds == {"full_attention"} and not getattr(config, "sliding_window", None)

    def _read_once(self, inputs: dict[str, torch.Tensor], copies: int) -> dict[str, Any]:
        """Generation inputs with `copies` rows per prompt and a KV cache of all prompt tokens except the last.

        Each prompt is prefilled once; plain generation would prefill every copy.
        """
        config = GenerationConfig(
            max_new_tokens=1, pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self._stop_ids, return_dict_in_generate=True
        )
        cache = self.model.generate(**inputs, generation_config=config).past_key_values
        cache.crop(-1)  # transformers 5.20 and newer take only the number of tokens to remove, as a negative number
        cache.batch_repeat_interleave(copies)
        repeated = {key: inputs[key].repeat_interleave(copies, dim=0) for key in ("input_ids", "attention_mask")}
        return repeated | {"past_key_values": cache}

    def _rereads(self, length: int, extra: int) -> bool:
        """Whether each token of the answers reads the whole row again, without a KV cache.

        An answer that grows beyond the short frequencies of longrope changes those of the whole row, also of what is in the
        cache. There transformers 5.19 drops the cache and goes on without the tokens that it held.
        """
        rule = self._rule
        return rule is not None and not rule.exact and length <= rule.tokens + 1 and length + extra > rule.tokens

    @contextmanager
    def _generation(self, sampling: Sampling, per_prompt: int, *, use_cache: bool) -> Iterator[GenerationConfig]:
        """A generation config with the values of `sampling` only.

        transformers would fill missing values from the checkpoint's generation_config (repetition_penalty,
        no_repeat_ngram_size, ...), which did not apply during training. That config is disabled inside the context.
        """
        options: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, "num_return_sequences": per_prompt, "top_k": 0}
        options["use_cache"] = use_cache
        if sampling.temperature > 0:
            options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        config = GenerationConfig(pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self._stop_ids, **options)
        inner = base_of(self.model)
        own, inner.generation_config = inner.generation_config, GenerationConfig()
        try:
            yield config
        finally:
            inner.generation_config = own

    def _completion(self, ids: list[int], prompt_tokens: int = 0) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self._stop_ids), None)
        kept = ids if end is None else ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        tokens, reason = (len(ids), "length") if end is None else (end + 1, "stop")
        return Completion(text, tokens, reason, prompt_tokens)

    def _rows(self, prompts: list[Messages]) -> list[Row]:
        """The prompts as text, images and token ids."""
        shown = [prompt_text(self.processor, messages) for messages in prompts]
        ids = [text_ids(self.tokenizer, text) for text, _ in shown]
        photos = [sum(image_tokens(self.processor, image) for image in images) for _, images in shown]
        return [Row(*row, tokens, len(tokens) + more) for row, tokens, more in zip(shown, ids, photos, strict=True)]

    def _planned(self, rows: list[Row], extra: int = 0, copies: int = 1) -> Iterator[tuple[list[int], Prefix | None]]:
        """Batches of prompt indices, each with the prefix that it starts from. See `_batches` for extra and copies."""
        room = [self._room(row) for row in rows]
        prefix = self._prefix(rows, room)
        everything = range(len(rows))
        if prefix is None:
            yield from ((batch, None) for batch in self._batches(rows, everything, extra, copies))
            return
        # Small batches behind rubric and query: less to read on a CPU, less at once on a GPU.
        together = runs([row.ids for row in rows], room, len(prefix.ids)) if self.model.device.type == "cpu" else []
        for indices, size in together:
            found = self._prefixes.of(rows[indices[0]].ids[:size], hold=False)
            inner, processed = found or (prefix, 0)
            self._processed += processed
            yield from ((batch, inner) for batch in self._batches(rows, indices, extra, copies, inner))
        others = sorted(set(everything).difference(*(indices for indices, _ in together)))
        yield from ((batch, prefix) for batch in self._batches(rows, others, extra, copies, prefix))

    def _prefix(self, rows: list[Row], room: list[int]) -> Prefix | None:
        """The tokens that all rows begin with, processed; None if they are few, or if the model cannot start from them."""
        if self._prefixes is None or not any(self._shares.get(bool(row.images), True) for row in rows):
            return None
        first, last = min(row.ids for row in rows), max(row.ids for row in rows)
        size = min(shared_tokens(first, last), *room)
        ids = first[:size] if len(rows) > 1 else first[: min(size, self._prefixes.known(first))]
        found = self._prefixes.of(ids) if len(ids) >= MIN_TOKENS else None
        if found is None:
            return None
        prefix, self._processed = found
        return prefix

    def _room(self, row: Row) -> int:
        """How many tokens of a row a prefix may have: behind it are its photos and a token to read."""
        most = len(row.ids) - 1
        if not row.images:
            return most
        mark = self.tokenizer.convert_tokens_to_ids(getattr(self.processor, "image_token", None) or "<image>")
        return min(most, row.ids.index(mark)) if mark in row.ids else 0

    def _behind(self, rows: list[Row], inputs: dict[str, torch.Tensor], prefix: Prefix | None, *, grows: bool) -> dict[str, Any]:
        """The inputs of a batch behind the prefix; unchanged where the model cannot start from it."""
        photos = any(row.images for row in rows)
        if prefix is None or not self._shares.get(photos, True):
            return inputs
        shared = self._started(inputs, prefix, grows=grows)
        if photos not in self._shares and shared is not None:
            # The longest and the shortest row.
            some = padded(self._encoded([rows[0], rows[-1]]), self.tokenizer.pad_token_id or 0)
            begun = self._started(some, prefix, grows=False)
            self._shares[photos] = begun is not None and not moves(self.model, some, begun)
        if shared is None or not self._shares[photos]:
            return inputs
        self.usage.cached_tokens += len(prefix.ids) * len(rows) - self._processed
        self._processed = 0
        return shared

    def _started(self, inputs: dict[str, torch.Tensor], prefix: Prefix, *, grows: bool) -> dict[str, Any] | None:
        shared = behind(inputs, prefix, grows=grows)
        if shared is not None and not self._takes_positions:
            shared.pop("position_ids", None)
        return shared

    def _batches(
        self, rows: list[Row], among: Sequence[int], extra: int = 0, copies: int = 1, prefix: Prefix | None = None
    ) -> Iterator[list[int]]:
        """Batches of the indices `among`, longest prompts first. extra: tokens that generation may add; copies: rows per prompt.

        Behind a prefix, rows with photos and rows without them do not share a batch.
        """
        company = {i: (self._company(rows[i].length, extra), prefix is not None and bool(rows[i].images)) for i in among}
        batch: list[int] = []
        for index in sorted(among, key=lambda i: (company[i][1], -rows[i].length)):
            full = batch and self._tokens(rows[batch[0]].length, extra, prefix) * (len(batch) + 1) * copies > self.batch_tokens
            if full or (batch and company[batch[0]] != company[index]):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _tokens(self, length: int, extra: int, prefix: Prefix | None) -> int:
        """Tokens that a row counts in a batch. Generation keeps the whole row; one pass holds one layer of the prefix at a time."""
        if prefix is None or extra:
            return length + extra
        return max(length - len(prefix.ids), length // ROWS_READ)

    def _company(self, length: int, extra: int) -> int:
        """Prompts may share a batch if this number is the same."""
        if self._equal_lengths:
            return length
        return self._rule.company(length, extra) if self._rule else 0

    def _encoded(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Model inputs of rows, padded on the left. Texts are not tokenized again where that gives the same tensors."""
        if not self._reads_ids_alone or any(row.images for row in rows):
            return self._inputs([(row.text, row.images) for row in rows])
        width = max(len(row.ids) for row in rows)
        ids = [[self.tokenizer.pad_token_id] * (width - len(row.ids)) + row.ids for row in rows]
        mask = [[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]
        device = self.model.device
        return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}

    @cached_property
    def _reads_ids_alone(self) -> bool:
        """Whether the inputs of a text are its token ids and a mask, and a processor tokenizes it like its tokenizer."""
        if self.tokenizer.pad_token_id is None:
            return False
        inputs = self._inputs([(PROBE, [])])
        return set(inputs) == {"input_ids", "attention_mask"} and inputs["input_ids"][0].tolist() == text_ids(self.tokenizer, PROBE)

    def _inputs(self, rows: list[tuple[str, list]]) -> dict[str, torch.Tensor]:
        """Model inputs of texts with their images, padded on the left."""
        texts, images = [text for text, _ in rows], [images for _, images in rows]
        kwargs = {"return_tensors": "pt", "padding": True, "padding_side": "left", "add_special_tokens": False}
        if self.takes_images:
            encoded = self.processor(text=texts, images=images if any(images) else None, **kwargs)
        else:
            encoded = self.tokenizer(texts, **kwargs)
        dtype = self.model.dtype
        return {
            key: value.to(self.model.device, dtype) if value.is_floating_point() else value.to(self.model.device)
            for key, value in encoded.items()
            if isinstance(value, torch.Tensor)
        }
