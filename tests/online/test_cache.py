"""The cache of the service: contents, the judge, ages, stores that fail, several processes."""


from hypothesis import given, settings
from test_keys import ITEM, batch_of, photographed

from lore.data.pair import Pair
from lore.label.keys import Keys, content_bytes
from lore.online.cache import content_key


def pair_of(row: dict) -> Pair:
    row = dict(row) | {"attributes": dict(row.get("attributes") or []), "slices": row.get("slices") or []}
    return Pair(pair_id="p", **row)


def contents_of_labels(pairs: list[Pair]) -> list[bytes]:
    names = ("query", "title", "description", "category", "brand", "shop", "price", "image", "slices")
    rows = [{name: getattr(pair, name) for name in names} | {"attributes": list(pair.attributes.items())} for pair in pairs]
    found = Keys().of(batch_of(rows))
    return content_bytes(found["high"], found["low"]).to_pylist()


def test_contents_are_those_of_labels(tmp_path):
    pairs = [pair_of(row) for row in photographed(tmp_path)]
    assert [content_key(pair) for pair in pairs] == contents_of_labels(pairs)
    assert [content_key(pair) for pair in pairs] == contents_of_labels(pairs)  # of remembered items


@settings(max_examples=60, deadline=None)
@given(ITEM)
def test_the_content_of_any_pair_is_that_of_its_label(row):
    pair = pair_of(row)
    assert [content_key(pair)] * 2 == contents_of_labels([pair]) + [content_key(pair)]
