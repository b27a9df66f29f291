"""The item encoder: gates, views, what its inputs may see."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from lore.recommend.config import FusionSection
from lore.recommend.features import Features, behavior_factors, co_bought
from lore.recommend.histories import Histories, Targets
from lore.recommend.item_encoder import NO_ID, Collator, ItemEncoder, contrast, encode_items, load_encoder, save_encoder


def features(items: int = 12, photos: int = 8) -> Features:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(items, width)).astype(np.float32) for name, width in (("text", 6), ("photo", 5))}
    there = {"text": np.arange(items) < items - 1, "photo": np.arange(items) < photos}  # the last item has nothing at all
    return Features({name: array * there[name][:, None] for name, array in arrays.items()}, there)


def encoder(**section) -> ItemEncoder:
    torch.manual_seed(0)
    found = ItemEncoder({"text": 6, "photo": 5}, 12, FusionSection(size=16, heads=2, **section)).eval()
    torch.nn.init.normal_(found.ids.weight)
    return found


def inputs(found: Features) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    present = torch.from_numpy(np.stack(list(found.present.values()), axis=1))
    return {name: torch.from_numpy(array) for name, array in found.arrays.items()}, present, torch.arange(12) + 1


@torch.no_grad()
def test_at_gate_0_nothing_is_fused_and_at_1_everything():
    model, (arrays, present, ids) = encoder(layers=3), inputs(features())
    closed, gates = model.encode(arrays, present, ids, gate=0.0)
    assert torch.equal(closed, torch.nn.functional.normalize(model.out(model.ids(ids)), dim=1)) and gates.max() == 0
    shifted = {name: array + 1 for name, array in arrays.items()}
    assert torch.equal(closed, model.encode(shifted, present, ids, gate=0.0)[0])
    query = model.ids(ids)
    tokens = torch.stack([model.norms[name](model.sources[name](arrays[name])) for name in arrays], dim=1) * present[:, :, None]
    absent = ~(present | ~present.any(dim=1, keepdim=True))
    for layer in model.layers:  # the plain transformer, without a gate
        asked = layer.before(query)
        query = query + layer.attention(asked[:, None], tokens, tokens, key_padding_mask=absent)[0][:, 0]
        query = query + layer.feed_forward(layer.between(query))
    full, gates = model.encode(arrays, present, ids, gate=1.0)
    assert torch.allclose(full, torch.nn.functional.normalize(model.out(query), dim=1), atol=1e-6) and gates.min() == 1
    learned, gates = model.encode(arrays, present, ids)
    assert 0 < gates.min() and gates.max() < 1 and gates.std() > 0
    assert not torch.allclose(learned, full) and not torch.allclose(learned, closed)
    open_model = encoder(layers=3, gate="open")
    assert torch.equal(open_model.encode(arrays, present, ids)[0], full)


@torch.no_grad()
def test_a_missing_source_is_not_read_and_an_item_without_any_has_a_finite_vector():
    model, (arrays, present, ids) = encoder(), inputs(features())
    first = model.encode(arrays, present, ids)[0]
    arrays["photo"][8:] = 99.0
    arrays["text"][11] = 99.0
    assert torch.equal(model.encode(arrays, present, ids)[0], first) and torch.isfinite(first).all()
    arrays["photo"][0] = 99.0
    assert not torch.equal(model.encode(arrays, present, ids)[0][0], first[0])


def test_views_keep_a_source_and_what_is_drawn_depends_on_the_place_in_training_alone():
    found = features()
    found.arrays["behavior"], found.present["behavior"] = np.ones((12, 2), np.float32), np.arange(12) < 6
    neighbors = csr_matrix(([1.0, 3.0], ([0, 0], [3, 5])), shape=(12, 12))
    collate = Collator(found, neighbors, np.arange(12) < 6, FusionSection(modality_dropout=0.9), seed=1)
    places = [(40 + at, row) for at, row in enumerate([0, 1, 7, 11])]
    batch, again = (
        collate(places),
        Collator(found, neighbors, np.arange(12) < 6, FusionSection(modality_dropout=0.9), seed=1)(places),
    )
    assert all(torch.equal(batch[name], again[name]) for name in batch if name != "features")
    for view in (batch["first"], batch["second"]):
        assert view.any(dim=1).tolist() == [True, True, True, False] and not (view & ~batch["present"][:4]).any()
    assert batch["neighbor"].tolist() == [True, False, False, False] and int(batch["items"][4]) in (3, 5)
    drawn = [collate([(at, 0), (at + 1, 1), (at + 2, 8)]) for at in range(300)]
    assert np.mean([int(one["items"][3]) == 5 for one in drawn]) == pytest.approx(0.75, abs=0.1)
    read = np.stack([one["first"][0].numpy() for one in drawn]).astype(int), np.asarray([int(one["ids"][0]) for one in drawn])
    assert read[0][read[1] == NO_ID, 2].sum() == 0 < read[0][read[1] == 1, 2].sum()  # without an id as if it were new
    assert not any(one["second"][:, 2].any() or one["present"][3:, 2].any() for one in drawn)
    assert {int(one["ids"][0]) for one in drawn} == {NO_ID, 1} and {int(one["ids"][2]) for one in drawn} == {NO_ID}


def test_contrast_is_the_textbook_s_infonce_and_knows_the_same_item_twice():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1) for _ in range(2))
    items = torch.arange(5)
    logits = (one @ other.T / 0.2).exp()
    both = [-(logits[i, i] / logits[i].sum()).log() - (logits[i, i] / logits[:, i].sum()).log() for i in range(5)]
    assert contrast(one, other, items, items, 0.2).item() == pytest.approx(sum(both).item() / 10, abs=1e-6)
    twice = torch.tensor([0, 0, 2, 3, 4])  # items 0 and 1 are the same: no negatives of each other
    assert contrast(one, other, twice, twice, 0.2) < contrast(one, other, items, items, 0.2)


def test_an_encoder_is_read_as_it_was_saved(tmp_path):
    model, found = encoder(), features()
    save_encoder(model, tmp_path / "e.safetensors")
    again = load_encoder(tmp_path / "e.safetensors", model.section)
    ids = np.arange(12) + 1
    for one, other in zip(encode_items(model, found, ids), encode_items(again, found, ids), strict=True):
        assert (one == other).all()


def histories(items: list[list[int]], held_out: int) -> Histories:
    starts = np.cumsum([0, *map(len, items)])
    users = np.arange(len(items))
    targets = Targets(users, starts[1:] - 1)
    flat = np.concatenate([np.asarray(one, dtype=np.int32) for one in items])
    names = [f"u{user}" for user in users], [f"i{row}" for row in range(6)]
    return Histories(*names, flat, starts, starts[1:] - held_out, np.arange(len(flat)) * 1.0, targets, targets, "x")


def test_only_training_events_count():
    rows = [[0, 1, 2, 3], [1, 0, 4, 4], [2, 2, 0, 5]]
    counts = co_bought(histories(rows, held_out=1), window=2).toarray()
    expected = np.zeros((6, 6))
    for first, second in [(0, 1), (0, 2), (1, 2), (1, 0), (1, 4), (0, 4), (2, 0), (2, 0)]:
        expected[first, second] += 1
        expected[second, first] += 1
    assert (counts == expected).all()
    changed = [[*row[:-1], 5 - row[-1]] for row in rows]
    factors = [behavior_factors(histories(one, held_out=1), 2, 4, 0) for one in (rows, changed)]
    assert (factors[0] == factors[1]).all() and factors[0][[3, 5]].any() == 0 and factors[0][[0, 1, 2, 4]].any(axis=1).all()
