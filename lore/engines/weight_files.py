"""The safetensors files of a checkpoint and of an adapter, as far as their headers tell: names and shapes, in milliseconds.

transformers gives a weight that no file holds random values and says so only in its log. Here a weight without a tensor, or with
one of another shape, is an error, before the run (`check_weights`) and when the model is loaded (`refuse_misfits`).
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lore.engines.config import ModelSection
from lore.support.errors import LoreError, translated
from lore.support.untrusted_json import parse_json

SHOWN = 3
REPORTED = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments with which from_pretrained also returns what `refuse_misfits` reads."""
ADVICE = (
    "Copy the checkpoint again, all its files together, or set model.name to a checkpoint that the installed transformers can load."
)


def some(names: Collection[str], of: str) -> str:
    """The first few of the names and how many more there are. of: what they name, in the plural."""
    rest = f" and {len(names) - SHOWN} more {of}" if len(names) > SHOWN else ""
    return f"{', '.join(list(names)[:SHOWN])}{rest}"


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of the tensors of a file. Raises LoreError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise LoreError(
            f"{path} cannot be read: {error}.\nThe file is cut off or damaged: copy it again, or save it again.",
            same_on_every_rank=True,
        ) from error


def check_weights(section: ModelSection, model: Any) -> None:
    """Raises LoreError unless the weight files of model.name can be read and hold every weight of the model, in its shape.

    model: without weights, and without the adapter. Names are compared as transformers does when it loads, with its conversions.
    A hub checkpoint that is not downloaded yet passes. Of a quantized checkpoint only the headers are read.
    """
    shapes = _shapes(section)
    if shapes is None or getattr(model.config, "quantization_config", None) is not None:
        return
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with translated(lambda _: (f"model.name {section.name}: its weights cannot be loaded", ADVICE)):
        _, found = type(model).from_pretrained(
            None, config=model.config, state_dict=tensors, device_map={"": "meta"}, **REPORTED
        )
    refuse_misfits(section, found)


def refuse_misfits(section: ModelSection, found: dict[str, Any]) -> None:
    """Raises LoreError for weights that transformers would leave at random values. found: the loading info of from_pretrained."""
    problems = [
        f"{name} has the shape {tuple(held)} in the file and {tuple(wanted)} in the model"
        for name, held, wanted in sorted(found["mismatched_keys"])
    ]
    lost = sorted(set(found["missing_keys"]) - {name for name, *_ in found["mismatched_keys"]})
    told = [f"{some(problems, 'weights of another shape')}."] * bool(problems)
    told += [f"No tensor for {some(lost, 'weights')}."] * bool(lost)
    if told:
        raise LoreError(
            f"model.name {section.name}: its weight files and its config.json do not belong together, so "
            f"{len(problems) + len(lost)} weights would have random values.\n{' '.join(told)}\n{ADVICE}",
            same_on_every_rank=True,
        )


def _shapes(section: ModelSection) -> dict[str, list[int]] | None:
    """The tensors of the base's files; None where weight_files is None."""
    paths = weight_files(section)
    if paths is None:
        return None
    shapes: dict[str, list[int]] = {}
    for path in paths:
        shapes |= tensor_shapes(path)
    return shapes


def weight_files(section: ModelSection) -> list[Path] | None:
    """The base's files; None if they are not on this machine, or belong to an adapter's base. Raises LoreError if one is missing.
    """
    folder = Path(section.name)
    if not folder.is_dir():
        found = [_cached(section.name, name) for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME)]
        found = [path for path in found if path is not None]
        if not found:
            return None
        folder = found[0].parent
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if whole.is_file():
        return [whole]
    if not index.is_file():
        if (folder / "adapter_config.json").is_file():  # transformers then loads the base that it names
            return None
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf", ".safetensors"))
        held = f" (it has {some(others, 'files')})" if others else ""
        raise LoreError(
            f"model.name {section.name} has no {SAFE_WEIGHTS_NAME}, so there are no weights to load{held}.\n"
            "Only safetensors are loaded: copy the checkpoint again, or save it with save_pretrained.",
            same_on_every_rank=True,
        )
    with translated(lambda _: (f"{index} cannot be read", ADVICE)):
        places = parse_json(index.read_bytes())["weight_map"]
        names = sorted(set(places.values()))
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("it names files outside its folder")
    for name in names:
        if not (folder / name).is_file():
            if not Path(section.name).is_dir():
                return None  # a download that is not finished
            raise LoreError(
                f"{index} names {name}, and {folder} has no such file, so weights are missing.\n{ADVICE}", same_on_every_rank=True
            )
    return [folder / name for name in names]


def _cached(name: str, file: str) -> Path | None:
    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None
