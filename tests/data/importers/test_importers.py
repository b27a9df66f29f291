"""Importers, on small files in exactly their published form, and on the real files where they are at hand."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import CROWDFLOWER, crowdflower, load, write_csv, write_parquet

from lore.data.importers import open_source
from lore.data.pair import query_key
from lore.support.errors import LoreError


def test_crowdflower_labels_are_weighed_by_the_raters_agreement(tmp_path):
    rows = [["1", "led lights", "Set of 10", "", "1", "0.0"], ["2", "led lights", "Train, 10", "a\nb", "4", "0.471"]]
    pairs, _, _ = load("crowdflower", crowdflower(tmp_path, rows), tmp_path)
    assert [(p.pair_id, p.query, p.title, p.description, p.label) for p in pairs] == [
        ("1", "led lights", "Set of 10", None, "1"),
        ("2", "led lights", "Train, 10", "a\nb", "4"),
    ]
    assert [p.label_weight for p in pairs] == [1.0, pytest.approx(1 / 1.471)]
    assert {p.source for p in pairs} == {"crowdflower"}


@pytest.mark.parametrize("variance", ["nan", "inf", "-0.5", "-1", "-2", "much"])
def test_crowdflower_rejects_what_is_no_variance(tmp_path, variance):
    rows = [["1", "q", "t", "", "4", variance], ["2", "q", "u", "", "4", "0.5"]]
    pairs, _, (rejected,) = load("crowdflower", crowdflower(tmp_path, rows), tmp_path)
    assert [p.pair_id for p in pairs] == ["2"]
    assert (rejected["field"], rejected["reason"]) == ("label_weight", "field_type") and variance in rejected["found"]


def test_crowdflower_without_variance_or_label(tmp_path):
    pairs, _, _ = load("crowdflower", crowdflower(tmp_path, [["1", "q", "t", "d"]], CROWDFLOWER[:4]), tmp_path)
    assert (pairs[0].label, pairs[0].label_weight) == (None, 1.0)


def test_real_crowdflower_is_imported_whole(public_data, tmp_path):
    path = public_data / "crowdflower" / "train.csv"
    if not path.is_file():
        pytest.skip(f"no CrowdFlower file at {path}")
    pairs, report, rejected = load("crowdflower", path, tmp_path)
    assert len(pairs) == 6581 and rejected == [] and len({p.query for p in pairs}) == 172
    assert report.repairs["html"] == 72 and report.duplicates + report.conflicting > 0
    assert not any("<td>" in (p.description or "") or "&nbsp;" in (p.description or "") for p in pairs)


@pytest.fixture
def homedepot(tmp_path):
    """The three files as Kaggle has them: train.csv in Latin-1, attributes with empty lines."""
    train = [
        ["id", "product_uid", "product_title", "search_term", "relevance"],
        ["2", "100001", "Simpson Strong-Tie 12-Gauge Angle®", "angle bracket", "3"],
        ["3", "100001", "Simpson Strong-Tie 12-Gauge Angle®", "l bracket", "2.5"],
        ["9", "100002", "BEHR Premium Textured DeckOver 1-gal.", "deck over", "2.67"],
        ["16", "100005", "Delta Vero 1-Handle Shower", "rain shower", "1.33"],
    ]
    write_csv(tmp_path / "train.csv", train, encoding="latin-1", quoting=csv.QUOTE_NONNUMERIC)
    descriptions = [
        ["product_uid", "product_description"],
        ["100001", "Not only do angles make joints stronger, “they” last"],
        ["100002", "BEHR Premium"],
    ]
    write_csv(tmp_path / "product_descriptions.csv", descriptions)
    attributes = [
        ["product_uid", "name", "value"],
        ["100002", "MFG Brand Name", "BEHR Premium Textured DeckOver"],
        ["100001", "Bullet01", "Versatile connector"],
        ["", "", ""],
        ["100001", "Material", "Galvanized Steel"],
        ["100001", "MFG Brand Name", "Simpson Strong-Tie"],
    ]
    write_csv(tmp_path / "attributes.csv", attributes)
    return tmp_path


def test_homedepot_joins_its_three_files_and_takes_the_nearest_step(homedepot, tmp_path):
    pairs, _, rejected = load("homedepot", homedepot, tmp_path)
    assert rejected == []
    assert [(p.pair_id, p.label) for p in pairs] == [("2", "3"), ("3", "2"), ("9", "3"), ("16", "1")]
    first = pairs[0]
    assert first.title.endswith("Angle®") and first.item_id == "100001" and first.brand == "Simpson Strong-Tie"
    assert first.attributes == {"Bullet01": "Versatile connector", "Material": "Galvanized Steel"}
    assert first.description == "Not only do angles make joints stronger, “they” last"
    assert (pairs[3].description, pairs[3].attributes, pairs[3].brand) == (None, {}, None)
    assert load("homedepot", homedepot / "train.csv", tmp_path)[0] == pairs


def test_homedepot_reports_a_bad_row_of_a_product_file(homedepot, tmp_path):
    with open(homedepot / "attributes.csv", "a") as file:
        file.write("100005,Width\n")
    pairs, _, (rejected,) = load("homedepot", homedepot, tmp_path)
    assert len(pairs) == 4 and rejected["file"].endswith("attributes.csv") and rejected["row"] == 5


@pytest.mark.parametrize(
    "absent", [["attributes.csv"], ["product_descriptions.csv"], ["attributes.csv", "product_descriptions.csv"]]
)
def test_homedepot_without_its_companion_files_has_titles_and_says_what_is_missing(homedepot, tmp_path, capsys, absent):
    whole = load("homedepot", homedepot, tmp_path)[0]
    for name in absent:
        (homedepot / name).unlink()
    pairs, _, rejected = load("homedepot", homedepot, tmp_path)
    assert rejected == [] and [(p.pair_id, p.title, p.label) for p in pairs] == [(p.pair_id, p.title, p.label) for p in whole]
    assert all(not pair.attributes and pair.brand is None for pair in pairs) == ("attributes.csv" in absent)
    assert all(pair.description is None for pair in pairs) == ("product_descriptions.csv" in absent)
    said = capsys.readouterr().err
    assert all(f"{name} does not exist, so items have no " in said for name in absent)


def test_a_file_that_is_still_packed_is_named(homedepot, tmp_path, capsys):
    for name in ("attributes.csv", "train.csv"):
        (homedepot / name).rename(homedepot / f"{name}.zip")
    with pytest.raises(LoreError, match="train.csv does not exist. Unpack train.csv.zip first: unzip train.csv.zip"):
        open_source("homedepot", homedepot)
    (homedepot / "train.csv.zip").rename(homedepot / "train.csv")
    load("homedepot", homedepot, tmp_path)
    assert "Unpack attributes.csv.zip first: unzip attributes.csv.zip" in capsys.readouterr().err


def test_homedepot_keeps_the_mean_as_a_distribution(homedepot, tmp_path):
    pairs, report, _ = load("homedepot", homedepot, tmp_path)
    assert [p.label_distribution and pytest.approx(p.label_distribution) for p in pairs] == [
        None,
        {"2": 0.5, "3": 0.5},
        {"2": 0.33, "3": 0.67},
        {"1": 0.67, "2": 0.33},
    ]
    assert report.distributions == 3


@pytest.fixture
def wands(tmp_path):
    """The three tab-separated files of the repository's dataset folder."""
    folder = tmp_path / "WANDS" / "dataset"
    folder.mkdir(parents=True)
    queries = [["query_id", "query", "query_class"], ["0", "salon chair", "Massage Chairs"], ["1", "king bed", ""]]
    write_csv(folder / "query.csv", queries, "\t")
    columns = ["product_id", "product_name", "product_class", "category hierarchy", "product_description"]
    columns += ["product_features", "rating_count", "average_rating", "review_count"]
    products = [
        columns,
        [
            "0",
            "solid wood platform bed",
            "Beds",
            "Furniture / Beds",
            'good , 60 " deep',
            "overallwidth:64.7|style : a|style : b| : x",
            "15.0",
            "4.5",
            "15.0",
        ],
        ["7", "hair chair", "Massage Chairs", "", "", "", "", "", ""],
    ]
    write_csv(folder / "product.csv", products, "\t")
    labels = [
        ["id", "query_id", "product_id", "label"],
        ["0", "0", "7", "Exact"],
        ["1", "0", "0", "Irrelevant"],
        ["2", "1", "0", "Partial"],
        ["3", "1", "99", "Exact"],
    ]
    write_csv(folder / "label.csv", labels, "\t")
    return tmp_path / "WANDS"


def test_wands_joins_its_three_files(wands, tmp_path):
    pairs, _, (rejected,) = load("wands", wands, tmp_path)
    assert [(p.pair_id, p.query, p.item_id, p.label) for p in pairs] == [
        ("0", "salon chair", "7", "Exact"),
        ("1", "salon chair", "0", "Irrelevant"),
        ("2", "king bed", "0", "Partial"),
    ]
    bed = pairs[1]
    assert bed.attributes == {"overallwidth": "64.7", "style": "a, b"} and bed.category == "Furniture / Beds"
    assert bed.description == 'good , 60 " deep' and bed.slices == ["query_class:Massage Chairs"]
    assert pairs[0].category == "Massage Chairs" and pairs[2].slices == []
    assert (rejected["field"], rejected["reason"]) == ("title", "title_empty") and "product_id 99" in rejected["found"]


def test_real_binary_wands(public_data, tmp_path):
    path = public_data / "wands_partial"
    if not path.is_dir():
        pytest.skip(f"no WANDS files at {path}")
    pairs, report, rejected = load("wands", path, tmp_path)
    assert len(pairs) == 1805 and rejected == [] and {p.label for p in pairs} == {"Exact", "Irrelevant"}
    assert sum(p.label == "Exact" for p in pairs) == 780
    assert sum(bool(p.slices) for p in pairs) > 1700


@pytest.fixture
def esci(tmp_path):
    """The two Parquet files with the published columns, the pandas index column included."""
    folder = tmp_path / "shopping_queries_dataset"
    folder.mkdir()
    examples = {
        "example_id": [0, 1, 2, 3, 4],
        "query": [" revent 80 cfm", "# 2 pencils", "zapatos", "靴", "# 2 pencils"],
        "query_id": [0, 1, 2, 3, 1],
        "product_id": ["B000MOO21W", "B07X3Y6B1V", "B000MOO21W", "B0JP", "BMISSING"],
        "product_locale": ["us", "us", "es", "jp", "us"],
        "esci_label": ["I", "E", "S", "C", "E"],
        "small_version": [0, 1, 1, 1, 1],
        "large_version": [1, 1, 1, 1, 1],
        "split": ["train", "test", "train", "test", "train"],
    }
    write_parquet(folder / "shopping_queries_dataset_examples.parquet", {**examples, "__index_level_0__": range(5)})
    products = {
        "product_id": ["B000MOO21W", "B000MOO21W", "B07X3Y6B1V", "B0JP"],
        "product_title": ["Panasonic FV-20VQ3", "Ventilador", "Ticonderoga", None],
        "product_description": [None, "<p>silencioso</p>", "Pencils", "d"],
        "product_bullet_point": ["WhisperCeiling\nfans", None, None, None],
        "product_brand": ["Panasonic", None, "Dixon", None],
        "product_color": ["White", None, None, None],
        "product_locale": ["us", "es", "us", "jp"],
    }
    write_parquet(folder / "shopping_queries_dataset_products.parquet", products)
    return tmp_path


def test_esci_joins_by_product_and_locale(esci, tmp_path):
    pairs, _, rejected = load("esci", esci, tmp_path)
    assert [(p.pair_id, p.title, p.label, p.split, p.slices) for p in pairs] == [
        ("0", "Panasonic FV-20VQ3", "I", "train", ["locale:us", "task:2"]),
        ("1", "Ticonderoga", "E", "test", ["locale:us", "task:1", "task:2"]),
        ("2", "Ventilador", "S", "train", ["locale:es", "task:1", "task:2"]),
    ]
    assert pairs[0].query == "revent 80 cfm" and pairs[0].brand == "Panasonic"
    assert pairs[0].attributes == {"color": "White", "bullet points": "WhisperCeiling\nfans"}
    assert pairs[2].description == "silencioso"
    assert [(r["row"], r["reason"]) for r in rejected] == [(4, "title_empty"), (5, "title_empty")]
    assert "BMISSING (us)" in rejected[1]["found"]


def test_esci_with_binary_columns_dates_and_without_optional_columns(esci, tmp_path):
    folder = esci / "shopping_queries_dataset"
    examples, products = (folder / f"shopping_queries_dataset_{name}.parquet" for name in ("examples", "products"))
    before = [(p.pair_id, p.query, p.title, p.label) for p in load("esci", esci, tmp_path)[0]]
    table = pq.read_table(products)
    far = pa.array([None, 10**7, 1, None], pa.int32()).cast(pa.int32()).view(pa.date32())
    columns = {name: table[name].cast(pa.binary()) for name in ("product_id", "product_title", "product_locale")}
    write_parquet(products, {**columns, "product_brand": far})
    table = pq.read_table(examples)
    columns = {name: table[name].cast(pa.binary()) for name in ("query", "product_id", "product_locale", "esci_label")}
    write_parquet(examples, {"example_id": table["example_id"], **columns})
    pairs, _, rejected = load("esci", esci, tmp_path)
    assert [(p.pair_id, p.query, p.title, p.label) for p in pairs] == before[:2] and pairs[1].brand == "1970-01-02"
    assert {p.split for p in pairs} == {None} and pairs[0].slices == ["locale:us"]
    unread = [(r["row"], r["field"]) for r in rejected if r["file"] == str(products)]
    assert unread == [(2, "product_brand")]  # a brand after the year 9999
    with pytest.raises(LoreError, match="no column small_version"):
        load("esci", esci, tmp_path, options={"version": "small"})


def test_a_source_without_a_file_that_it_needs_says_what_the_file_gives(esci, wands, tmp_path):
    (esci / "shopping_queries_dataset" / "shopping_queries_dataset_products.parquet").unlink()
    with pytest.raises(LoreError, match="(?s)No pair can be made.*products.parquet has the titles"):
        open_source("esci", esci)
    folder = tmp_path / "WANDS" / "dataset"
    (folder / "product.csv").unlink()
    (folder / "query.csv").unlink()
    with pytest.raises(LoreError, match="(?s)query.csv has the text of the queries and product.csv has the titles"):
        open_source("wands", folder)


def test_crowdflower_without_train_csv_names_test_csv(tmp_path):
    (tmp_path / "test.csv").write_text("id,query,product_title,product_description\n1,q,t,d\n")
    with pytest.raises(LoreError, match="test.csv has no labels"):
        open_source("crowdflower", tmp_path)
    pairs, report, _ = load("crowdflower", tmp_path / "test.csv", tmp_path)
    assert [pair.label for pair in pairs] == [None] and report.unlabeled == 1


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"locale": "us"}, ["0", "1"]),
        ({"locale": "us,es", "version": "small"}, ["1", "2"]),
        ({"version": "large"}, ["0", "1", "2"]),
    ],
)
def test_esci_switches(esci, tmp_path, options, ids):
    assert [p.pair_id for p in load("esci", esci, tmp_path, options=options)[0]] == ids


def relabeled(esci, **columns):
    path = esci / "shopping_queries_dataset" / "shopping_queries_dataset_examples.parquet"
    write_parquet(path, {**pq.read_table(path).to_pydict(), **columns})


@pytest.mark.parametrize("options", [{}, {"locale": "us"}, {"locale": "us", "version": "small"}])
def test_an_esci_row_that_does_not_say_its_locale_is_rejected_and_not_dropped(esci, tmp_path, options):
    relabeled(esci, product_locale=["us", "us", None, "jp", "US"])
    _, report, rejected = load("esci", esci, tmp_path, options=options)
    found = {line["row"]: line["found"] for line in rejected if line["reason"] == "unknown_locale"}
    assert found == {3: "locale None", 5: "locale 'US'"}
    assert report.rows == {0: 5, 1: 4, 2: 3}[len(options)]


def test_an_esci_row_that_does_not_say_its_version_is_rejected_where_one_is_asked_for(esci, tmp_path):
    relabeled(esci, small_version=[0, 1, None, 1, 1])
    _, _, rejected = load("esci", esci, tmp_path, options={"version": "small"})
    assert [line["row"] for line in rejected if line["reason"] == "unknown_version"] == [3]


@pytest.mark.parametrize("kind", ["locale", "market"])
def test_a_table_can_name_the_column_of_the_market(tmp_path, kind):
    rows = [["q", "t", "g", "where"], ["bol", "bowl", "home", "us"], ["bol", "bowl", "", "es"], ["bol", "bowl", "home", ""]]
    write_csv(tmp_path / "my.csv", rows)
    mapped = {"query": "q", "title": "t", "slices": "g", kind: "where"}
    pairs, _, rejected = load("table", tmp_path / "my.csv", tmp_path, "shop", options={"map": mapped})
    assert rejected == [] and [p.slices for p in pairs] == [["home", f"{kind}:us"], [f"{kind}:es"], ["home"]]
    assert len({query_key(p.query, p.slices) for p in pairs}) == len({p.pair_id for p in pairs}) == 3


def test_esci_refuses_a_locale_it_has_not(esci, tmp_path):
    with pytest.raises(LoreError, match="locale 'uk'; expected some of us,es,jp"):
        load("esci", esci, tmp_path, options={"locale": "us,uk"})


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("crowdflower", "crowdflower-search-relevance"),
        ("homedepot", "home-depot-product-search-relevance"),
        ("wands", "wayfair/WANDS"),
        ("esci", "amazon-science/esci-data"),
        ("rair", "chenJi/RAIR"),
    ],
)
def test_missing_data_says_where_it_comes_from(tmp_path, name, where):
    with pytest.raises(LoreError, match=f"(?s)does not exist.*{where}.*LORE_DATA"):
        open_source(name, tmp_path / "none")


def test_unknown_sources_and_options_name_the_nearest(tmp_path):
    with pytest.raises(LoreError, match="no source 'wand'.*Nearest: 'wands'"):
        open_source("wand", tmp_path)
    with pytest.raises(LoreError, match="no option 'local'; its options are locale, version. Nearest: 'locale'"):
        open_source("esci", tmp_path, options={"local": "us"})


@pytest.mark.parametrize("form", ["{}.0", "{:.5e}"])
@pytest.mark.parametrize("file", ["train.csv", "product_descriptions.csv", "attributes.csv"])
def test_homedepot_ids_written_as_floats_are_the_same_ids(homedepot, tmp_path, file, form):
    plain = load("homedepot", homedepot, tmp_path)[0]
    encoding = "latin-1" if file == "train.csv" else "utf-8"
    with open(homedepot / file, encoding=encoding, newline="") as text:
        header, *rows = csv.reader(text)
    at = header.index("product_uid")
    for row in rows:
        row[at] = row[at] and form.format(int(row[at]))
    write_csv(homedepot / file, [header, *rows], encoding=encoding)
    assert load("homedepot", homedepot, tmp_path)[0] == plain
    assert plain[0].attributes["Material"] == "Galvanized Steel" and plain[0].item_id == "100001"


def test_homedepot_without_a_common_id_is_refused_and_with_few_it_says_so(homedepot, tmp_path, capsys):
    text = (homedepot / "attributes.csv").read_text()
    (homedepot / "attributes.csv").write_text(text.replace("100001", "A-100001"))
    load("homedepot", homedepot, tmp_path)
    assert "the product_uid of 3 of 4 rows is not in attributes.csv" in capsys.readouterr().out
    (homedepot / "attributes.csv").write_text(text.replace("10000", "A-10000"))
    with pytest.raises(LoreError, match="No product_uid of 4 rows is in attributes.csv .such as '100001'; .*'A-100002'"):
        load("homedepot", homedepot, tmp_path)


def test_wands_ids_written_as_floats_are_the_same_ids(wands, tmp_path):
    plain = load("wands", wands, tmp_path)[0]
    folder = wands if (wands / "label.csv").is_file() else wands / "dataset"
    rows = [line.split("\t") for line in (folder / "label.csv").read_text().splitlines()]
    changed = [rows[0]] + [[row[0], f"{row[1]}.0", f"{row[2]}.0", *row[3:]] for row in rows[1:]]
    write_csv(folder / "label.csv", changed, "\t")
    assert load("wands", wands, tmp_path)[0] == plain and len(plain) > 0
