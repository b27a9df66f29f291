"""Residual k-means, collision repair, and codes on disk."""

import json

import numpy as np
import pytest

from lore.recommend.codes import make_codes, read_codes, write_codes
from lore.recommend.quantize import Quantizer, codes_per_level, fit_residual_kmeans, load_quantizer
from lore.support.errors import LoreError


def tree(seed: int = 0, children: int = 6, leaves: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(vectors, group of each): groups far apart, kinds within a group nearer, items nearest."""
    rng = np.random.default_rng(seed)
    groups = 10 * rng.normal(size=(4, 8))
    kinds = groups[:, None] + 2 * rng.normal(size=(4, children, 8))
    vectors = kinds[:, :, None] + 0.3 * rng.normal(size=(4, children, leaves, 8))
    return vectors.reshape(-1, 8), np.repeat(np.arange(4), children * leaves)


def test_first_code_separates_the_groups_and_no_two_items_share_all_codes():
    vectors, group = tree()
    quantizer = fit_residual_kmeans(vectors, 3, 4, seed=0)
    # 4 ** 3 codes for 288 items would not do
    with pytest.raises(LoreError, match="64 items, and there are 288"):
        quantizer.assign(vectors)
    assert [len(set(group[quantizer.nearest(vectors)[:, 0] == code])) for code in range(4)] == [1, 1, 1, 1]
    quantizer = fit_residual_kmeans(vectors, 3, 8, seed=0)
    codes, relocated = quantizer.assign(vectors)
    assert len(np.unique(codes, axis=0)) == len(vectors)
    near = quantizer.nearest(vectors)
    assert (codes[~relocated] == near[~relocated]).all() and 0 < relocated.sum() < len(vectors)
    assert len(np.unique(near, axis=0)) == (~relocated).sum()


def test_a_relocated_item_keeps_its_prefix_and_takes_the_nearest_free_last_code():
    books = np.array([[[0.0], [100.0]], [[0.0], [10.0]], [[0.0], [1.0]]], dtype=np.float32)
    quantizer = Quantizer(books)
    vectors = np.array([[0.1], [0.2], [0.3], [0.0], [110.0]])
    codes, relocated = quantizer.assign(vectors)
    assert codes[3].tolist() == [0, 0, 0] and codes[0].tolist() == [0, 0, 1]
    # both codes below 0, 0 are taken: the next nearest second code, never another first one
    assert codes[1].tolist() == [0, 1, 0] and codes[2].tolist() == [0, 1, 1]
    assert relocated.tolist() == [True, True, True, False, False] and codes[4].tolist() == [1, 1, 0]


def test_new_items_get_free_codes_near_their_likes_and_old_ones_stay(tmp_path):
    vectors, group = tree()
    quantizer = fit_residual_kmeans(vectors[::2], 3, 16, seed=0)
    codes, _ = quantizer.assign(vectors[::2])
    quantizer.save(tmp_path / "codebooks.safetensors")
    again = load_quantizer(tmp_path / "codebooks.safetensors")
    assert (again.assign(vectors[::2])[0] == codes).all()
    new, _ = again.assign(vectors[1::2], taken=codes)
    assert len(np.unique(np.concatenate([codes, new]), axis=0)) == len(vectors)
    by_code = {first: group[::2][codes[:, 0] == first][0] for first in set(codes[:, 0])}
    assert np.mean([by_code[first] == one for first, one in zip(new[:, 0], group[1::2], strict=True)]) == 1
    one_by_one = np.concatenate([again.nearest(vector[None]) for vector in vectors])
    assert (one_by_one == again.nearest(vectors)).all()


def test_the_same_seed_gives_the_same_books_to_the_bit():
    vectors = np.random.default_rng(0).normal(size=(600, 16))
    first, second = (fit_residual_kmeans(vectors, 3, 32, seed=5).books for _ in range(2))
    assert (first == second).all()
    assert (first != fit_residual_kmeans(vectors, 3, 32, seed=6).books).any()


def test_no_code_of_the_first_level_is_dead_and_a_crowd_of_equal_items_gets_codes():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.zeros((300, 4)), rng.normal(size=(40, 4)), 50 + rng.normal(size=(3, 4))])
    quantizer = fit_residual_kmeans(vectors, 3, 16, seed=0)
    codes, _ = quantizer.assign(vectors)
    assert len(set(codes[:, 0])) == quantizer.size == 14 and len(np.unique(codes, axis=0)) == len(vectors)
    assert len(set(codes[:300, 0])) <= 2  # 196 fit below one first code


@pytest.mark.parametrize(
    ("items", "levels", "most", "size"),
    [(6250, 4, 256, 195), (81, 3, 256, 9), (5, 3, 256, 4), (400, 2, 256, 57), (9000, 3, 256, 256)],
)
def test_a_small_catalogue_gets_fewer_codes(items, levels, most, size):
    assert codes_per_level(items, levels, most) == size
    assert codes_per_level(items, levels, most) ** levels >= items


def test_codes_are_read_by_item_id_in_the_catalogue_s_order(tmp_path):
    codes = make_codes(np.array([[0, 1], [2, 3], [1, 1]]), 4)
    write_codes(tmp_path, ["a", "b", "c"], codes, np.array([False, False, True]), {"quantizer": "kmeans"})
    assert read_codes(tmp_path, ["a", "b", "c"]).fingerprint == codes.fingerprint
    found = read_codes(tmp_path / "codes.parquet", ["c", "a"])
    assert found.values.tolist() == [[1, 1], [0, 1]] and found.size == 4 and found.fingerprint != codes.fingerprint
    with pytest.raises(LoreError, match="no codes for 1 of 2 items .*x"):
        read_codes(tmp_path, ["a", "x"])
    card = json.loads((tmp_path / "codes.json").read_text())
    (tmp_path / "codes.json").write_text(json.dumps(card | {"size": 5}))
    with pytest.raises(LoreError, match="damaged .*other codes than its card says"):
        read_codes(tmp_path, ["a"])


def test_published_codes_are_read_and_other_json_is_refused(tmp_path):
    path = tmp_path / "index.json"
    path.write_text('{"0": ["<a_170>", "<b_2>"], "1": ["<a_3>", "<b_224>"]}')
    found = read_codes(path, ["1", "0"])
    assert found.values.tolist() == [[3, 224], [170, 2]] and found.size == 225
    refused = ['{"0": ["<b_1>"]}', '{"0": ["<a_1>"], "1": []}', '{"0": "<a_1>"}', "[]", '{"0": [1]}', "{", "{}"]
    for text in [*refused, '{"0": ["<a_123456>"]}', '{"0": 5}']:
        path.write_text(text)
        with pytest.raises(LoreError, match=r"cannot be read as codes(.|\n)*<a_170>"):
            read_codes(path, ["0"])


@pytest.mark.slow
def test_codes_of_the_autoencoder_repeat_and_live_in_arrays_alone(tmp_path):
    pytest.importorskip("vector_quantize_pytorch", reason="needs pip install 'lore-relevance[recommend]'")
    from lore.recommend.rqvae import fit_rqvae  # needs the package

    vectors, group = tree()
    quantizer = fit_rqvae(vectors / 10, 2, 32, epochs=80, seed=0)
    assert (quantizer.books == fit_rqvae(vectors / 10, 2, 32, epochs=80, seed=0).books).all()
    quantizer.save(tmp_path / "codebooks.safetensors")
    again = load_quantizer(tmp_path / "codebooks.safetensors")
    codes, _ = again.assign(vectors / 10)
    assert (codes == quantizer.assign(vectors / 10)[0]).all() and len(np.unique(codes, axis=0)) == len(vectors)
    near = again.nearest(vectors / 10)
    assert all(len(set(group[near[:, 0] == code])) == 1 for code in set(near[:, 0]))
    assert len(set(near[:, 0])) > 8  # 24 kinds of items
