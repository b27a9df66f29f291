"""The transformers engine: batched `generate` and `score` on CPU or GPU, for text and photos, with adapters or merged models.

Prompts are sorted by length and left-padded into batches of at most `batch_tokens` padded tokens. Rows that would change one
another's numbers never share a batch (lore/engines/row_independence.py). Greedy answers and scores therefore do not depend on
how the caller groups prompts, except for floating-point rounding. Not implemented: paged attention and continuous batching; use
vLLM for those.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.chat import at_verdict, image_tokens, prompt_text, stop_ids
from lore.engines.config import ModelSection
from lore.engines.engine import Completion, EngineUsage, Messages, Sampling
from lore.engines.loading import default_device, load_model, load_processor
from lore.engines.row_independence import base_of, keep_rows_apart, length_rule, padding_moves
from lore.rubric.rubric import Rubric


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
    """A judge in memory. Build it with `load`, or from a loaded model and processor."""

    def __init__(self, model: Any, processor: Any, rubric: Rubric, *, batch_tokens: int = 16384):
        self.model, self.processor, self.rubric, self.batch_tokens = model, processor, rubric, batch_tokens
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_images = processor is not self.tokenizer
        self.usage = EngineUsage()
        self.verdict = verdict_tokens(processor, rubric)
        known = model.generation_config.eos_token_id
        self._stop_ids = stop_ids(processor, set(known if isinstance(known, list) else [known]) - {None})
        keep_rows_apart(model)
        self._rule, self._equal_lengths = length_rule(base_of(model).config), padding_moves(model, self.tokenizer)

    @classmethod
    def load(cls, section: ModelSection, rubric: Rubric, *, batch_tokens: int = 16384, device: str | None = None):
        model = folded(load_model(section, device=device or default_device()))
        return cls(model, load_processor(section, chat=True), rubric, batch_tokens=batch_tokens)

    @torch.inference_mode()
    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """See Engine.generate. Sampled completions depend on the seed and the batching; greedy completions depend on neither."""
        out: list[list[Completion]] = [[] for _ in prompts]
        texts = [prompt_text(self.processor, messages) for messages in prompts]
        per_prompt = sampling.n if sampling.temperature > 0 else 1  # greedy samples are equal: decode once
        if sampling.temperature > 0:
            torch.manual_seed(sampling.seed)
        for indices in self._batches(texts, extra=sampling.max_tokens, copies=per_prompt):
            inputs = self._inputs([texts[i] for i in indices])
            rereads = self._rereads(int(inputs["attention_mask"][0].sum()), sampling.max_tokens)
            shares = per_prompt > 1 and self._can_share and not rereads
            with self._generation(sampling, 1 if shares else per_prompt, use_cache=not rereads) as config:
                asked = self._read_once(inputs, per_prompt) if shares else inputs
                ids = self.model.generate(**asked, generation_config=config)[:, inputs["input_ids"].shape[1] :].tolist()
            prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
            self.usage.prompt_tokens += sum(prompt_tokens)
            for k, index in enumerate(indices):
                rows = ids[k * per_prompt : (k + 1) * per_prompt]
                completions = [self._completion(row, prompt_tokens[k]) for row in rows]
                self.usage.generated_tokens += sum(completion.tokens for completion in completions)
                out[index] = completions * (sampling.n if per_prompt == 1 else 1)
        return out

    @torch.inference_mode()
    def score(self, prompts: list[Messages]) -> np.ndarray:
        """See Engine.score."""
        out = np.zeros((len(prompts), len(self.verdict.tier_ids)), dtype=np.float64)
        texts = [prompt_text(self.processor, at_verdict(messages, self.verdict.prefix_text)) for messages in prompts]
        for indices in self._batches(texts):
            inputs = self._inputs([texts[i] for i in indices])
            logits = self.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
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

    def _batches(self, texts: list[tuple[str, list]], extra: int = 0, copies: int = 1) -> Iterator[list[int]]:
        """Batches of prompt indices, longest prompts first. extra: tokens that generation may add; copies: rows per prompt."""
        lengths = (
            [len(ids) for ids in self.tokenizer([text for text, _ in texts], add_special_tokens=False)["input_ids"]]
            if texts
            else []
        )
        photos = [sum(image_tokens(self.processor, image) for image in images) for _, images in texts]
        lengths = [tokens + more for tokens, more in zip(lengths, photos, strict=True)]
        company = [self._company(length, extra) for length in lengths]
        batch: list[int] = []
        for index in sorted(range(len(texts)), key=lambda i: -lengths[i]):
            full = batch and (lengths[batch[0]] + extra) * (len(batch) + 1) * copies > self.batch_tokens
            if full or (batch and company[batch[0]] != company[index]):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _company(self, length: int, extra: int) -> int:
        """Prompts may share a batch if this number is the same."""
        if self._equal_lengths:
            return length
        return self._rule.company(length, extra) if self._rule else 0

    def _inputs(self, rows: list[tuple[str, list]]) -> dict[str, torch.Tensor]:
        texts = [text for text, _ in rows]
        kwargs = {"return_tensors": "pt", "padding": True, "padding_side": "left", "add_special_tokens": False}
        if self.takes_images:
            images = [images for _, images in rows]
            encoded = self.processor(text=texts, images=images if any(images) else None, **kwargs)
        else:
            encoded = self.tokenizer(texts, **kwargs)
        dtype = self.model.dtype
        return {
            key: value.to(self.model.device, dtype) if value.is_floating_point() else value.to(self.model.device)
            for key, value in encoded.items()
            if isinstance(value, torch.Tensor)
        }
