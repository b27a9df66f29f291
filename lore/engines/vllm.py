"""The vLLM engine: a judge in this process with paged attention and continuous batching, for text, photos and adapters.

This is the only module that imports vLLM. It uses the prompts, stop tokens and decoding of the transformers engine and ignores
the checkpoint's generation_config, so both engines give the same greedy answers. Adapters that vLLM would apply only in part
are refused (lore/engines/vllm_adapter.py): merge them first.
"""

import importlib.util
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from lore.codec.chat_template import text_ids
from lore.codec.verdict_tokens import verdict_tokens
from lore.engines.adapter import adapter_folder
from lore.engines.chat import at_verdict, image_tokens, prompt_text, stop_ids
from lore.engines.config import ModelSection, VllmSection
from lore.engines.engine import Completion, EngineDied, EngineUsage, Messages, Sampling
from lore.engines.loading import default_device, known_stops, load_config, load_processor, resolve_dtype
from lore.engines.row_independence import LengthRule, length_rule
from lore.engines.vllm_adapter import AdapterParts, adapter_rank, check_applied
from lore.engines.vllm_pooling import OTHER_WAY, HeadParts, check_after, check_before, pooling_options, tier_rows
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.processes import end_with

# With one seed for all prompts, duplicate prompts would get identical samples.
SEED_STEP = 1_000_003
END_SECONDS = 30


class WorkerParts(AdapterParts, HeadParts):
    """What vLLM's workers answer about the model that they hold, and do: mixed into them by worker_extension_cls."""

    def end_with(self, owner: int) -> bool:
        """See lore.support.processes.end_with. vLLM's engine process lives on, with its memory, if its owner gets a SIGKILL."""
        return end_with(owner)


class VllmEngine:
    """A judge in vLLM. Keep only one per process, because each instance reserves its memory at start-up.

    `usage` counts the token that `score` samples beside the tier probabilities as generated. tier_rows: output rows of the tiers,
    float64 [tiers, hidden], for a vLLM with the pooling runner (lore/engines/vllm_pooling.py); None for one that generates.
    """

    def __init__(
        self,
        llm: Any,
        processor: Any,
        rubric: Rubric,
        stops: set[int],
        adapter: Any = None,
        rule: LengthRule | None = None,
        tier_rows: np.ndarray | None = None,
        processes: Sequence[BaseProcess] = (),
    ):
        self.llm, self.processor, self.rubric, self._adapter, self._rule = llm, processor, rubric, adapter, rule
        self.usage, self._tier_rows, self._processes = EngineUsage(), tier_rows, processes
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.takes_images = processor is not self.tokenizer
        self.verdict = verdict_tokens(processor, rubric)
        self._stop_ids = stop_ids(processor, stops)

    @classmethod
    def load(
        cls, section: ModelSection, rubric: Rubric, vllm: VllmSection | None = None, *, only_scores: bool = False
    ) -> "VllmEngine":
        """Starts vLLM with a checkpoint and its adapter. Raises LoreError if vLLM does not support them.

        only_scores: the engine is never asked to generate, which vllm.scoring pooling needs.
        """
        vllm = vllm or VllmSection()
        load_config(section)  # reports a missing path before it is looked up on the hub
        processor = load_processor(section, chat=True)
        rank = adapter_rank(section)
        options = engine_options(section, vllm, rank, takes_images=hasattr(processor, "tokenizer"))
        LLM, LoRARequest = _import_vllm()
        pooling = pools(section, vllm, only_scores)
        if pooling:
            options |= pooling_options()
        options["worker_extension_cls"] = f"{WorkerParts.__module__}.{WorkerParts.__qualname__}"
        others = multiprocessing.active_children()
        try:
            llm = LLM(**options)
        except (ValueError, RuntimeError, OSError, ImportError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:600]
            raise LoreError(
                f"vLLM cannot run model.name {section.name}: {reason}\n"
                "If memory is short, lower max_model_tokens or gpu_memory; otherwise use the transformers engine."
            ) from error
        processes = [process for process in multiprocessing.active_children() if process not in others]
        adapter = rows = None
        try:
            llm.collective_rpc("end_with", args=(os.getpid(),))
            if rank:
                adapter = LoRARequest("judge", 1, str(adapter_folder(section.adapter)))
                check_applied(llm, adapter, section)
            if pooling:
                rows = tier_rows(section, verdict_tokens(processor, rubric).tier_ids, llm.model_config.dtype)
                check_after(llm, section, rows)
            return cls(llm, processor, rubric, known_stops(section), adapter, longrope(section), rows, processes)
        except BaseException:
            _end(llm, processes)
            raise

    def close(self) -> None:
        """Ends vLLM's processes, which frees its memory; to drop the engine is not enough. A second call has no effect."""
        llm, self.llm = self.llm, None
        if llm is not None:
            _end(llm, self._processes)

    def generate(self, prompts: list[Messages], sampling: Sampling) -> list[list[Completion]]:
        """See Engine.generate. Sampled completions depend on the seed and on the prompt's index."""
        if self._tier_rows is not None:
            raise LoreError(f"This vLLM engine only scores (pooling), so it cannot generate. {OTHER_WAY}")
        from vllm import SamplingParams  # vLLM is optional and takes seconds to load

        per_prompt = sampling.n if sampling.temperature > 0 else 1
        options: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "n": per_prompt}
        options |= {"stop_token_ids": self._stop_ids, "detokenize": False}
        if sampling.temperature > 0:
            options |= {"top_p": sampling.top_p}
        params = [SamplingParams(**options) for _ in prompts]
        if sampling.temperature > 0:
            for index, one in enumerate(params):
                one.seed = sampling.seed * SEED_STEP + index * per_prompt
        out = []
        for result in self._ask(prompts, params):
            completions = [self._completion(result, row) for row in sorted(result.outputs, key=lambda row: row.index)]
            out.append(completions * (sampling.n if per_prompt == 1 else 1))
        return out

    def score(self, prompts: list[Messages]) -> np.ndarray:
        """See Engine.score. Raises LoreError for a rubric with more tiers than vLLM gives log-probabilities for (128)."""
        # vLLM is optional and takes seconds to load.
        from vllm import PoolingParams, SamplingParams
        from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS

        ids = list(self.verdict.tier_ids)
        if self._tier_rows is None and len(ids) > MAX_LOGPROB_TOKEN_IDS:
            raise LoreError(
                f"Rubric {self.rubric.name} has {len(ids)} tiers, and vLLM gives the log-probabilities of at most "
                f"{MAX_LOGPROB_TOKEN_IDS} tokens, so tier probabilities cannot be read.\nUse the transformers engine, or, for "
                "verdicts alone, vllm.scoring: pooling."
            )
        begun = [at_verdict(messages, self.verdict.prefix_text) for messages in prompts]
        logs = np.zeros((len(prompts), len(ids)))
        if self._tier_rows is not None:
            states = [result.outputs.data.numpy() for result in self._ask(begun, PoolingParams(use_activation=False))]
            if states:
                logs = np.stack(states).astype(np.float64) @ self._tier_rows.T
        else:
            params = SamplingParams(temperature=0.0, max_tokens=1, logprob_token_ids=ids, detokenize=False)
            for row, result in enumerate(self._ask(begun, params)):
                listed = result.outputs[0].logprobs[0]
                logs[row] = [listed[token].logprob for token in ids]
        weights = np.exp(logs - logs.max(axis=1, keepdims=True)) if len(prompts) else logs
        return weights / weights.sum(axis=1, keepdims=True)

    def _ask(self, prompts: list[Messages], params: Any) -> list[Any]:
        """vLLM's results. params: vLLM's SamplingParams, one for all prompts or one each, or its PoolingParams."""
        inputs = [self._input(messages) for messages in prompts]
        if not inputs:
            return []
        from vllm.v1.engine.exceptions import EngineDeadError  # vLLM is optional and takes seconds to load

        options = {"use_tqdm": False, "lora_request": self._adapter, "tokenization_kwargs": {"add_special_tokens": False}}
        try:
            if self._tier_rows is not None:
                results = self.llm.encode(inputs, params, pooling_task="embed", **options)
            else:
                results = self.llm.generate(inputs, params, **options)
        except EngineDeadError as error:
            raise EngineDied(
                "vLLM's engine has stopped; its own error message is printed above.\n"
                "If it ran out of memory, lower max_model_tokens, max_sequences or gpu_memory. If this device does not "
                "support the model's shape, use the transformers engine."
            ) from error
        for result in results:
            generated = 0 if self._tier_rows is not None else sum(len(row.token_ids) for row in result.outputs)
            self.usage.add(len(result.prompt_token_ids), result.num_cached_tokens or 0, generated)
        return results

    def _input(self, messages: Messages) -> dict[str, Any]:
        """The prompt for vLLM: token ids, or text with photos, which vLLM expands with the model's processor."""
        text, images = prompt_text(self.processor, messages)
        ids = text_ids(self.processor, text)
        most, tokens = self.llm.model_config.max_model_len, len(ids)
        if images:
            tokens += sum(image_tokens(self.processor, image) for image in images)
        if tokens >= most:
            raise LoreError(
                f"A prompt of {tokens} tokens leaves no room for an answer within vLLM's max_model_tokens ({most}).\n"
                "Raise max_model_tokens, or lower prompt.max_prompt_tokens or prompt.max_photo_pixels."
            )
        if self._rule is not None and tokens <= self._rule.tokens < most:
            raise LoreError(
                f"A prompt has {tokens} tokens, and with max_model_tokens {most} vLLM reads every prompt with the long frequencies "
                f"of the model's longrope, even those of at most {self._rule.tokens} tokens, trained with the short ones.\n"
                f"Set max_model_tokens to {self._rule.tokens}, or use the transformers engine."
            )
        return {"prompt": text, "multi_modal_data": {"image": images}} if images else {"prompt_token_ids": ids}

    def _completion(self, result: Any, row: Any) -> Completion:
        ids = list(row.token_ids)
        ended = bool(ids) and ids[-1] in self._stop_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(text, len(ids), "stop" if ended else "length", len(result.prompt_token_ids))


def engine_options(section: ModelSection, vllm: VllmSection, rank: int | None, *, takes_images: bool) -> dict[str, Any]:
    """Keyword arguments of vllm.LLM; vLLM's server has command-line options of the same names. rank: result of adapter_rank.

    Raises LoreError for settings that vLLM does not support.
    """
    if section.quantize:
        raise LoreError(
            f"model.quantize is {section.quantize}, but the vLLM engine cannot quantize a model while loading it.\n"
            "Remove model.quantize, use a checkpoint that is already quantized, or use the transformers engine."
        )
    options: dict[str, Any] = {
        "model": section.name,
        "dtype": str(resolve_dtype(section.dtype, default_device())).removeprefix("torch."),
        "trust_remote_code": section.trust_remote_code,
        "load_format": "safetensors",
        "generation_config": "vllm",  # the checkpoint's sampling defaults did not apply during training
        "gpu_memory_utilization": vllm.gpu_memory,
        "tensor_parallel_size": vllm.tensor_parallel,
        "enforce_eager": vllm.eager,
        "seed": vllm.seed,
    }
    if default_device() == "cpu":
        # Chunked prefill of a seeded request crashes vLLM's CPU engine ("CPU Generator does not use offset").
        options["enable_chunked_prefill"] = False
        # A shared prefix is reused in whole blocks. With vLLM's 128 tokens on a CPU every prompt reads half a block of it again;
        # 32 is the smallest size that its fast kernels take.
        options["block_size"] = 32
    if (rule := longrope(section)) is not None:
        # With a longer context vLLM reads every prompt with the long frequencies, transformers only the prompts beyond the limit.
        options["max_model_len"] = rule.tokens
    if vllm.max_model_tokens is not None:
        options["max_model_len"] = vllm.max_model_tokens
    if vllm.max_sequences is not None:
        options["max_num_seqs"] = vllm.max_sequences
    if vllm.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(vllm.kv_cache_gib * 2**30)
    if takes_images:
        options["limit_mm_per_prompt"] = {"image": vllm.photos_per_prompt}
    if rank is not None:
        options |= {"enable_lora": True, "max_loras": vllm.max_loras, "max_lora_rank": vllm.max_lora_rank or rank}
    return options


def pools(section: ModelSection, vllm: VllmSection, only_scores: bool) -> bool:
    """Whether to start vLLM with its pooling runner. Raises LoreError if vllm.scoring asks for it where it does not work."""
    if vllm.scoring != "pooling":
        return False
    if not only_scores:
        raise LoreError(
            "vllm.scoring is pooling, but this job may generate text, which vLLM's pooling runner cannot.\n"
            f"{OTHER_WAY} Pooling is for verdicts alone: lore label with mode verdict."
        )
    check_before(section)
    return True


def longrope(section: ModelSection) -> LengthRule | None:
    """The rule of a model with longrope; None for other models."""
    rule = length_rule(load_config(section))
    return rule if rule is not None and not rule.exact else None


def check_vllm() -> None:
    """Raises LoreError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise LoreError(
            "The recipe asks for vLLM, which is not installed.\nInstall it (pip install 'lore-relevance[gpu]' on a GPU machine, "
            "make install on a CPU; lore doctor lists what is missing), or use the transformers engine."
        )


def _end(llm: Any, processes: Sequence[BaseProcess]) -> None:
    llm.llm_engine.engine_core.shutdown()
    # vLLM kills a process that does not end in time, and does not wait until it is gone.
    for process in processes:
        process.join(END_SECONDS)


def _import_vllm() -> tuple[Any, Any]:
    check_vllm()
    if not os.environ.get("LORE_DEBUG"):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # disables telemetry: no data about models leaves the machine
    # vLLM is optional, takes seconds to load, and reads the variables above.
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    return LLM, LoRARequest
