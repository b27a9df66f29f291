"""Frozen features of items: one vector per source, made once and read by the item encoder.

Sources are text, photo, and the structure: category, brand, price bucket and co-occurrence factors. Only training events count.
What has to be fitted on the catalogue (words, price buckets, mean photo) is returned as arrays, so that new items get the same
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from transformers import AutoModel

from lore.codec.pair_text import PairTextFormat, pair_texts
from lore.data.images import ImageError, load_image
from lore.data.pair import Pair
from lore.engines.config import ModelSection
from lore.engines.loading import default_device, load_model, load_processor
from lore.engines.model_checks import check_positions
from lore.recommend.baselines import followers
from lore.recommend.config import PhotoSection, SemanticIdsRecipe, TextSection
from lore.recommend.histories import Histories
from lore.student.encode import batches, pixels
from lore.student.model import load_tower
from lore.student.photo_embeddings import read_photo_embeddings
from lore.support.processes import say
from lore.support.progress import track

SOURCES = ("text", "photo", "category", "brand", "price", "behavior")
WORDS, HASHED, BUCKETS, CELLS = 2**15, 256, 12, 4
AT_ONCE = 256
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Features:
    """arrays: float32 [V, width] per source, unit vectors; zeros where an item lacks it. present: bool [V] per source."""

    arrays: Arrays
    present: Arrays

    def known(self) -> Features:
        """Without sources that no item has."""
        names = [name for name, there in self.present.items() if there.any()]
        return Features({name: self.arrays[name] for name in names}, {name: self.present[name] for name in names})

    def stored(self) -> Arrays:
        """Both as one dictionary."""
        return self.arrays | {f"{name}.present": array for name, array in self.present.items()}


def stored_features(arrays: Arrays) -> Features:
    """Features from `Features.stored`."""
    names = [name for name in SOURCES if name in arrays]
    return Features({name: arrays[name] for name in names}, {name: arrays[f"{name}.present"] for name in names})


def item_features(
    items: Iterable[Pair],
    total: int,
    recipe: SemanticIdsRecipe,
    *,
    histories: Histories | None = None,
    fitted: Arrays | None = None,
) -> tuple[Features, Arrays]:
    """(features, what was fitted). fitted: of an earlier call, for items of the same kind; None: fits it on these items.

    histories: of the same catalogue, for the co-occurrence factors; None: no item has any.
    """
    texts, categories, brands, prices, photos, seen = [], [], [], [], [], []
    fmt = PairTextFormat(tuple(recipe.text.fields), recipe.text.max_field_characters, recipe.text.max_tokens)
    photo_vector = photo_reader(recipe.photo) if "photo" in recipe.use else None
    items = iter(track(items, "items", total=total))
    while chunk := list(islice(items, AT_ONCE)):
        texts += [pair_texts(item, fmt)[1] for item in chunk]
        categories += [_path(item.category) for item in chunk]
        brands += [[item.brand.casefold()[:200]] if item.brand else [] for item in chunk]
        prices += [item.price if item.price is not None and item.price > 0 else np.nan for item in chunk]
        if photo_vector is not None:
            vectors, found = photo_vector(chunk)
            photos.append(vectors)
            seen.append(found)
    fitted = {} if fitted is None else dict(fitted)
    arrays: Arrays = {}
    present: Arrays = {}
    if "text" in recipe.use:
        arrays["text"] = text_vectors(texts, recipe.text, recipe.batch_tokens, recipe.seed, fitted)
        present["text"] = np.asarray([bool(text) for text in texts])
    if photo_vector is not None:
        arrays["photo"], present["photo"] = np.concatenate(photos), np.concatenate(seen)
        if "photo.mean" not in fitted:
            fitted["photo.mean"] = arrays["photo"][present["photo"]].mean(axis=0) if present["photo"].any() else arrays["photo"][0]
        arrays["photo"] = arrays["photo"] - fitted["photo.mean"]
        say(f"{present['photo'].sum():,} of {len(texts):,} items have a photo that can be read")
    if "structure" in recipe.use:
        hashed = FeatureHasher(HASHED, input_type="string")
        for name, values in (("category", categories), ("brand", brands)):
            arrays[name], present[name] = hashed.transform(values).toarray(), np.asarray([bool(one) for one in values])
        arrays["price"], present["price"] = _price_buckets(np.asarray(prices, dtype=np.float64), fitted)
        if histories is not None:
            arrays["behavior"] = behavior_factors(histories, recipe.fusion.window, recipe.fusion.factors, recipe.seed)
        else:
            arrays["behavior"] = np.zeros((len(texts), recipe.fusion.factors))
        present["behavior"] = arrays["behavior"].any(axis=1)
    for name, array in arrays.items():
        arrays[name] = (normalize(array) * present[name][:, None]).astype(np.float32)
    return Features(arrays, present), fitted


def _path(category: str | None) -> list[str]:
    """A category and those above it: `a`, `a > b` for `a > b`."""
    parts = [part.strip().casefold() for part in (category or "")[:500].split(">") if part.strip()]
    return [" > ".join(parts[: length + 1]) for length in range(len(parts))]


def _price_buckets(prices: np.ndarray, fitted: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """One place per bucket: 1 up to the bucket of the price, -1 after it, so that near prices are alike."""
    known = np.isfinite(prices)
    if "price.edges" not in fitted:
        inner = np.linspace(0, 1, BUCKETS + 1)[1:-1]
        fitted["price.edges"] = np.quantile(prices[known], inner) if known.any() else np.zeros(len(inner))
    bucket = np.searchsorted(fitted["price.edges"], np.where(known, prices, 0.0), side="right")
    return np.where(np.arange(BUCKETS) <= bucket[:, None], 1.0, -1.0), known


def text_vectors(texts: Sequence[str], section: TextSection, batch_tokens: int, seed: int, fitted: Arrays) -> np.ndarray:
    """[N, D] of a text encoder, or of latent semantic analysis, which is fitted if `fitted` does not hold it."""
    if section.encoder is not None:
        return _encoded(texts, section, batch_tokens)
    counts = HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), alternate_sign=False, norm=None).transform(texts)
    counts.data = 1 + np.log(counts.data)
    if "text.idf" not in fitted:
        fitted["text.idf"] = np.log((1 + len(texts)) / (1 + np.bincount(counts.indices, minlength=WORDS))).astype(np.float32)
        size = max(1, min(section.size, len(texts) - 1, len(np.unique(counts.indices)) - 1))
        svd = TruncatedSVD(size, random_state=seed).fit(_weighted(counts, fitted["text.idf"]))
        fitted["text.components"] = svd.components_.astype(np.float32)
    return _weighted(counts, fitted["text.idf"]) @ fitted["text.components"].T


def _weighted(counts: csr_matrix, idf: np.ndarray) -> csr_matrix:
    return normalize(counts.multiply(idf).tocsr())


def load_text_encoder(section: TextSection) -> tuple[Any, Any]:
    """(model, tokenizer). Raises LoreError if it cannot read as many tokens as the recipe says."""
    named = ModelSection(name=section.encoder, dtype="float32")
    model = load_model(named, device=default_device(), auto_class=AutoModel)
    check_positions(model, section.max_tokens, "text.max_tokens", "lower it")
    return model, load_processor(named)


def _encoded(texts: Sequence[str], section: TextSection, batch_tokens: int) -> np.ndarray:
    model, tokenizer = load_text_encoder(section)
    return mean_states(model, tokenizer, texts, section.max_tokens, batch_tokens)


@torch.inference_mode()
def mean_states(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, batch_tokens: int) -> np.ndarray:
    """Mean over the tokens of each text [N, hidden], float32."""
    rows = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    found = np.zeros((len(rows), model.config.hidden_size), dtype=np.float32)
    work = list(batches([len(row) for row in rows], batch_tokens))
    for places in track(work, "texts", total=len(work)) if len(work) > 1 else work:
        batch = tokenizer.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt").to(model.device)
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].to(states.dtype)
        found[places] = ((states * mask).sum(dim=1) / mask.sum(dim=1)).float().cpu().numpy()
    return found


def photo_reader(section: PhotoSection) -> Callable[[list[Pair]], tuple[np.ndarray, np.ndarray]]:
    """A function from items to (vectors [N, D], whether there is a photo that can be read [N])."""
    if section.embeddings is not None:
        known = read_photo_embeddings(section.embeddings)

        def stored(items: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
            rows = [known.row(item.item_id) for item in items]
            seen = np.asarray([row is not None for row in rows])
            return np.where(seen[:, None], known.vectors[[row or 0 for row in rows]], 0), seen

        return stored
    tower = None if section.encoder is None else load_tower(section.encoder, 1).eval().to(default_device())
    side = 64 if tower is None else tower.config.image_size

    @torch.inference_mode()
    def read(items: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
        opened = [_opened(item, side) for item in items]
        seen = np.asarray([one is not None for one in opened])
        inputs = np.stack([np.zeros((3, side, side), np.float32) if one is None else one for one in opened])
        if tower is None:
            cells = inputs.reshape(len(items), 3, CELLS, side // CELLS, CELLS, side // CELLS)
            return np.concatenate([part(cells, axis=(3, 5)).reshape(len(items), -1) for part in (np.mean, np.std)], axis=1), seen
        states = tower(pixel_values=torch.from_numpy(inputs).to(tower.device)).last_hidden_state
        return states.mean(dim=1).float().cpu().numpy(), seen

    return read


def _opened(item: Pair, side: int) -> np.ndarray | None:
    if item.image is None:
        return None
    try:
        return pixels(load_image(item.image), side)
    except ImageError:
        return None


def co_bought(histories: Histories, window: int) -> csr_matrix:
    """How often two items [V, V] are in a history at most `window` places apart. Training events only; symmetric, without a
    diagonal."""
    found = followers(histories, window, 1.0).tocoo()
    apart = found.row != found.col
    after = csr_matrix((found.data[apart], (found.row[apart], found.col[apart])), shape=found.shape)
    return (after + after.T).tocsr()


def behavior_factors(histories: Histories, window: int, size: int, seed: int) -> np.ndarray:
    """[V, size] of the positive pointwise mutual information of items taken together, reduced by SVD; zeros for an item that was
    never taken with another one in training."""
    counts = co_bought(histories, window).tocoo()
    found = np.zeros((len(histories.item_ids), size))
    if counts.nnz:
        sums = np.asarray(counts.sum(axis=0)).ravel()
        information = np.log(counts.data * sums.sum() / (sums[counts.row] * sums[counts.col]))
        matrix = csr_matrix((np.maximum(information, 0), (counts.row, counts.col)), shape=counts.shape)
        kept = min(size, counts.shape[0] - 1)
        svd = TruncatedSVD(kept, random_state=seed)
        found[:, :kept] = svd.fit_transform(matrix) / np.sqrt(np.maximum(svd.singular_values_, 1e-9))
    return found
