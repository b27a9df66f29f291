"""Photos: what the check accepts, training reads, with the right colors; everything else is refused by name."""

import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from lore.data.images import ImageError, check_image, load_image
from lore.data.parquet import PairWriter, read_pairs

GRAY = 127


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bits: int, kind: int, rows: bytes, size=(1, 1), extra: bytes = b"", after: bytes = b"", interlaced: int = 0) -> bytes:
    """A PNG of filtered rows. kind: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha; extra: before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def red(form: str, **options) -> bytes:
    """An 8 x 16 image: upper half red, lower half blue."""
    image = Image.new("RGB", (8, 16), (255, 0, 0))
    image.paste((0, 0, 255), (0, 8, 8, 16))
    return saved(image, form, **options)


def bmp(bgra: tuple[int, int, int, int]) -> bytes:
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + masks + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + 4, 0, 0, 14 + len(head)) + head + bytes(bgra)


def palette(clear: bytes) -> bytes:
    return chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0])) + (chunk(b"tRNS", clear) if clear else b"")


def trns(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


# The first pixel of each file, by hand. A 16-bit value v is v / 257 in 8 bits; half transparent is halfway to white.
PIXELS = {
    "1-bit gray, black": (png(1, 0, b"\0\x00"), (0, 0, 0)),
    "1-bit gray, white": (png(1, 0, b"\0\x80"), (255, 255, 255)),
    "1-bit gray, clear black": (png(1, 0, b"\0\x00", extra=trns(0)), (255, 255, 255)),
    "1-bit gray, clear white": (png(1, 0, b"\0\x00", extra=trns(1)), (0, 0, 0)),
    "2-bit gray": (png(2, 0, b"\0\x40"), (85, 85, 85)),
    "2-bit gray, clear": (png(2, 0, b"\0\x40", extra=trns(1)), (255, 255, 255)),
    "4-bit gray": (png(4, 0, b"\0\x70"), (119, 119, 119)),
    "4-bit gray, clear": (png(4, 0, b"\0\x70", extra=trns(7)), (255, 255, 255)),
    "4-bit gray, other clear": (png(4, 0, b"\0\x10", extra=trns(7)), (17, 17, 17)),
    "8-bit gray": (png(8, 0, b"\0\x7f"), (127, 127, 127)),
    "8-bit gray, clear": (png(8, 0, b"\0\x7f", extra=trns(127)), (255, 255, 255)),
    "16-bit gray": (png(16, 0, b"\0\x7f\xff"), (127, 127, 127)),
    "16-bit gray, dark": (png(16, 0, b"\0\x01\x01"), (1, 1, 1)),
    "16-bit gray, white": (png(16, 0, b"\0\xff\xff"), (255, 255, 255)),
    "16-bit gray, clear": (png(16, 0, b"\0\x12\x34", extra=trns(0x1234)), (255, 255, 255)),
    "16-bit gray, other clear": (png(16, 0, b"\0\x12\x34", extra=trns(0x1235)), (18, 18, 18)),
    "16-bit gray with alpha": (png(16, 4, b"\0\x7f\xff\xff\xff"), (127, 127, 127)),
    "16-bit gray, half transparent": (png(16, 4, b"\0\x00\x00\x80\x80"), (127, 127, 127)),
    "RGB": (png(8, 2, b"\0\x10\x80\xf0"), (16, 128, 240)),
    "RGB, clear": (png(8, 2, b"\0\x10\x80\xf0", extra=trns(16, 128, 240)), (255, 255, 255)),
    "16-bit RGB": (png(16, 2, b"\0\x10\x10\x80\x80\xf0\xf0"), (16, 128, 240)),
    "16-bit RGB, clear": (png(16, 2, b"\0\x10\x10\x80\x80\xf0\xf0", extra=trns(0x1010, 0x8080, 0xF0F0)), (255, 255, 255)),
    "16-bit RGBA": (png(16, 6, b"\0\x00\x00\x00\x00\xff\xff\x80\x80"), (127, 127, 255)),
    "RGBA": (png(8, 6, b"\0\xff\x00\x00\x00"), (255, 255, 255)),
    "palette": (png(8, 3, b"\0\x01", extra=palette(b"")), (0, 255, 0)),
    "1-bit palette": (png(1, 3, b"\0\x80", extra=palette(b"")), (0, 255, 0)),
    "palette, clear": (png(8, 3, b"\0\x01", extra=palette(b"\xff\x00")), (255, 255, 255)),
    "palette, half transparent": (png(8, 3, b"\0\x00", extra=palette(b"\x80")), (255, 127, 127)),
    "interlaced": (png(8, 0, b"\0\x7f", interlaced=1), (127, 127, 127)),
    "BMP with unused alpha": (bmp((10, 20, 30, 0)), (30, 20, 10)),
    "BMP with alpha": (bmp((0, 0, 255, 128)), (255, 127, 127)),
    "CMYK JPEG": (saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
    "gray JPEG": (saved(Image.new("L", (8, 8), 127), "JPEG", quality=100), (127, 127, 127)),
    "WEBP": (saved(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True), (255, 255, 255)),
    "GIF": (saved(Image.new("P", (4, 4), 0), "GIF", transparency=0), (255, 255, 255)),
}
for form in ("GIF", "WEBP", "PNG"):
    frames = [Image.new("RGB", (4, 4), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    PIXELS[f"first frame of an animated {form}"] = (
        saved(frames[0], form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP" else {})),
        (255, 0, 0),
    )


@pytest.mark.parametrize("name", PIXELS)
def test_every_kind_of_pixel_has_its_right_color(name):
    data, expected = PIXELS[name]
    image = load_image(check_image(data))
    assert image.mode == "RGB"
    found = image.getpixel((0, 0))
    assert np.abs(np.subtract(found, expected)).max() <= 1, found


BROKEN_EXIF = [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9, b"\0" * 40, b"xx" * 999]
TURNED = {1: "red", 2: "red", 3: "blue", 4: "blue", 5: "both", 6: "both", 7: "both", 8: "both"}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [*TURNED, 0, 9, 65535])
def test_the_orientation_turns_the_photo(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(check_image(red(form, exif=exif.tobytes())))
    kind = TURNED.get(orientation, "red")
    top, right = image.getpixel((0, 0)), image.getpixel((image.width - 1, 0))
    assert image.size == ((16, 8) if kind == "both" else (8, 16))
    if kind == "both":
        assert (top[0] > 200) == (orientation in (5, 8)) and (right[0] > 200) == (orientation in (6, 7))
    else:
        assert (top[0] > 200) == (kind == "red") and (right[0] > 200) == (kind == "red")


@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_a_broken_exif_block_costs_only_the_orientation(exif):
    before, after = (png(8, 0, b"\0\x7f", **{place: chunk(b"eXIf", exif)}) for place in ("extra", "after"))
    for data in (before, after, red("JPEG", exif=exif), red("WEBP", exif=exif)):
        assert load_image(check_image(data)).mode == "RGB"


@pytest.mark.parametrize("profile", [b"", b"broken", bytes(200), ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_a_color_profile_is_not_applied(profile):
    stored = load_image(red("PNG"))
    for form in ("PNG", "JPEG", "WEBP"):
        image = load_image(check_image(red(form, icc_profile=profile)))
        assert np.abs(np.asarray(image, float) - np.asarray(stored)).mean() < 25
    assert np.array_equal(load_image(red("PNG", icc_profile=profile)), stored)
    rogue = png(8, 0, b"\0\x7f", extra=chunk(b"iCCP", b"name\0\0no zlib"))
    try:
        assert load_image(check_image(rogue)).getpixel((0, 0)) == (127,) * 3
    except ImageError as error:
        assert error.reason == "image_corrupt"


def huge(form: str) -> bytes:
    data = bytearray(red(form))
    at = {"PNG": 16, "GIF": 6, "BMP": 18}[form]
    size = struct.pack({"PNG": ">II", "BMP": "<ii", "GIF": "<HH"}[form], 60000, 60000)
    data[at : at + len(size)] = size
    if form == "PNG":
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def damaged(data: bytes, at: float) -> bytes:
    place = int(len(data) * at)
    return data[:place] + bytes(255 - byte for byte in data[place : place + 40]) + data[place + 40 :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 * 2**20)))
REFUSED = {
    "nothing": b"",
    "text": b"no image",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\n%%EOF\n",
    "heic": b"\0\0\0\x18ftypheic" + bytes(64),
    "tiff": saved(Image.new("RGB", (4, 4)), "TIFF"),
    "tiff of floats": saved(Image.fromarray(np.full((4, 4), np.inf, np.float32)), "TIFF"),
    "many pages": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    "no width": png(8, 0, b"\0", size=(0, 1)),
    "no height": png(8, 0, b"", size=(1, 0)),
    "no bmp height": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 9, 0, 1, 24, 0, 0, 0, 0, 0, 0),
    "one row": saved(Image.new("RGB", (4000, 1)), "PNG"),
    "one column": saved(Image.new("RGB", (1, 4000)), "JPEG"),
    "text bomb": png(8, 0, b"\0\x7f", after=BOMB),
    "scans": saved(NOISE, "JPEG", progressive=True).replace(b"\xff\xd9", b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" * 999 + b"\xff\xd9"),
    **{f"huge {form}": huge(form) for form in ("PNG", "GIF", "BMP")},
    **{f"half a {form}": saved(NOISE, form)[: len(saved(NOISE, form)) // 2] for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP")},
    "corrupt PNG": damaged(saved(NOISE, "PNG"), 0.5),
    "a PNG without its last row": png(8, 2, b"\0\x10\x80\xf0", size=(1, 2)),
    "a PNG without a byte of its last row": png(8, 2, b"\0\x10\x80\xf0" * 2 + b"\0\x10\x80", size=(1, 3)),
    "a palette PNG without its last row": png(1, 3, b"\0\x80", size=(3, 2), extra=palette(b"")),
    "a 16-bit PNG without its last row": png(16, 0, b"\0\x7f\xff", size=(1, 2)),
    "an RGBA PNG without its last row": png(16, 6, b"\0" + bytes(8 * 9), size=(9, 2)),
    "an interlaced PNG without its last pass": png(8, 0, b"\0\x7f" * 3 + b"\0\x7f\x7f" * 2, size=(4, 4), interlaced=1),
}
BLACK_BELOW = {
    "RGB": png(8, 2, b"\0\x10\x80\xf0" + bytes(4), size=(1, 2)),
    "RGBA, clear": png(8, 6, b"\0\x10\x80\xf0\xff" + bytes(5), size=(1, 2)),
    "more rows than it has": png(8, 2, b"\0\x10\x80\xf0" + bytes(40), size=(1, 2)),
    "palette": png(1, 3, b"\0\x80\0\x00", size=(3, 2), extra=palette(b"")),
    "16-bit gray": png(16, 0, b"\0\x7f\xff\0\0\0", size=(1, 2)),
    "interlaced": png(8, 0, b"\0\x7f" * 3 + bytes(6) + bytes(2) * 2 + bytes(10), size=(4, 4), interlaced=1),
    "several chunks": saved(Image.fromarray(np.vstack([np.asarray(NOISE)] * 24 + [np.asarray(NOISE) * 0])), "PNG"),
}


@pytest.mark.parametrize("name", BLACK_BELOW)
def test_a_whole_png_that_is_black_below_is_read(name):
    image = load_image(check_image(BLACK_BELOW[name]))
    assert image.getpixel((0, image.height - 1)) in ((0, 0, 0), (255, 255, 255), (255, 0, 0))


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_decoded_is_refused_by_check_and_load_alike(name, monkeypatch):
    def started(*_, **__):
        raise AssertionError("a photo started a program")

    monkeypatch.setattr("subprocess.Popen", started)
    begun = time.process_time()
    reasons = set()
    for read in (check_image, load_image):
        with pytest.raises(ImageError) as error:
            read({"bytes": REFUSED[name], "path": "photo.jpg"} if REFUSED[name] else b"")
        reasons.add(error.value.reason)
        assert error.value.found and error.value.expected
    assert len(reasons) == 1 and reasons < {"image_missing", "image_corrupt", "image_too_large", "image_too_narrow"}
    assert time.process_time() - begun < 2


def test_a_text_chunk_of_some_size_is_no_bomb():
    note = PngImagePlugin.PngInfo()
    note.add_text("comment", "x" * 10_000, zip=True)
    assert load_image(red("PNG", pnginfo=note)).size == (8, 16)


def test_whatever_the_check_accepts_is_imported_and_collated(tiny, tmp_path, lore):
    """Through `lore data check`, an import with --embed-images, and the collator of a tiny Idefics3."""
    from lore.engines.config import ModelSection
    from lore.engines.loading import load_processor
    from lore.train.judge.collator import PhotoCollator

    files = {name: data for name, (data, _) in PIXELS.items()}
    files |= {f"exif {n}": png(8, 0, b"\0\x7f", after=chunk(b"eXIf", exif)) for n, exif in enumerate(BROKEN_EXIF)}
    files |= {f"refused {name}": data for name, data in REFUSED.items() if data}
    files |= {"narrow": saved(Image.new("RGB", (199, 1), "red"), "PNG"), "tall": saved(Image.new("RGB", (2, 380), "red"), "PNG")}
    rows = []
    for number, data in enumerate(files.values()):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        rows.append({"pair_id": f"p{number}", "query": "red shoe", "title": "Red shoe", "image": f"{number}.jpg", "label": "L4"})
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "pairs.parquet"
    done = lore("data", "import", "table", table, "-o", out, "--rubric", "shop", "--embed-images", "--json")
    assert done.returncode == 0, done.stderr
    accepted = [name for name in files if not name.startswith("refused")]
    assert json.loads(done.stdout)["pairs"] == len(accepted)
    pairs = list(read_pairs(out))
    assert lore("data", "check", out).returncode == 0
    with PairWriter(tmp_path / "unchecked.parquet") as writer:  # as another program may have written it
        for pair, data in zip([pairs[0]] * len(REFUSED), REFUSED.values(), strict=True):
            pair.image = {"bytes": data or b"\0", "path": None}
            writer.write(pair)
    checked = lore("data", "check", tmp_path / "unchecked.parquet", "--json")
    assert checked.returncode == 1 and json.loads(checked.stdout)["rejected_rows"] == len(REFUSED)

    processor = load_processor(ModelSection(name=str(tiny.vision)), chat=True)
    collator = PhotoCollator(processor)
    mark = processor.image_token
    pairs = list(read_pairs(out))
    rows = [{"prompt": f"{mark} red?", "completion": " L4", "images": [dict(pair.image)]} for pair in pairs]
    batch = collator(rows)
    assert len(batch["input_ids"]) == len(accepted) and np.isfinite(batch["pixel_values"].numpy()).all()


def test_the_trainer_and_the_engine_see_the_pixels_computed_by_hand(tiny, tmp_path, runs, lore, monkeypatch):
    """One SFT step of a tiny Idefics3 on a file of every kind that `lore data check` accepts, then the trained judge is asked."""
    from lore.codec.prompt import PromptFormat, render
    from lore.engines.chat import photo_of
    from lore.engines.config import ModelSection
    from lore.engines.open_engine import open_engine
    from lore.rubric.rubric import load_rubric
    from lore.run.runner import run_recipe
    from lore.train.judge.collator import PhotoCollator

    rows = []
    for number, (data, _) in enumerate(PIXELS.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
        title = f"red shoe {number}"
        rows.append({"pair_id": f"p{number}", "query": "red shoe", "title": title, "image": f"{number}.png", "label": "L4"})
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows))
    imported = lore("data", "import", "table", tmp_path / "table.jsonl", "-o", tmp_path / "pairs.parquet", "--rubric", "shop")
    assert imported.returncode == 0, imported.stderr
    assert lore("data", "check", tmp_path / "pairs.parquet").returncode == 0
    trained, collate = {}, PhotoCollator.torch_call

    def spied(self, examples):
        batch = collate(self, examples)
        for row, pixels in zip(examples, batch["pixel_values"], strict=True):
            trained[Path(row["images"][0]["path"]).read_bytes()] = pixels
        return batch

    monkeypatch.setattr(PhotoCollator, "torch_call", spied)
    one = {"steps": 1, "batch_size": len(PIXELS), "save_every": 0, "lr": 1e-4}
    data, prompt = {"path": str(tmp_path / "pairs.parquet")}, {"order": "answer_only"}
    (tmp_path / "sft.yaml").write_text(tiny.recipe("seen", data=data, prompt=prompt, **one))
    folder = run_recipe(tmp_path / "sft.yaml")

    rubric, fmt = load_rubric("shop"), PromptFormat("answer_only", "name")
    engine = open_engine(ModelSection(name=str(folder / "model")), rubric)
    asked = []
    engine.model.register_forward_pre_hook(lambda _, __, inputs: asked.append(inputs["pixel_values"][0]), with_kwargs=True)
    for pair, (data, color) in zip(read_pairs(tmp_path / "pairs.parquet"), PIXELS.values(), strict=True):
        photo, seen = photo_of(pair, fmt, engine.processor)
        assert seen == "seen"
        engine.score([render(pair, rubric, fmt, image=photo)])
        expected = np.maximum(np.array(color), 0 if any(color) else 1) / 127.5 - 1  # black is lifted by one: Idefics3 drops zeros
        for pixels in (trained[data], asked[-1]):
            assert np.abs(pixels[0].numpy() - expected[:, None, None]).max() < 0.02, pair.pair_id
