"""Inputs of finished runs: every changed byte is seen, unchanged files are not read, and old manifests stay valid."""

import json
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lore.data.pair import Pair
from lore.data.parquet import PairWriter
from lore.run.run_folder import RunFolder
from lore.run.runner import run_recipe
from lore.support import fingerprint, input_files
from lore.support.errors import LoreError

LABELS = ("L1", "L2", "L3", "L4")


@pytest.fixture(autouse=True)
def other_process(monkeypatch):
    """Nothing is known from this process, and files that were just written count as settled."""
    monkeypatch.setattr(input_files, "RECENT_NS", 0)
    monkeypatch.setattr(fingerprint, "_digests", {})
    return lambda: fingerprint._digests.clear()


def recipe(write_recipe, path, more="", run="a"):
    source = "table" if Path(path).suffix in (".csv", ".jsonl") else "pairs"
    return write_recipe(f"{run}.yaml", f"stage: demo\nrun: {run}\ndata: {{path: '{path}', source: {source}, rubric: shop{more}}}")


def rewrite(path: Path, content: bytes, *, keep_time=True) -> None:
    state = path.stat()
    assert len(content) == state.st_size
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def flipped(path: Path) -> bytes:
    """The table with other labels in the middle, as long as before."""
    lines = path.read_text().split("\n")
    for number in range(len(lines) // 3, len(lines) // 2):
        lines[number] = lines[number].replace(",L1,", ",L4,")
    return "\n".join(lines).encode()


@pytest.fixture
def table(tmp_path):
    """6,000 rated pairs in 1.5 MB, of which sampling read a part."""
    rng = random.Random(0)
    rows = [f"query {i // 10},title {i} {'x' * 220},{rng.choice(LABELS)},train" for i in range(6000)]
    path = tmp_path / "rated.csv"
    path.write_text("query,title,label,split\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("keep_time", [False, True])
def test_flipped_labels_of_a_finished_run_are_seen(demo, write_recipe, runs, table, other_process, keep_time):
    """Reported: half of the labels flipped at equal size, and the run was "already done"."""
    path = recipe(write_recipe, table)
    run_recipe(path)
    other_process()
    rewrite(table, flipped(table), keep_time=keep_time)
    with pytest.raises(LoreError, match=r"made with other inputs:\n  input data\.path: .*other bytes in rated\.csv"):
        run_recipe(path)


def test_unchanged_inputs_are_not_read(demo, write_recipe, runs, table, other_process, monkeypatch, capsys):
    path = recipe(write_recipe, table)
    run_recipe(path)
    other_process()
    monkeypatch.setattr(input_files, "file_digest", lambda path: pytest.fail(f"reads {path}"))
    run_recipe(path)
    assert "already done" in capsys.readouterr().out


def test_a_touched_or_moved_input_with_the_same_bytes_is_the_same(demo, write_recipe, runs, table, other_process, monkeypatch):
    path = recipe(write_recipe, table)
    folder = run_recipe(path)
    noted = folder.inputs_path.read_text()
    os.utime(table)
    other_process()
    run_recipe(path)
    assert folder.inputs_path.read_text() != noted  # the new times, so that the next start reads nothing
    with monkeypatch.context() as patched:
        patched.setattr(input_files, "file_digest", lambda path: pytest.fail(f"reads {path}"))
        run_recipe(path)
    table.unlink()
    run_recipe(path)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"data.path": 3}', b'{"data.path": [[1]]}', b"[" * 100_000])
def test_a_damaged_list_of_states_costs_only_a_read(demo, write_recipe, runs, table, other_process, content):
    path = recipe(write_recipe, table)
    folder = run_recipe(path)
    folder.inputs_path.write_bytes(content)
    run_recipe(path)
    other_process()
    rewrite(table, flipped(table))
    folder.inputs_path.write_bytes(content)
    with pytest.raises(LoreError, match="other inputs"):
        run_recipe(path)


def test_a_pipe_in_place_of_the_list_of_states_is_not_waited_for(demo, write_recipe, runs, table):
    folder = run_recipe(recipe(write_recipe, table))
    folder.inputs_path.unlink()
    os.mkfifo(folder.inputs_path)
    run_recipe(recipe(write_recipe, table))
    assert folder.inputs_path.is_file()


def test_a_file_that_may_change_within_its_time_stamp_is_read_again(demo, write_recipe, runs, table, other_process, monkeypatch):
    monkeypatch.setattr(input_files, "RECENT_NS", 10**12)
    path = recipe(write_recipe, table)
    folder = run_recipe(path)
    rows = json.loads(folder.inputs_path.read_text())["data.path"]
    assert [row[3:5] for row in rows] == [[0, 0]]


def test_a_manifest_of_an_earlier_version_is_compared_by_its_own_rule(demo, write_recipe, runs, table, other_process, capsys):
    path = recipe(write_recipe, table)
    folder = run_recipe(path)
    manifest = folder.manifest
    manifest["fingerprints"]["input data.path"] = fingerprint.files_fingerprint([table])
    folder.manifest_path.write_text(json.dumps(manifest))
    folder.inputs_path.unlink()
    run_recipe(path)
    assert "already done" in capsys.readouterr().out
    rewrite(table, table.read_bytes().replace(b"query 0", b"query X"))
    with pytest.raises(LoreError, match="other inputs"):
        run_recipe(path)


def photos(folder: Path, count: int = 3) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 50, 90)).save(path)
    return paths


@pytest.mark.parametrize("kind", ["csv", "jsonl", "mapped", "pairs"])
def test_a_photo_that_a_table_names_by_path_counts(demo, write_recipe, runs, tmp_path, other_process, kind):
    paths = photos(tmp_path / "photos")
    rows = [{"query": "q", "title": f"t {i}", "label": "L1", "image": f"photos/{path.name}"} for i, path in enumerate(paths)]
    table, more = tmp_path / f"rated.{'jsonl' if kind == 'jsonl' else 'csv'}", ""
    if kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "pairs":
        table = tmp_path / "rated.parquet"
        with PairWriter(table) as writer:
            for number, path in enumerate(paths):
                image = {"bytes": None, "path": str(path)}
                writer.write(Pair(pair_id=str(number), query="q", title=f"t {number}", label="L1", image=image))
    else:
        name = "foto" if kind == "mapped" else "image"
        table.write_text(f"query,title,label,{name}\n" + "".join(f"q,{row['title']},L1,{row['image']}\n" for row in rows))
        more = ", options: {map: {query: query, title: title, label: label, image: foto}}" if kind == "mapped" else ""
    path = recipe(write_recipe, table, more)
    folder = run_recipe(path)
    assert len(json.loads(folder.inputs_path.read_text())["data.path photos"]) == 3
    other_process()
    paths[2].unlink()
    run_recipe(path)  # a deleted input leaves the results valid
    other = Image.new("RGB", (8, 8), (200, 50, 90))
    other.save(paths[1])
    with pytest.raises(LoreError, match=r"input data\.path photos: .*other bytes in 1\.png"):
        run_recipe(path)


def test_bytes_inside_a_table_need_no_photo_files(tmp_path):
    held, named = photos(tmp_path / "photos", 2)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": held.read_bytes(), "path": str(held)}, {"bytes": None, "path": str(named)}, None]
    for number, rows in enumerate((images[:1], images, images[1:], [None])):
        pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / f"{number}.parquet")
    found = [input_files.photos_of([tmp_path / f"{number}.parquet"]) for number in range(4)]
    assert found == [[], [named], [named], []]
    (tmp_path / "bad.parquet").write_bytes(b"\xff\x00")
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "text.parquet")
    assert input_files.photos_of([tmp_path / "bad.parquet", tmp_path / "text.parquet"]) == []


def test_tens_of_thousands_of_unchanged_photos_are_looked_at_quickly(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    files = []
    for number in range(20_000):
        path = tmp_path / "photos" / f"{number}.png"
        path.touch()
        files.append((path.name, path))
    known = {str(path): input_files.Row(name, str(path), *fingerprint._state(path), "d") for name, path in files}
    monkeypatch.setattr(input_files, "file_digest", lambda path: pytest.fail(f"reads {path}"))
    before = os.times().user + os.times().system
    rows = input_files.rows_of(files, known)
    assert len(rows) == 20_000 and os.times().user + os.times().system - before < 2


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "chat_template.jinja", "nested/code.py", "vocab.gguf"])
def test_one_changed_byte_of_a_local_checkpoint_is_seen(demo, write_recipe, runs, tmp_path, other_process, name):
    model = tmp_path / "model"
    (model / "nested").mkdir(parents=True)
    for file in ("config.json", "model-00001-of-00002.safetensors", "README.md", "optimizer.pt", name):
        (model / file).write_bytes(bytes(3 * 2**20))
    path = write_recipe("a.yaml", f"stage: demo\nrun: a\nmodel: {{name: {model}}}")
    run_recipe(path)
    other_process()
    for unread in ("README.md", "optimizer.pt"):
        (model / unread).write_text("other")
    run_recipe(path)
    content = bytearray((model / name).read_bytes())
    content[100_000] = 1  # between the places that sampling reads
    rewrite(model / name, bytes(content))
    with pytest.raises(LoreError, match=f"input model.name: .*other bytes in {name}"):
        run_recipe(path)


def test_a_folder_that_was_moved_is_the_same_input(demo, write_recipe, runs, tmp_path, other_process, monkeypatch):
    (tmp_path / "here" / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "here" / "model" / name).write_text(name)
    path = write_recipe("a.yaml", "stage: demo\nrun: a\nmodel: {name: ./model}")
    monkeypatch.chdir(tmp_path / "here")
    run_recipe(path)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    run_recipe(path)
    Path("model/config.json").write_text("other")
    with pytest.raises(LoreError, match="other bytes in config.json"):
        run_recipe(path)


def test_the_other_files_of_an_input_with_a_deleted_file_still_count(demo, write_recipe, runs, tmp_path, other_process):
    home = tmp_path / "homedepot"
    home.mkdir()
    (home / "train.csv").write_text("id,product_uid,product_title,search_term,relevance\n1,2,t,q,3\n")
    (home / "product_descriptions.csv").write_text("product_uid,product_description\n2,aa\n")
    (home / "attributes.csv").write_text("product_uid,name,value\n2,b,c\n")
    path = write_recipe("a.yaml", f"stage: demo\nrun: a\ndata: {{path: {home}, source: homedepot, rubric: homedepot}}")
    run_recipe(path)
    (home / "product_descriptions.csv").unlink()
    run_recipe(path)
    (home / "attributes.csv").write_text("product_uid,name,value\n2,b,X\n")
    with pytest.raises(LoreError, match=r"other bytes in attributes\.csv"):
        run_recipe(path)


def test_the_probe_and_the_tokenizers_count(tmp_path, write_recipe):
    from lore.engines.config import EndpointSection
    from lore.train.watch.config import WatchSection

    (tmp_path / "probe.parquet").touch()
    assert list(WatchSection(path=str(tmp_path / "probe.parquet")).input_fingerprints()) == ["path"]
    assert list(WatchSection(path=str(tmp_path / "probe.parquet"), every=0).input_fingerprints()) == []
    section = EndpointSection(url="http://127.0.0.1/v1", model="m", tokenizer=str(tmp_path))
    assert list(section.input_fingerprints()) == ["tokenizer"]


def test_a_resumed_run_with_changed_photos_stops(demo, write_recipe, runs, tmp_path, other_process):
    paths = photos(tmp_path / "photos")
    table = tmp_path / "rated.csv"
    table.write_text("query,title,label,image\n" + "".join(f"q,t {i},L1,photos/{i}.png\n" for i in range(3)))
    path = recipe(write_recipe, table)
    RunFolder.reopen(run_recipe(path))
    shutil.copy(paths[0], paths[1])
    with pytest.raises(LoreError, match="started with other inputs"):
        run_recipe(path)
