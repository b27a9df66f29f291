"""Supervised fine-tuning on tiny real models: what carries loss, what each option of the recipe does."""

import io

import pytest
import torch
from PIL import Image
from run_names import undeclared
from safetensors.torch import load_file

from lore.codec.judgement import FormatFailure, parse, renderer_hash
from lore.codec.prompt import PromptFormat, render
from lore.data.pair import Pair
from lore.data.parquet import read_pairs
from lore.engines.chat import photo_of, prompt_text, turn_end
from lore.engines.config import ModelSection
from lore.engines.loading import load_processor
from lore.judge.card import read_card
from lore.rubric.rubric import load_rubric
from lore.support.errors import LoreError
from lore.train.common.arrow_rows import IGNORE
from lore.train.common.batch_order import balanced_repeats
from lore.train.judge.collator import PhotoCollator
from lore.train.judge.rows import gold, sft_row

RUBRIC = load_rubric("shop")
ORDERS = ["reason_first", "answer_first", "answer_only"]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


def losses(folder) -> list[float]:
    return [line["loss"] for line in folder.metrics()]


@pytest.mark.parametrize("rationale", [True, False], ids=["rationale", "verdict alone"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_loss_covers_the_answer_and_its_end_and_nothing_else(tiny, kind, order, rationale):
    processor = load_processor(ModelSection(name=str(getattr(tiny, kind))))
    tokenizer = getattr(processor, "tokenizer", processor)
    fmt = PromptFormat(order, "name", max_prompt_tokens=512)
    pairs = list(read_pairs(tiny.pairs, split="train", limit=12))
    for pair in pairs:
        if not rationale:
            pair.rationale, pair.mismatch, pair.rules = None, None, []
    rows = [sft_row(pair, RUBRIC, fmt, processor) for pair in pairs]
    if kind == "vision":
        assert 0 < sum(bool(row["images"]) for row in rows) < len(rows)
        batch = PhotoCollator(processor)(rows)
        encoded = list(zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True))
    else:
        encoded = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"]), torch.ones(row["length"])) for row in rows]
    for pair, row, (ids, labels, mask) in zip(pairs, rows, encoded, strict=True):
        assert mask.sum() == row["length"]
        supervised = ids[labels != IGNORE]
        assert (labels[labels != IGNORE] == supervised).all()
        text = tokenizer.decode(supervised)
        assert text.endswith(turn_end(processor))
        answer = parse(text.removesuffix(turn_end(processor)), RUBRIC, fmt)
        expected = gold(pair)
        assert not isinstance(answer, FormatFailure), answer
        assert answer.tier == pair.label
        assert answer.rationale == (expected.rationale if order != "answer_only" else "")
        prompt = tokenizer.decode(ids[(labels == IGNORE) & mask.bool()])
        assert prompt.endswith("<|im_start|>assistant\n")
        assert pair.query in prompt


def test_a_batch_without_photos_gets_one_without_loss_where_several_processes_need_it(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    fmt = PromptFormat("answer_only", "name", max_prompt_tokens=512)
    pairs = [pair for pair in read_pairs(tiny.pairs, split="train") if pair.image is None][:3]
    rows = [sft_row(pair, RUBRIC, fmt, processor) for pair in pairs]
    alone, together = PhotoCollator(processor)(rows), PhotoCollator(processor, always_photo=True)(rows)
    assert "pixel_values" not in alone and together["pixel_values"].shape[0] == 4
    assert together["input_ids"].shape[0] == 4
    assert (together["labels"][3] == IGNORE).all()
    assert ((together["labels"] != IGNORE).sum() == (alone["labels"] != IGNORE).sum()).item()


def test_the_description_goes_first_when_a_prompt_is_too_long_and_the_row_says_so(tiny):
    tokenizer = load_processor(ModelSection(name=str(tiny.text)))
    pair = Pair(pair_id="a", query="red lamp", title="lamp " * 8, description="warm light " * 60, label="L2")
    pair.attributes = {"colour": "red"}
    whole = sft_row(pair, RUBRIC, PromptFormat("answer_only", "name", max_prompt_tokens=4000), tokenizer)
    assert not whole["cut"]
    row = sft_row(pair, RUBRIC, PromptFormat("answer_only", "name", max_prompt_tokens=120), tokenizer)
    text = tokenizer.decode(row["input_ids"])
    assert row["cut"] and row["length"] < 140
    assert "colour: red" in text and "warm light" in text and text.count("lamp") >= 9
    assert text.endswith("<verdict>L2</verdict><|im_end|>")


def test_the_adapter_its_processor_and_its_card_are_left_and_checkpoints_have_the_card(train):
    folder = train("judge", lora={})
    assert undeclared(folder.path) == []
    model = folder / "model"
    assert (model / "adapter_model.safetensors").is_file() and (model / "processor_config.json").is_file()
    card = read_card(model)
    assert card["prompt"]["order"] == "reason_first" and card["renderer_hash"] == folder.manifest["fingerprints"]["renderer_hash"]
    assert read_card(folder / "checkpoints" / "checkpoint-8") == card
    found = losses(folder)
    assert len(found) == 8 and found[-1] < found[0] - 0.5


def test_dora_trains_its_magnitudes(train):
    folder = train("dora", model="text", lora={"dora": True}, steps=3)
    assert any("lora_magnitude_vector" in name for name in weights(folder))
    assert losses(folder)[-1] < losses(folder)[0]


def test_without_lora_every_weight_is_trained(train, tiny):
    folder = train("full", steps=3)
    before, after = load_file(tiny.vision / "model.safetensors"), weights(folder)
    assert before.keys() == after.keys()
    still = [name for name in before if (before[name] == after[name]).all()]
    assert len(still) < len(before) / 10, still
    assert losses(folder)[-1] < losses(folder)[0]


def test_gradient_checkpointing_changes_memory_and_not_the_losses(train):
    plain = train("plain", lora={}, steps=3)
    checkpointed = train("checkpointed", lora={}, steps=3, gradient_checkpointing=True)
    assert losses(plain) == pytest.approx(losses(checkpointed), abs=1e-5)


def test_rows_in_one_sequence_do_not_see_each_other(train):
    options = {"model": "text", "lora": {}, "steps": 3, "prompt": {"photo": False}}
    padded = train("padded", **options)
    flat = train("flat", **options, padding_free=True)
    assert losses(padded) == pytest.approx(losses(flat), abs=1e-4)
    packed = train("packed", **options, packing=True, batch_size=1, max_tokens=512)
    assert losses(packed)[0] == pytest.approx(losses(padded)[0], abs=0.3)
    assert (packed / "data" / "rows.arrow").is_file()


def test_an_attention_that_mixes_the_rows_of_a_sequence_is_an_error(train, tiny, runs, tmp_path):
    from lore.train.sft.packing_check import check_flattening

    class Mixing(torch.nn.Module):
        """Logits of a token depend on all before it, whatever the positions say."""

        config, dtype = type("Config", (), {"_attn_implementation": "eager"}), torch.float32

        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(1000, 8)

        def forward(self, input_ids, position_ids=None, use_cache=False):
            return type("Output", (), {"logits": self.embed(input_ids).cumsum(dim=1)})

    import datasets

    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6]]})
    with pytest.raises(LoreError, match="train.packing and train.padding_free.*eager"):
        check_flattening(Mixing(), rows)


def test_balanced_classes_repeat_rare_tiers(train, tiny):
    options = {"model": "text", "lora": {}, "steps": None, "epochs": 1, "save_every": 0}
    plain = train("plain", **options)
    balanced = train("balanced", "class_weights=balanced", **options)
    assert plain.summary["rows"] == balanced.summary["rows"] == 96
    tiers = [pair.label for pair in read_pairs(tiny.pairs, split="train", limit=96)]
    assert plain.summary["steps"] == 12
    assert balanced.summary["steps"] == -(-sum(balanced_repeats(tiers)) // 8) > 12


def test_several_forward_passes_make_the_same_step(train):
    whole = train("whole", lora={}, steps=3)
    passes = train("passes", lora={}, steps=3, micro_batch_size=2)
    assert losses(whole) == pytest.approx(losses(passes), abs=1e-4)


def test_sharded_weights_are_gathered_before_they_are_saved(train, monkeypatch):
    """FSDP2 with sharded checkpoints: the trainer itself would save nothing and say nothing."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from trl import SFTTrainer

    save = SFTTrainer.save_model

    def sharded(self, output_dir, _internal_call=False):
        if _internal_call:
            return save(self, output_dir, _internal_call)
        self.is_fsdp_enabled = True
        return save(self, output_dir)

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    monkeypatch.setattr("accelerate.state.AcceleratorState.fsdp_plugin", plugin, raising=False)
    monkeypatch.setattr(SFTTrainer, "save_model", sharded)
    folder = train("fsdp", model="text", steps=2)
    assert weights(folder)
    assert not (folder / "model" / "training_args.bin").exists()


def test_one_process_uses_one_of_the_gpus_it_sees(tiny, runs, tmp_path):
    from lore.train.common.trainer import use_one_device

    args = type("Args", (), {"_n_gpu": 4, "n_gpu": property(lambda self: self._n_gpu)})()
    use_one_device(args)
    assert args.n_gpu == 1


def test_the_summary_has_the_loss_of_the_last_step(train):
    folder = train("last", model="text", lora={}, steps=5, log_every=4, save_every=0)
    assert [line["step"] for line in folder.metrics()] == [1, 4, 5]
    assert folder.summary["loss"] == losses(folder)[-1]


PARTS_ALONE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% elif p['type'] == 'image' %}<image>{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_without_photos_a_processor_whose_template_reads_parts_alone_still_shows_the_pair(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    fmt = PromptFormat("answer_only", "name", photo=False, max_prompt_tokens=512)
    pair = next(read_pairs(tiny.pairs, split="train"))
    plain = sft_row(pair, RUBRIC, fmt, processor)
    processor.chat_template = PARTS_ALONE
    row = sft_row(pair, RUBRIC, fmt, processor)
    assert row["input_ids"] == plain["input_ids"]
    assert pair.query in processor.tokenizer.decode(row["input_ids"])


def test_a_vision_model_that_is_shown_no_photo_leaves_its_vision_tower_alone(train, tiny):
    folder = train("blind", prompt={"photo": False}, steps=2)
    before, after = load_file(tiny.vision / "model.safetensors"), weights(folder)
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved and not [name for name in moved if "vision" in name or "connector" in name]
    adapter = weights(train("blind_lora", prompt={"photo": False}, lora={}, steps=2))
    assert adapter and not [name for name in adapter if "vision" in name or "connector" in name]
    assert (folder / "model" / "processor_config.json").is_file()


def test_a_photo_that_the_processor_refuses_is_left_out_and_counted(tiny, monkeypatch):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    pair = next(pair for pair in read_pairs(tiny.pairs, split="train") if pair.image)
    fmt = PromptFormat("answer_only", "name", max_prompt_tokens=512)
    assert not sft_row(pair, RUBRIC, fmt, processor)["photo_refused"]

    def refuse(*_):
        raise ValueError("absolute aspect ratio must be smaller than 200, got 300.0")

    monkeypatch.setattr("lore.engines.chat.image_tokens", refuse)
    row = sft_row(pair, RUBRIC, fmt, processor)
    assert row["photo_refused"] and row["images"] == [] and "<photo>" not in row["prompt"]
    assert photo_of(pair, fmt, processor) == (None, "failed")


def test_photos_are_made_smaller_in_training_and_in_engines_alike(tiny):
    processor = load_processor(ModelSection(name=str(tiny.vision)))
    pair = next(pair for pair in read_pairs(tiny.pairs, split="train") if pair.image)
    file = io.BytesIO()
    Image.effect_noise((900, 300), 80).convert("RGB").save(file, "PNG")
    pair.image = {"bytes": file.getvalue(), "path": None}
    fmt = PromptFormat("answer_only", "name", max_prompt_tokens=512, max_photo_pixels=30_000)
    _, (image,) = prompt_text(processor, render(pair, RUBRIC, fmt, tokenizer=processor))
    assert image.width * image.height <= 30_000 and image.width == pytest.approx(3 * image.height, abs=3)
    seen = []
    collator = PhotoCollator(processor, max_photo_pixels=30_000)
    opened = collator.open_photo
    collator.open_photo = lambda photo: seen.append(opened(photo)) or seen[-1]
    collator([sft_row(pair, RUBRIC, fmt, processor)])
    assert seen[0].tobytes() == image.tobytes() == photo_of(pair, fmt, processor)[0].tobytes()
    assert renderer_hash(RUBRIC, fmt) == renderer_hash(RUBRIC, PromptFormat("answer_only", "name"))


def test_an_interrupted_run_goes_on_with_smaller_passes(train):
    whole = train("whole", model="text", lora={}, steps=6)
    whole.close()
    whole.done_path.unlink()
    (whole / "checkpoints" / "checkpoint-6" / "complete").unlink()
    before = losses(whole)
    again = train("whole", model="text", lora={}, steps=6, micro_batch_size=2, workers=1, keep_checkpoints=1)
    assert losses(again) == pytest.approx(before, abs=1e-4)
    assert [p.name for p in (again / "checkpoints").glob("checkpoint-*")] == ["checkpoint-6"]
