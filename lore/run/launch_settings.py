"""Settings from outside the recipe: accelerate's config file, a DeepSpeed JSON and environment variables.

The recipe decides how a judge is trained. accelerate would let its own settings win without a message: a default config with
mixed_precision: bf16 makes a float32 recipe compute in bfloat16. Here they are found, with the place they come from, and compared
with the recipe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lore.config.yaml_text import read_yaml
from lore.support.errors import LoreError, reason
from lore.support.untrusted_json import parse_json

CONFIG_VARIABLE = "LORE_ACCELERATE_CONFIG"
"""Set by `lore launch` to the path of its accelerate config."""
DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "fp8"}
"""accelerate's words for mixed precision, and the dtype of the computation."""
DATA_PARALLEL = (
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config: tensor, context or sequence parallelism"),
    ("ACCELERATE_USE_MEGATRON_LM", "distributed_type: MEGATRON_LM"),
)


def mixed_precision(dtype: str, own: str) -> str:
    """The word for accelerate (no, bf16, fp16, fp8): the launcher's where model.dtype is auto, else the recipe's.

    dtype: model.dtype of the recipe; own: the word that the recipe means without a launcher. Raises LoreError if the launcher asks
    for another dtype than the recipe names. The launcher's `no` asks for nothing: accelerate sets it where nobody has chosen.
    """
    found = outside_precision()
    if found is None:
        return own
    word, source = found
    if dtype not in ("auto", DTYPES[word]):
        raise LoreError(
            f"model.dtype is {dtype}, but {source}, so training would compute in {DTYPES[word]}.\n"
            f"Remove it there (mixed_precision: 'no'; unset the variable), or set model.dtype: auto to accept it"
            + (f", or model.dtype: {DTYPES[word]}." if word != "fp8" else "."),
            same_on_every_rank=True,
        )
    return word


def outside_precision() -> tuple[str, str] | None:
    """(accelerate's word, where it comes from); none if nothing outside the recipe asks for a precision."""
    word = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if word in ("bf16", "fp16", "fp8"):
        return word, source_of("ACCELERATE_MIXED_PRECISION", "mixed_precision")
    path, content = deepspeed_file()
    for key, word in (("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16")):
        if _enabled(content, key):
            return word, f"{path} has {key}.enabled: true"
    return None


def _enabled(content: dict[str, Any], key: str) -> bool:
    section = content.get(key)
    return isinstance(section, dict) and means_true(section.get("enabled", False))


def means_true(value: Any) -> bool:
    """Whether DeepSpeed's config classes (pydantic) and accelerate's YAML 1.1 take a value for true."""
    return str(value).lower() in ("true", "1", "1.0", "yes", "on", "y", "t")


def accelerate_config(path: Path) -> dict[str, Any]:
    """The values of an accelerate config file. Raises LoreError if it is not YAML or no mapping."""
    try:
        content = read_yaml(path, aliases=True)
    except LoreError as error:
        failed = f"The accelerate config cannot be read, so nothing was started: {error}"
        raise LoreError(failed, same_on_every_rank=True) from error
    if not isinstance(content, dict | None):
        raise LoreError(
            f"The accelerate config {path} holds {type(content).__name__} {str(content)[:80]}, where accelerate reads keys with "
            "values.\n"
            "Correct the file, or write a new one with accelerate config.",
            same_on_every_rank=True,
        )
    return content or {}


def source_of(variable: str, key: str) -> str:
    """The variable with its value, and the accelerate config file that has the same value under `key`."""
    value = os.environ[variable]
    stated = f"the environment has {variable}={value}"
    if "ACCELERATE_DYNAMO_MODE" not in os.environ:  # accelerate's launchers set it
        return stated
    for path in _config_files():
        content = accelerate_config(path)
        for section in (content, content.get("deepspeed_config")):
            if isinstance(section, dict) and str(section.get(key, "")).lower() == value.lower():
                return f"{path} has {key}: {section[key]} ({variable}={value})"
    return f"{stated}, which accelerate launch sets from --{key} or its config file"


def _config_files() -> list[Path]:
    from accelerate.commands.config import default_config_file  # loads torch: a dry run loads this module

    path = Path(os.environ.get(CONFIG_VARIABLE) or default_config_file)
    return [path] if path.is_file() else []


def deepspeed_file() -> tuple[str, dict[str, Any]]:
    """(path, content) of the DeepSpeed JSON that accelerate was given; empty without one. Raises LoreError if it cannot be read."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true" or path == "none":
        return "", {}
    try:
        content = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise LoreError(
            f"deepspeed_config_file {path} cannot be read: {reason(error)}.\nCorrect the path or the file.", same_on_every_rank=True
        ) from error
    if not isinstance(content, dict):
        raise LoreError(
            f"deepspeed_config_file {path} holds {type(content).__name__} {str(content)[:80]}, where DeepSpeed reads a JSON object "
            '({"bf16": ...}).\nCorrect the path or the file.',
            same_on_every_rank=True,
        )
    return path, content


def check_optimization(*, max_grad_norm: float, micro_batch: int, passes: int, batch_size: int) -> None:
    """Raises LoreError if the launcher would optimize otherwise than train.* says.

    passes: gradient accumulation steps; batch_size: rows per optimizer step over all processes.
    """
    for variable, what in DATA_PARALLEL:
        if os.environ.get(variable, "false").lower() == "true":
            raise LoreError(
                f"The launcher asks for {what} ({variable}=true), but a recipe is trained data parallel: train.batch_size would "
                "not be the number of rows per step.\nLaunch with a config from launch/accelerate (ddp, zero2, zero3, fsdp2).",
                same_on_every_rank=True,
            )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return
    path, content = deepspeed_file()
    for key in ("optimizer", "scheduler"):
        if key in content:
            raise LoreError(
                f"{path} has the section {key!r}, which would replace the recipe's optimizer and schedule (train.lr, "
                f"train.weight_decay, train.schedule, train.lr_factors).\nRemove {key!r} from that file: the recipe decides.",
                same_on_every_rank=True,
            )
    for key in ("amp", "torch_autocast"):
        if _enabled(content, key):
            raise LoreError(
                f"{path} has {key}.enabled: true, which changes the precision behind the recipe's model.dtype.\n"
                f"Remove {key!r} from that file, and set model.dtype: bfloat16 in the recipe.",
                same_on_every_rank=True,
            )
    recipe = {
        "gradient_clipping": ("train.max_grad_norm: {} in the recipe", max_grad_norm),
        "gradient_accumulation_steps": (
            "train.batch_size and train.micro_batch_size in the recipe mean {} forward passes per step and process",
            passes,
        ),
        "train_micro_batch_size_per_gpu": ("train.micro_batch_size: {} in the recipe", micro_batch),
        "train_batch_size": ("train.batch_size: {} in the recipe", batch_size),
    }
    missing = {}
    if path:
        from deepspeed.runtime.constants import GRADIENT_CLIPPING_DEFAULT  # takes seconds: only for a run under DeepSpeed

        missing = {"gradient_clipping": GRADIENT_CLIPPING_DEFAULT, "gradient_accumulation_steps": 1}
    for key, (stated, wanted) in recipe.items():
        variable = f"ACCELERATE_{key.upper()}"
        if key in content:
            found, source = content[key], f"{path} has {key}: {content[key]}"
        elif variable in os.environ and not path:
            found = os.environ[variable]
            source = source_of(variable, key)
        elif key in missing:
            found, source = missing[key], f"{path} has no {key}, which DeepSpeed reads as {missing[key]}"
        else:
            continue
        if found != "auto" and _number(found) != float(wanted or 0):
            raise LoreError(
                f"{stated.format(wanted)}, but {source}.\n"
                + (f'Set "{key}": "auto" in that file' if path else f"Remove {key} from the launcher's settings")
                + ", so that the recipe decides, or set the recipe to the same value.",
                same_on_every_rank=True,
            )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0 if str(value).lower() == "none" else None
