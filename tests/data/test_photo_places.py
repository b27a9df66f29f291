"""Photos of a stranger's table: only what lies below its folder or a named one, and only from ordinary files."""

import csv
import io
import json
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_python
from PIL import Image
from typer.testing import CliRunner

from lore.cli.main import app
from lore.data.images import ImageError, image_bytes, load_image, refusal
from lore.data.import_pairs import import_pairs
from lore.data.importers import open_source
from lore.data.pair import Pair
from lore.data.pair_source import PairSource
from lore.data.parquet import PairWriter, read_pairs
from lore.data.photo_places import PhotoPlaces
from lore.data.section import DataSection
from lore.data.splits import split_pairs
from lore.data_synth.synthesis.tasks import SCHEMA, read_tasks
from lore.support.errors import LoreError

SECRET, OWN = (0, 0, 255), (255, 0, 0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """home/private/p.png is nobody's business; home/table/ is the folder of a stranger's table."""
    for path, color in (("private/p.png", SECRET), ("table/photos/a.png", OWN), ("elsewhere/b.png", OWN), ("p.png", SECRET)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), color).save(tmp_path / path)
    (tmp_path / "table" / "link.png").symlink_to(tmp_path / "private" / "p.png")
    (tmp_path / "table" / "far").symlink_to(tmp_path / "private")
    (tmp_path / "table" / "near.png").symlink_to("photos/a.png")
    (tmp_path / "table" / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "table" / "pipe")
    (tmp_path / "table" / "empty.png").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


OUTSIDE = [
    "{home}/private/p.png",
    "../private/p.png",
    "photos/../../private/p.png",
    "//{home}/private/p.png",
    "{home}/table/../private/p.png",
    "{home}/table2/../private/p.png",
    "link.png",
    "far/p.png",
    "/proc/self/cwd/private/p.png",
    "/proc/kmsg",
    "/dev/zero",
    "/dev/stdin",
    "/",
    ".",
]
NO_FILE = [
    "none.png",
    "p.png",  # beside the working folder's files, not the table's
    "photos",
    "pipe",
    "loop",
    "loop/a.png",
    "file://{home}/private/p.png",
    "file:{home}/private/p.png",
    "https://shop/a.png",
    "%2e%2e/private/p.png",
    "..\\private\\p.png",
    "C:\\private\\p.png",
    "\\\\server\\p.png",
    "~/private/p.png",
    "a\0.png",
    "x" * 300,
    "x/" * 500_000,
    "../" * 500_000 + "private/p.png",
    "photos/a.png/b.png",
    "\ud83d.png",
]


@pytest.mark.parametrize(
    ("paths", "reason"), [(OUTSIDE, "image_outside"), (NO_FILE, "image_missing"), (["empty.png"], "image_corrupt")]
)
def test_a_photo_elsewhere_costs_its_row_and_says_why_and_how_to_allow_it(home, paths, reason):
    places = PhotoPlaces(home / "table")
    for path in (path.format(home=home) for path in paths):
        started = time.perf_counter()
        with pytest.raises(ImageError) as error:
            image_bytes({"bytes": None, "path": places.find(path)})
        assert error.value.reason == reason, path[:80]
        placed = places.placed({"bytes": None, "path": path})
        with pytest.raises(ImageError) as again:
            load_image(placed)
        assert (again.value.reason, again.value.found) == (reason, error.value.found)
        assert time.perf_counter() - started < 0.5
        if reason == "image_outside":
            assert str(home / "table") in error.value.found and "--image-root" in error.value.expected


def test_photos_below_the_folder_and_a_named_root_are_read(home):
    places = PhotoPlaces("table", ["elsewhere"])
    for path in ("photos/a.png", "./photos/a.png", f"{home}/table/photos/a.png", "near.png", "b.png", f"{home}/elsewhere/b.png"):
        assert load_image(places.placed({"bytes": None, "path": path})).getpixel((0, 0)) == OWN
    (home / "root").symlink_to("elsewhere")
    assert load_image(PhotoPlaces("table", ["root"]).find("b.png")).getpixel((0, 0)) == OWN


def write_table(path, photos):
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = [("query", "title", "image"), *(("q", f"t{number}", photo) for number, photo in enumerate(photos))]
        csv.writer(file).writerows(rows)
    return path


def test_an_import_embeds_no_private_photo_by_any_name(home):
    photos = [path.format(home=home) for path in [*OUTSIDE, *NO_FILE] if "\0" not in path and "\ud83d" not in path]
    table = write_table(home / "table" / "my.csv", [*photos, "photos/a.png", "near.png"])
    out = ("--embed-images", "--json", "-o", home / "table" / "out.parquet")
    done = run_python("-m", "lore", "data", "import", "table", table, "--rubric", "shop", *out, cwd=home, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reasons"] == {"image_outside": len(OUTSIDE), "image_missing": len(photos) - len(OUTSIDE)}
    embedded = [load_image(pair.image).getpixel((0, 0)) for pair in read_pairs(home / "table" / "out.parquet")]
    assert embedded == [OWN, OWN]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_kind_of_table_and_a_bad_photo_that_is_kept(home, suffix):
    rows = [{"query": "q", "title": path, "image": path} for path in ("../private/p.png", "photos/a.png")]
    table = home / "table" / f"my{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    else:
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_pairs(open_source("table", table), home / "out.parquet", None, keep_bad_photos=True, embed_images=True)
    assert report.repairs == {"unreadable_photo": 1} and "lies outside" in report.bad_photos[0]
    refused, read = read_pairs(home / "out.parquet", image_roots=())
    assert load_image(read.image).getpixel((0, 0)) == OWN
    with pytest.raises(ImageError):
        load_image(refused.image)


def test_pairs_of_a_stranger_allow_themselves_nothing(home, capsys):
    path = home / "table" / "pairs.parquet"
    paths = ["../private/p.png", str(home / "private" / "p.png"), "photos/a.png", "p.png"]
    with PairWriter(path, metadata={"lore.image_root": "/"}) as writer:
        for number, photo in enumerate(paths):
            writer.write(Pair(pair_id=str(number), query="q", title="t", label="L1", image={"bytes": None, "path": photo}))
    found = list(PairSource(DataSection(path=str(path)), home / "run").labeled())
    reasons = []
    for pair in found:
        try:
            reasons.append(load_image(pair.image).getpixel((0, 0)))
        except ImageError as error:
            reasons.append(error.reason)
    assert reasons == ["image_outside", "image_outside", OWN, "image_missing"]
    assert capsys.readouterr().err.count("data.image_root") == 1
    allowed = PairSource(DataSection(path=str(path), image_root=str(home / "private")), home / "run")
    assert [load_image(pair.image).getpixel((0, 0)) for pair in allowed.labeled()][:2] == [SECRET, SECRET]
    with PairWriter(home / "copy.parquet") as writer:  # a copy keeps the paths, so a root named later helps
        for pair in found:
            writer.write(pair)
    paths = [str(home / "private" / "p.png")] * 2 + [str(home / "table" / name) for name in ("photos/a.png", "p.png")]
    assert [pair.image for pair in read_pairs(home / "copy.parquet")] == [{"bytes": None, "path": path} for path in paths]


def test_a_recipe_reads_the_photos_of_its_table_and_of_its_root(home):
    table = write_table(home / "table" / "my.csv", ["photos/a.png", "b.png", "../private/p.png"])
    for root, titles in ((None, ["t0"]), ("elsewhere", ["t0", "t1"])):
        section = DataSection(path=str(table), source="table", image_root=root)
        source = PairSource(section, home / f"run-{root}")
        pairs = list(read_pairs(source.path, image_roots=source.image_roots))
        assert [pair.title for pair in pairs] == titles
        assert all(load_image(pair.image).getpixel((0, 0)) == OWN for pair in pairs)
    section = DataSection(path=str(table), source="table", image_root="nowhere")
    assert list(section.missing_inputs()) == [("image_root", "nowhere is no folder.")]


def test_tasks_of_a_stranger_too(home):
    image = {"bytes": None, "path": str(home / "private" / "p.png")}
    row = {"task": "multimodal", "pair_id": "1", "label": "L1", "messages": "[]", "completion": "", "image": image}
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), home / "table" / "multimodal.parquet")
    (task,) = read_tasks([home / "table" / "multimodal.parquet"])
    with pytest.raises(ImageError, match="outside"):
        load_image(task["image"])


@pytest.mark.parametrize("path", ["/proc/kmsg", "/dev/zero", "pipe", "/proc/self/environ", "/proc/self/mem"])
def test_reading_a_photo_never_waits_for_the_system(home, path):
    with pytest.raises(ImageError):
        image_bytes(str(home / "table" / path))


def test_bytes_that_look_like_a_refusal_are_no_image(home):
    whole = refusal(ImageError("image_outside", "x", "y"))
    for data in (whole[:-3], whole + b"}", refusal(ImageError("nonsense", "x", "y")), whole[:20] + b" [" * 100_000):
        with pytest.raises(ImageError) as error:
            load_image({"bytes": data, "path": None})
        assert error.value.reason == "image_corrupt"
    out = io.BytesIO()
    Image.new("RGB", (9, 9), OWN).save(out, "PNG")
    image = {"bytes": out.getvalue(), "path": "../private/p.png"}
    assert PhotoPlaces(home / "table").placed(image) is image


def test_a_forced_import_still_keeps_the_photos_of_its_table(home):
    table = write_table(home / "table" / "my.csv", ["photos/a.png", "link.png"])
    for name in ("table/photos/a.png", "table/link.png", "private/p.png"):
        before = (home / name).read_bytes()
        with pytest.raises(LoreError, match="photo of this table"):
            import_pairs(open_source("table", table), home / name, None, force=True)
        assert (home / name).read_bytes() == before


@pytest.mark.parametrize("photo", ["photos/a.png", "{home}/private/p.png"])
def test_a_forced_split_keeps_the_photos_too(home, photo):
    with PairWriter(home / "table" / "pairs.parquet") as writer:
        writer.write(Pair(pair_id="1", query="q", title="t", image={"bytes": None, "path": photo.format(home=home)}))
    file = home / "table" / photo.format(home=home)
    before = file.read_bytes()
    with pytest.raises(LoreError, match="photo of this table .*row 1"):
        split_pairs(home / "table" / "pairs.parquet", file, force=True)
    assert file.read_bytes() == before


def test_a_split_or_checked_file_elsewhere_says_that_the_photos_stay(home, capsys):
    with PairWriter(home / "table" / "pairs.parquet") as writer:
        writer.write(Pair(pair_id="1", query="q", title="t", image={"bytes": None, "path": "photos/a.png"}))
    split_pairs(home / "table" / "pairs.parquet", home / "new" / "split.parquet")
    said = f"The photos stay in {home}/table/photos, outside of the folder of {home}/new/split.parquet"
    assert said in capsys.readouterr().err
    done = CliRunner().invoke(app, ["data", "check", "table/pairs.parquet", "-o", "new/checked.parquet"])
    assert done.exit_code == 0 and "The photos stay in" in done.output.replace("\n", " ")
    for out in ("beside.parquet", "pairs.parquet"):
        split_pairs(home / "table" / "pairs.parquet", home / "table" / out)
        assert "stay" not in capsys.readouterr().err


def test_a_link_that_leads_outside_is_shown_with_its_end(home):
    for path in ("link.png", "far/p.png"):
        with pytest.raises(ImageError, match=f"{path}, which leads to {home}/private/p.png and lies outside of {home}/table"):
            PhotoPlaces(home / "table").find(path)
    with pytest.raises(ImageError, match="p.png, which lies outside of"):
        PhotoPlaces(home / "table").find("../private/p.png")


def test_a_table_of_another_kind_is_no_question_of_force(home):
    table = write_table(home / "table" / "my.csv", ["photos/a.png"])
    with pytest.raises(LoreError, match="lore data import table"):
        split_pairs(table, table)
