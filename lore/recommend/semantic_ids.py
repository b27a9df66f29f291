"""Stage semantic_ids: features, item encoder, residual quantizer, codes of every item, report.

    lore run recipes/recommend/semantic_ids.yaml

With `base`, the items that an earlier run knows keep their codes, and new items get free ones without training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from transformers import Trainer, set_seed

from lore.data.pair import Pair
from lore.engines.loading import default_device
from lore.recommend.codes import make_codes, read_codes_card, read_codes_table, write_codes
from lore.recommend.codes_report import write_report
from lore.recommend.config import SemanticIdsRecipe
from lore.recommend.features import Arrays, Features, co_bought, item_features, load_text_encoder, photo_reader, stored_features
from lore.recommend.histories import Histories
from lore.recommend.item_encoder import (
    NO_ID,
    Collator,
    ItemEncoder,
    ItemOrder,
    encode_items,
    load_encoder,
    save_encoder,
    side_by_side,
)
from lore.recommend.quantize import Quantizer, fit_residual_kmeans, load_arrays, load_quantizer, save_arrays
from lore.recommend.section import CODES
from lore.recommend.tables import read_item_ids
from lore.run.dry_pass import dry_pass
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say
from lore.train.common.batch_order import training_order
from lore.train.common.checkpoint import check_room
from lore.train.common.trainer import Recorder, own_network_arguments, refuse_sharding, set_steps, total_steps, train

ENCODER, FITTED, FEATURES = (
    Path("model/encoder.safetensors"),
    Path("model/features.safetensors"),
    Path("features/items.safetensors"),
)
BOOKS, VECTORS = "codebooks.safetensors", "vectors.safetensors"
PROBED = ("text", "photo", "behavior")
MAKING = ("use", "text", "photo", "fusion", "codes")
OWN_KEYS = (*MAKING, "seed", "batch_tokens")
"""Parts of the recipe that new items need: the card holds them."""
NUMBERS_AN_ITEM = 4096
"""At most about so many float32 numbers an item are written, besides what training saves of its id."""


@dataclass(frozen=True)
class ItemCoder:
    """A finished run of the stage: gives items vectors and codes without training. encoder: None for fusion: concat."""

    folder: Path
    recipe: SemanticIdsRecipe
    encoder: ItemEncoder | None
    fitted: Arrays
    quantizer: Quantizer

    def vectors(self, items: Iterator[Pair], total: int) -> np.ndarray:
        """Vectors [N, D] of items that training has not seen."""
        features, _ = item_features(items, total, self.recipe, fitted=self.fitted)
        return fused_vectors(self.encoder, features, np.zeros(total, dtype=np.int64))[0]


def open_item_coder(path: str | Path) -> ItemCoder:
    """Reads the run folder of a finished run. Raises LoreError for another folder."""
    folder, card = Path(path), read_codes_card(path)
    try:
        recipe = SemanticIdsRecipe.model_validate(card["recipe"] | {"run": "base", "data": {"items": "items.parquet"}})
    except (KeyError, TypeError, ValidationError) as error:
        raise LoreError(
            f"{folder} has codes whose card names no recipe, so new items get none.\nRun stage semantic_ids again."
        ) from error
    encoder = load_encoder(folder / ENCODER, recipe.fusion) if recipe.fusion.kind == "dynamic" else None
    return ItemCoder(folder, recipe, encoder, load_arrays(folder / FITTED, "features"), load_quantizer(folder / BOOKS))


def run(recipe: SemanticIdsRecipe, folder: RunFolder) -> None:
    """Writes <run>/codes.parquet with its card, codebooks, vectors, model and report.html."""
    set_seed(recipe.seed)
    if recipe.base is not None:
        if is_main_process():
            extend(recipe, folder)
        return
    trains = recipe.fusion.kind == "dynamic"
    args = None
    if trains:
        args = own_network_arguments(recipe.train, folder, 1, recipe.seed)
    item_ids = read_item_ids(recipe.data.items)
    histories = recipe.data.histories() if recipe.data.events else None
    check_recipe(recipe, folder, len(item_ids))
    with args.main_process_first(local=False, desc="features") if trains else nullcontext():
        features = prepared_features(recipe, folder, len(item_ids), histories)
    if not features.known().arrays:
        raise LoreError(
            f"{recipe.data.items} has nothing of what `use` names ({', '.join(recipe.use)}), so there is nothing to encode.\n"
            "Name what its items have.",
            same_on_every_rank=True,
        )
    seen = np.zeros(len(item_ids), dtype=bool) if histories is None else histories.training_counts() > 0
    encoder = trained_encoder(recipe, folder, args, features, histories, seen) if trains else None
    if is_main_process():
        vectors, gates = fused_vectors(encoder, features, np.where(seen, np.arange(len(seen)) + 1, NO_ID))
        save_arrays(folder / VECTORS, {"vectors": vectors} | ({} if gates is None else {"gates": gates}))
        quantizer = fitted_quantizer(recipe, vectors)
        quantizer.save(folder / BOOKS)
        values, relocated = quantizer.assign(vectors)
        spaces = {"fused vectors": vectors} | {name: features.arrays[name] for name in features.arrays if name in PROBED}
        _finish(recipe, recipe, folder, values, relocated, quantizer, spaces, histories, gates)


def check_recipe(recipe: SemanticIdsRecipe, folder: RunFolder, items: int) -> None:
    """The dry pass. Raises LoreError with all problems, in every process."""

    def positions() -> None:
        if "text" in recipe.use and recipe.text.encoder is not None:
            load_text_encoder(recipe.text)

    def photos() -> None:
        if "photo" in recipe.use:
            photo_reader(recipe.photo)

    def disk_space() -> None:
        ids = 3 * (recipe.train.keep_checkpoints + 2) * recipe.fusion.size if recipe.fusion.kind == "dynamic" else 0
        what = f"features, vectors and checkpoints of {items:,} items"
        fixes = ["lower fusion.size or train.keep_checkpoints", "set LORE_RUNS to a larger disk"]
        check_room(folder.path, 4 * items * (NUMBERS_AN_ITEM + ids), what, fixes, replaced=("checkpoints", "features"))

    dry_pass(recipe.stage, {"positions": positions, "photos": photos, "disk space": disk_space})


def prepared_features(recipe: SemanticIdsRecipe, folder: RunFolder, count: int, histories: Histories | None) -> Features:
    """The features. The main process makes them unless they are there, and the others read them."""
    if is_main_process():
        if histories is not None:
            folder.note(histories_fingerprint=histories.fingerprint)
        if not (folder / FITTED).is_file() or not (folder / FEATURES).is_file():
            features, fitted = item_features(recipe.data.catalogue(), count, recipe, histories=histories)
            for name, place in ((FEATURES, features.stored()), (FITTED, fitted)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                save_arrays(folder / name, place)
    return stored_features(load_arrays(folder / FEATURES, "features"))


def trained_encoder(
    recipe: SemanticIdsRecipe, folder: RunFolder, args: Any, features: Features, histories: Histories | None, seen: np.ndarray
) -> ItemEncoder:
    """The item encoder, trained unless it is there. seen [V]: items with training events, which have an id of their own."""
    if not (folder / ENCODER).is_file():
        features, neighbors = features.known(), None if histories is None else co_bought(histories, recipe.fusion.window)
        steps = total_steps(recipe.train, len(seen))
        set_steps(args, recipe.train, steps)
        set_seed(recipe.seed)
        widths = {name: array.shape[1] for name, array in features.arrays.items()}
        encoder = ItemEncoder(widths, len(seen), recipe.fusion)
        order = training_order([1] * len(seen), recipe.train.batch_size, steps, recipe.seed)
        told = f"{len(seen):,} items with {', '.join(f'{name} ({width})' for name, width in widths.items())}"
        say(f"item encoder: {told}; {0 if neighbors is None else neighbors.nnz // 2:,} pairs taken together; {steps:,} steps")
        trainer = Trainer(
            model=encoder,
            args=args,
            train_dataset=ItemOrder(order.reshape(-1)),
            data_collator=Collator(features, neighbors, seen, recipe.fusion, recipe.seed),
        )
        refuse_sharding(trainer, "an item encoder")
        train(trainer, Recorder(folder, "item encoder", keep=recipe.train.keep_checkpoints), folder, recipe)
        if is_main_process():
            save_encoder(trainer.accelerator.unwrap_model(trainer.model), folder / ENCODER)
        trainer.accelerator.wait_for_everyone()
    return load_encoder(folder / ENCODER, recipe.fusion).to(default_device())


def fused_vectors(encoder: ItemEncoder | None, features: Features, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(vectors [V, D], gates [V, layers]) of items; without an encoder the sources side by side, and no gates."""
    return (side_by_side(features), None) if encoder is None else encode_items(encoder, features, ids)


def fitted_quantizer(recipe: SemanticIdsRecipe, vectors: np.ndarray) -> Quantizer:
    """Codebooks of the catalogue's vectors."""
    section = recipe.codes
    if section.kind == "kmeans":
        return fit_residual_kmeans(vectors, section.levels, section.size, recipe.seed)
    from lore.recommend.rqvae import fit_rqvae  # needs the extra `recommend`

    return fit_rqvae(vectors, section.levels, section.size, section.epochs, recipe.seed)


def extend(recipe: SemanticIdsRecipe, folder: RunFolder) -> None:
    """Codes for a catalogue that has grown, see `base`."""
    coder = base_coder(recipe)
    known, old, size, moved = read_codes_table(recipe.base)
    stored = load_arrays(coder.folder / VECTORS, "vectors")["vectors"]
    row_of = {item: row for row, item in enumerate(known)}
    rows = np.asarray([row_of.get(item, -1) for item in read_item_ids(recipe.data.items)])
    new = np.flatnonzero(rows < 0)
    say(f"{len(new):,} of {len(rows):,} items are new; the others keep their codes")
    vectors, values, relocated = stored[rows], old[rows], moved[rows]
    if len(new):
        vectors[new] = coder.vectors((item for item, row in zip(recipe.data.catalogue(), rows, strict=True) if row < 0), len(new))
        values[new], relocated[new] = coder.quantizer.assign(vectors[new], taken=old)
    save_arrays(folder / VECTORS, {"vectors": vectors})
    for name in (BOOKS, FITTED, *([ENCODER] if coder.encoder else [])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(coder.folder / name, folder / name)
    histories = recipe.data.histories() if recipe.data.events else None
    _finish(recipe, coder.recipe, folder, values, relocated, coder.quantizer, {"fused vectors": vectors}, histories, None)


def base_coder(recipe: SemanticIdsRecipe) -> ItemCoder:
    """The base, with the photo vectors of this recipe where both name a file of them. Raises LoreError for keys that say how codes
    are made and differ from those of the base, which they could not change."""
    coder = open_item_coder(recipe.base)
    made_with = coder.recipe
    if recipe.photo.embeddings and made_with.photo.embeddings:
        made_with = made_with.model_copy(update={"photo": recipe.photo})
    defaults = {key: field.default for key, field in SemanticIdsRecipe.model_fields.items()}
    differ = [key for key in MAKING if getattr(recipe, key) not in (defaults[key], getattr(made_with, key))]
    if differ:
        named = " and ".join(differ)
        raise LoreError(
            f"{named}: this recipe has other values than {recipe.base} was made with, and new items get codes from the encoder and "
            "the codebooks of that run, so they would not count.\nLeave these keys out, repeat those of the base, or leave base "
            "out to make all codes anew."
        )
    if recipe.train != defaults["train"]:
        say("base: nothing is trained, so the section train is not read")
    return replace(coder, recipe=made_with)


def _finish(
    recipe: SemanticIdsRecipe,
    made_with: SemanticIdsRecipe,
    folder: RunFolder,
    values: np.ndarray,
    relocated: np.ndarray,
    quantizer: Quantizer,
    spaces: Arrays,
    histories: Histories | None,
    gates: np.ndarray | None,
) -> None:
    """Writes the codes, their card and the report. made_with: the recipe that trained the encoder. spaces: see write_report."""
    codes = make_codes(values, quantizer.size)
    own = made_with.resolved()
    item_ids = read_item_ids(recipe.data.items)
    summary = write_report(recipe, folder, codes, relocated, spaces, histories, gates)
    write_codes(folder.path, item_ids, codes, relocated, {"run": recipe.run, "recipe": {key: own[key] for key in OWN_KEYS}})
    folder.finish(summary | {"codes": str(folder / CODES), "report": str(folder / "report.html")})
