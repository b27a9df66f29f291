"""Sections that name an engine other than transformers. Nothing here imports torch, vLLM or an HTTP client."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from lore.config.sections import Conflict, StrictModel
from lore.support.fingerprint import model_fingerprint

SECRET = re.compile(r"(?i)api.?key|authori[sz]ation|secret|password|access.?token")
# What may change between a run and its resumption: where and how patiently a model is asked, not which one or what.
HOW_ASKED = ("url", "key_variable", "max_concurrency", "timeout_seconds", "max_attempts", "max_down_seconds")
# What a request says by itself; `extra` must not say something else.
OWN_FIELDS = ("model", "messages", "n", "stream", "logprobs", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed")


class EndpointSection(StrictModel):
    url: str
    """Address of an OpenAI-compatible server up to its version, such as http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """Name under which the server knows the model."""
    key_variable: str | None = None
    """Environment variable that holds the API key; none for a server that asks for none. The key itself is never written
    anywhere."""
    max_concurrency: int = Field(64, ge=1)
    """Requests under way at once, at most. Fewer while the server says that it is busy or fails."""
    timeout_seconds: float = Field(120.0, gt=0)
    """One request may take this long, from its first byte to its last."""
    max_attempts: int = Field(6, ge=1)
    """Times that one request is sent before the run stops."""
    max_down_seconds: float = Field(300.0, gt=0)
    """A server that answers nothing is waited for this long, then the run stops."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer that the server uses; with it prompts are cut to their budget and tier
    probabilities are exact where the server is vLLM."""
    max_image_tokens: int = Field(2048, ge=0)
    """At most this many prompt tokens for one photo, where a budget has to assume the worst."""
    extra: dict[str, Any] = {}
    """Further fields of every request's body, such as {service_tier: flex}."""

    @field_validator("url")
    @classmethod
    def _url_is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("http(s)://host/v1, without ? or #")
        if parts.username or parts.password:
            raise ValueError("an address without a user or a password: name the key's variable in key_variable")
        return value.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _variable_is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            # The value is not repeated: it may be the key itself.
            raise ValueError("the name of an environment variable, such as OPENAI_API_KEY, not the key")
        return value

    @field_validator("extra")
    @classmethod
    def _extra_says_nothing_twice(cls, value: dict[str, Any]) -> dict[str, Any]:
        if secret := [name for name in value if SECRET.search(name)]:
            raise ValueError(f"no key, which would be written down with the recipe ({', '.join(secret)}): use key_variable")
        if taken := [name for name in value if name in OWN_FIELDS]:
            raise ValueError(f"fields that requests do not have by themselves; {', '.join(taken)} come from other keys")
        return value


class VllmSection(StrictModel):
    max_model_tokens: int | None = Field(None, ge=16)
    """Prompt and answer together, at most; none takes the model's own length, which needs the most memory."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes; lower where a trainer shares the device. Ignored on a CPU."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that one copy of the model is spread over."""
    max_sequences: int | None = Field(None, ge=1)
    """Answers written at once; none leaves the choice to vLLM."""
    max_loras: int = Field(1, ge=1)
    """Adapters in memory at once."""
    max_lora_rank: int | None = Field(None, ge=1)
    """Largest rank of an adapter; none takes it from the adapter."""
    photos_per_prompt: int = Field(1, ge=0)
    """Photos that one prompt may hold."""
    eager: bool = False
    """Skips compilation and CUDA graphs: starts in seconds, runs slower. For trials and CPUs."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """GiB of memory for the cache on a CPU; none leaves the choice to vLLM."""
    seed: int = Field(0, ge=0)
    """Seed of the engine."""


class LoraSection(StrictModel):
    rank: int = Field(16, ge=1)
    """Rank of the update matrices."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update; none means 2 * rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Module names the adapter goes to, or all-linear."""
    dora: bool = False
    """Weight-decomposed LoRA: slower, closer to full fine-tuning at low rank."""
    modules_to_save: list[str] = []
    """Modules trained in full and stored beside the adapter."""

    @property
    def scale_alpha(self) -> float:
        """alpha with its default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def conflicts(self) -> Iterator[Conflict]:
        if not self.targets:
            yield Conflict(("targets",), "no module, so no adapter", "all-linear, a pattern or module names")


def looks_local(name: str) -> bool:
    """True for a model's name that is meant as a path, whether it is there or not: no hub id looks like that."""
    return "/" in name and (name.startswith((".", "/", "~", "runs/")) or name.count("/") != 1)


class ModelSection(StrictModel):
    name: str = Field(min_length=1)
    """Hub id or local folder of the model."""
    adapter: str | None = None
    """Folder of a trained adapter that is put on the model first."""
    lora: LoraSection | None = None
    """Train a new adapter of this shape; none trains or runs the model as it is."""
    quantize: Literal["nf4"] | None = None
    """nf4 loads the frozen weights in 4 bits (QLoRA); needs bitsandbytes."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the device has it, else float32."""
    attn: str | None = None
    """Attention implementation passed to transformers; none leaves the choice to it."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Only for a repository you have read."""

    def _folders(self) -> dict[str, str]:
        return {key: folder for key in ("name", "adapter") if (folder := getattr(self, key))}

    def input_fingerprints(self) -> dict[str, Callable[[], str]]:
        """Of the weights that lie in local folders."""
        folders = self._folders().items()
        return {key: partial(model_fingerprint, folder) for key, folder in folders if Path(folder).is_dir()}

    def missing_inputs(self) -> Iterator[tuple[str, str]]:
        for key, folder in self._folders().items():
            if looks_local(folder) and not Path(folder).is_dir():
                yield key, f"{folder} is not a folder."

    def conflicts(self) -> Iterator[Conflict]:
        if self.adapter is not None and self.lora is not None:
            yield Conflict(
                ("adapter", "lora"),
                "both an adapter to load and a new LoRA to train",
                "one of the two: merge the adapter first (lore export --merge), or drop model.lora",
            )
