"""Recipe sections for models and engines: model, LoRA, vLLM and HTTP endpoint. Imports no torch, vLLM or HTTP client."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from lore.config.secrets import holds_secret, looks_like_key, secret_places
from lore.config.sections import Conflict, Seed, StrictModel
from lore.support.bounds import MAX_COUNT, MAX_SECONDS, MAX_WEIGHT
from lore.support.errors import LoreError
from lore.support.input_files import InputFiles, model_files

# Keys that may change when a run resumes: where the server is and how requests are sent. The model must stay the same.
HOW_ASKED = ("url", "key_variable", "max_concurrency", "timeout_seconds", "max_attempts", "max_down_seconds")
# Fields that every request sets; `extra` must not override them.
OWN_FIELDS = ("model", "messages", "n", "stream", "logprobs", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed")


LANGUAGE_MODEL = "language-model"  # model.lora.targets: the linear layers that read text


def variable_name(value: str | None) -> str | None:
    """The name of an environment variable that holds a key. Raises ValueError for what is none, or looks like the key itself."""
    if value is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or looks_like_key(value)):
        # The message omits the value, which may be the key itself.
        raise ValueError("the name of an environment variable, such as OPENAI_API_KEY, not the key")
    return value


class EndpointSection(StrictModel):
    url: str
    """Base URL of an OpenAI-compatible server, including the version, such as http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """Model name that the server serves."""
    key_variable: str | None = None
    """Name of the environment variable with the API key; none for a server without keys. The key itself is never stored or
    printed."""
    max_concurrency: int = Field(64, ge=1, le=65_536)
    """Largest number of concurrent requests. Concurrency is lowered while the server is rate-limiting or failing."""
    timeout_seconds: float = Field(120.0, gt=0, le=MAX_SECONDS)
    """Timeout of one request in seconds, from sending it to the last byte of the reply."""
    max_attempts: int = Field(6, ge=1, le=10_000)
    """Attempts per request. A prompt that fails as often gets no answer if the server answers another request; otherwise the run
    stops."""
    max_down_seconds: float = Field(300.0, gt=0, le=MAX_SECONDS)
    """Seconds to wait for a server that does not answer before the run stops."""
    tokenizer: str | None = None
    """Folder or hub id of the served model's tokenizer. With it, prompts are cut to their token budget, and tier probabilities
    are exact if the server is vLLM. null: prompts are not cut."""
    max_image_tokens: int = Field(2048, ge=0, le=MAX_COUNT)
    """Upper bound of prompt tokens per photo, used to reserve budget."""
    extra: dict[str, Any] = {}
    """Additional fields in the body of every request, such as {service_tier: flex}. Names and values that look like keys are
    refused, because the recipe is stored with the run."""

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        return {"tokenizer": model_files(self.tokenizer)} if self.tokenizer and Path(self.tokenizer).is_dir() else {}

    @field_validator("url")
    @classmethod
    def _url_is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.port == 0:
            raise ValueError("http(s)://host/v1, without ? or #")
        if parts.username or parts.password or looks_like_key(value):
            raise ValueError("a URL without user name, password or key: put its key into the environment variable key_variable")
        return value.rstrip("/")

    @field_validator("model", "tokenizer")
    @classmethod
    def _name_is_no_key(cls, value: str | None) -> str | None:
        if value is not None and looks_like_key(value):
            raise ValueError("the name of a model, not a key: name the environment variable with the key in key_variable")
        return value

    @field_validator("key_variable")
    @classmethod
    def _variable_is_a_name(cls, value: str | None) -> str | None:
        return variable_name(value)

    @field_validator("extra")
    @classmethod
    def _extra_overrides_nothing(cls, value: dict[str, Any]) -> dict[str, Any]:
        if holds_secret(value):
            places = ", ".join(islice(secret_places(value), 5))
            raise ValueError(f"no key, because the recipe is stored with the run (look at {places}): use key_variable")
        if taken := [name for name in value if name in OWN_FIELDS]:
            raise ValueError(f"only additional fields; other keys of the recipe already set {', '.join(taken)}")
        return value


class UnansweredSection(StrictModel):
    """When requests without an answer stop the run: prompts that the server refuses, that do not fit or that keep failing. Format
    failures of a judge are answers and do not count."""

    max_in_a_row: int | None = Field(20, ge=1, le=MAX_COUNT)
    """The run stops at this many requests in a row without an answer. null: no such bound."""
    max_share: float | None = Field(0.5, ge=0, le=1)
    """The run stops if more than this share of a chunk got no answer. Chunks of fewer than 8 pairs are exempt. null: no such
    bound."""


class VllmSection(StrictModel):
    max_model_tokens: int | None = Field(None, ge=16, le=MAX_COUNT)
    """Longest prompt plus answer, in tokens; null uses the model's own context length, which needs the most memory. For a model
    with longrope (Phi-3) null is its original length: with a longer context vLLM reads short prompts in another way than the
    trainers do."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """Fraction of GPU memory that vLLM reserves; lower it if a trainer shares the device. Ignored on a CPU."""
    tensor_parallel: int = Field(1, ge=1, le=4096)
    """Number of GPUs per model replica (tensor parallelism)."""
    max_sequences: int | None = Field(None, ge=1, le=1_000_000)
    """Largest number of sequences in a batch; null uses vLLM's default."""
    max_loras: int = Field(1, ge=1, le=65_536)
    """Largest number of adapters in memory at once."""
    max_lora_rank: int | None = Field(None, ge=1, le=65_536)
    """Largest adapter rank; null takes the rank of the adapter."""
    photos_per_prompt: int = Field(1, ge=0, le=10_000)
    """Largest number of photos per prompt."""
    scoring: Literal["logprobs", "pooling"] = "logprobs"
    """How tier probabilities are read. logprobs: from the log-probabilities of one sampled token. pooling: from the last hidden
    state, which vLLM's pooling runner returns; such an engine cannot generate."""
    eager: bool = False
    """Disables compilation and CUDA graphs: starts in seconds, generates more slowly. For trials and CPUs."""
    kv_cache_gib: float | None = Field(None, gt=0, le=1e6)
    """GiB of memory for the KV cache on a CPU; null uses vLLM's default."""
    seed: Seed = 0
    """Random seed of the engine."""


class RaySection(StrictModel):
    """Workers on a Ray cluster, each with its own engine. The machines share the file system with recipe, models and photos."""

    address: str = "auto"
    """auto: the cluster that this machine belongs to, or $RAY_ADDRESS; host:port: the head of a cluster that this machine belongs
    to; local: a new one on this machine, for this run alone."""
    min_workers: int = Field(1, ge=1, le=65_536)
    """Workers that the run keeps; it starts with those that are ready."""
    max_workers: int | None = Field(None, ge=1, le=65_536)
    """Largest number of workers; null: as many as the cluster has room for."""
    cpus_per_worker: int = Field(1, ge=1, le=4096)
    """CPU cores of a worker, also the threads of its engine on a CPU."""
    gpus_per_worker: float | None = Field(None, ge=0, le=4096)
    """GPUs of a worker; 0.5 puts two workers on a GPU. null: vllm.tensor_parallel where the cluster has GPUs, else none."""
    max_attempts: int = Field(3, ge=1, le=1000)
    """How often a piece of work is given to a worker if workers die of it or raise. After that its pairs have failed."""

    @property
    def workers(self) -> int:
        """Workers that the run is sure of, for estimates of time and cost."""
        return self.max_workers or self.min_workers

    @field_validator("address")
    @classmethod
    def _address_is_a_head(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value not in ("auto", "local") and (not host or "/" in host or not port.isascii() or not port.isdigit()):
            raise ValueError("auto, local, or host:port of a cluster's head. Ray's client (ray://) is slow: use `ray job submit`")
        return value

    def conflicts(self) -> Iterator[Conflict]:
        if self.max_workers is not None and self.max_workers < self.min_workers:
            found = f"{self.min_workers} and {self.max_workers}"
            yield Conflict(("min_workers", "max_workers"), found, "numbers in ascending order")
        if (self.gpus_per_worker or 0) > 1 and self.gpus_per_worker % 1:
            yield Conflict(("gpus_per_worker",), f"{self.gpus_per_worker:g}", "a share of one GPU, or whole GPUs")

    @staticmethod
    def check_packages() -> None:
        """Raises LoreError if Ray is not installed."""
        if importlib.util.find_spec("ray") is None:  # not ray.data, which would import Ray before it is told to be quiet
            raise LoreError("The recipe asks for Ray, which is not installed.\nInstall it: pip install 'lore-relevance[ray]'")


class ServeSection(StrictModel):
    """The KEY=VALUE settings of `lore serve judge`."""

    vllm: VllmSection = VllmSection()


class LoraSection(StrictModel):
    rank: int = Field(16, ge=1, le=65_536)
    """Rank of the low-rank update matrices."""
    alpha: float | None = Field(None, gt=0, le=MAX_WEIGHT)
    """LoRA alpha: the update is scaled by alpha / rank; null means 2 * rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the adapter's input; 0 disables it."""
    targets: str | list[str] = LANGUAGE_MODEL
    """Modules that get an adapter: language-model (its linear layers), all-linear (with those of a vision tower and connector,
    which vLLM does not apply), a regular expression for full module names, or a list of names."""
    dora: bool = False
    """Weight-decomposed LoRA (DoRA): slower, closer to full fine-tuning at low ranks."""
    modules_to_save: list[str] = []
    """Names of modules that are trained in full and saved with the adapter."""

    @property
    def scale_alpha(self) -> float:
        """alpha with its default filled in."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def conflicts(self) -> Iterator[Conflict]:
        if not self.targets:
            yield Conflict(("targets",), "no module, so there would be no adapter", "language-model, a pattern or module names")


def looks_local(name: str) -> bool:
    """Whether a model name is a path (existing or not) rather than a hub id."""
    return "/" in name and (name.startswith((".", "/", "~", "runs/")) or name.count("/") != 1)


class ModelSection(StrictModel):
    name: str = Field(min_length=1)
    """Hub id or local folder of the model."""
    adapter: str | None = None
    """Folder of a trained adapter to load on the model; null loads no adapter."""
    lora: LoraSection | None = None
    """Train a new LoRA adapter with these settings; null adds no adapter."""
    quantize: Literal["nf4"] | None = None
    """nf4 loads the frozen weights in 4 bits (QLoRA) and needs bitsandbytes; null does not quantize."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights. auto: bfloat16 if the GPU supports it, else float32; weights trained in full are float32."""
    attn: str | None = None
    """Attention implementation (attn_implementation of transformers); null uses the default of transformers."""
    trust_remote_code: bool = False
    """Allow Python code from the model repository to run. Enable it only after you have read that code. The record of a run folder
    and a benchmark file cannot enable it."""

    def _folders(self) -> dict[str, str]:
        return {key: folder for key in ("name", "adapter") if (folder := getattr(self, key))}

    def input_fingerprints(self) -> dict[str, InputFiles | Callable[[], str]]:
        """Of the weights that lie in local folders."""
        return {key: model_files(folder) for key, folder in self._folders().items() if Path(folder).is_dir()}

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
