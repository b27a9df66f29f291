"""Trains a small base model from scratch: byte-level BPE tokenizer and Idefics3, as a language model on texts and captions.

It gives the quickstart and the tests a real checkpoint without access to a model hub. Compared with full pretraining it has no
scale, no data mixing and no held-out loss. For real use, set model.name to any text or vision-language checkpoint instead.

    lore run recipes/quickstart/pretrain.yaml
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from lore.data.images import ImageError, check_image, load_image
from lore.data.photo_places import PhotoPlaces
from lore.data.tables.text_tables import parquet_records
from lore.engines.chat import visible
from lore.engines.config import ModelSection
from lore.engines.model_checks import check_format, check_positions, check_saving, check_vocabulary
from lore.run.dry_pass import dry_pass
from lore.run.launch_settings import mixed_precision
from lore.run.run_folder import RunFolder
from lore.support.errors import LoreError
from lore.support.processes import is_main_process, say, world_size
from lore.train.common.arrow_rows import IGNORE, IMAGE, rendered_rows, write_rows
from lore.train.common.batch_order import training_order
from lore.train.common.checkpoint import check_disk, save_weights, saved_bytes
from lore.train.common.trainer import Recorder, refuse_sharding, set_steps, sft_arguments, total_steps, train
from lore.train.judge.collator import any_photo, gray_photo
from lore.train.pretrain.config import ArchitectureSection, PretrainRecipe

SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"]
TAGS = [
    f"<{slash}{name}>"
    for name in (
        "query",
        "item",
        "title",
        "brand",
        "category",
        "shop",
        "price",
        "attributes",
        "description",
        "photo",
        "reason",
        "verdict",
        "mismatch",
        "rules",
    )
    for slash in ("", "/")
]
# Words with hyphens and digits (colour-same, x20, L4) and numbers are not split; every other character is separate.
WORDS = r" ?\p{L}[\p{L}\p{M}\p{N}]*(?:-[\p{L}\p{N}]+)*| ?\p{N}+| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"
PLURAL_S = r"(?<=\p{L}{3})(?<!s)s(?![\p{L}\p{N}])"
IMAGE_PLACE = "<image>"
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
CORPUS_SCHEMA = pa.schema(
    [("text", pa.string()), ("images", pa.list_(IMAGE)), ("mask", pa.list_(pa.bool_())), ("length", pa.int32())]
)


def run(recipe: PretrainRecipe, folder: RunFolder) -> None:
    """Trains tokenizer and model; saves a checkpoint that transformers can load in <run>/model."""
    cpu = not torch.cuda.is_available()
    bf16 = mixed_precision("auto", "no") == "bf16"
    args = sft_arguments(recipe.train, folder, 1, recipe.seed, bf16=bf16, vision=True, cpu=cpu)
    with args.main_process_first(local=False, desc="tokenizer and rows"):
        processor, rows = prepare(recipe, folder)
    steps = total_steps(recipe.train, len(rows))
    set_steps(args, recipe.train, steps)
    set_seed(recipe.seed)
    model = build_model(recipe.architecture, processor)
    size = sum(p.numel() for p in model.parameters())
    lengths = rows["length"][:]
    words = len(processor.tokenizer)
    say(f"{size / 1e6:.2f} M parameters, vocabulary {words}, {len(rows):,} texts, {sum(lengths):,} tokens, {steps} steps")
    order = training_order(lengths, recipe.train.batch_size, steps, recipe.seed, shuffle=recipe.shuffle)
    check_pretraining(recipe, folder, model, processor, args, rows, steps)
    recorder = Recorder(folder, "pretrain", keep=recipe.train.keep_checkpoints)
    collator = TextAndPhotoCollator(processor, always_photo=world_size() > 1 and any_photo(rows))
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows.select_columns(["text", "images", "mask"]).select(order),
        processing_class=processor,
        data_collator=collator,
    )
    refuse_sharding(trainer, "a base model from scratch")
    train(trainer, recorder, folder, recipe)
    save_weights(trainer, folder / "model")
    if is_main_process():
        processor.save_pretrained(folder / "model")
        loss = folder.last_record("loss")["loss"]
        folder.finish(
            {"parameters": size, "vocabulary": words, "steps": steps, "loss": loss, "model": str(folder / "model")}
        )


def prepare(recipe: PretrainRecipe, folder: RunFolder) -> tuple[Idefics3Processor, datasets.Dataset]:
    """The processor, whose tokenizer the main process trains, and the rows. The other processes read what it has written."""
    path, saved = folder / "data" / "rows.arrow", folder / "data" / "processor"
    if not is_main_process():
        rows = rendered_rows(path)  # says so if the main process has failed
        return Idefics3Processor.from_pretrained(saved), rows
    processor = build_processor(recipe.corpus, recipe.vocabulary, recipe.architecture, recipe.lowercase, recipe.plural_s)
    processor.save_pretrained(saved)
    if not path.is_file():
        write_rows(corpus_rows(recipe.corpus, processor), CORPUS_SCHEMA, path)
    return processor, rendered_rows(path)


def check_pretraining(
    recipe: PretrainRecipe, folder: RunFolder, model: Any, processor: Any, args: Any, rows: datasets.Dataset, steps: int
) -> None:
    """The dry pass. Raises LoreError with all problems."""
    section, beside = ModelSection(name=str(folder / "model")), folder / "dry_pass"
    fix = "raise architecture.max_positions, or shorten the texts of the corpus"
    dry_pass(
        recipe.stage,
        {
            "saving": lambda: check_saving(section, model, processor, beside),
            "weights format": lambda: check_format(section, model, beside),
            "positions": lambda: check_positions(model, max(rows["length"][:]), "the longest text of the corpus", fix),
            "vocabulary": lambda: check_vocabulary(section, model, processor),
            "disk space": lambda: check_disk(recipe.train, folder, saved_bytes(model, None), steps, processor),
        },
    )


@dataclass
class TextAndPhotoCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator with loss only on the trained spans of the corpus. Image tokens never carry loss.

    always_photo: adds a gray photo without loss to a batch without photos, as lore.train.judge.collator.PhotoCollator does.
    """

    always_photo: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        shown = [{**row, "images": [visible(load_image(image)) for image in row["images"]]} for row in examples]
        if self.always_photo and not any(row["images"] for row in shown):
            shown.append({"text": IMAGE_PLACE, "images": [gray_photo()], "mask": []})
        masks = [row.pop("mask") for row in shown]
        batch = super().torch_call(shown)
        ids = self.processor.tokenizer.convert_tokens_to_ids([IMAGE_PLACE, *SPECIAL[4:]])
        written = ~torch.isin(batch["input_ids"], torch.tensor(ids)) & batch["attention_mask"].bool()
        labels = torch.full_like(batch["input_ids"], IGNORE)
        for row, mask in enumerate(masks):
            places = written[row].nonzero().squeeze(-1)[torch.tensor(mask, dtype=torch.bool)]
            labels[row, places] = batch["input_ids"][row, places]
        batch["labels"] = labels
        return batch


def read_corpus(paths: list[str], *, photos: bool = True):
    """Streams the rows {text, image, trained} of the corpus files. photos: whether to open them; LoreError for a broken one."""
    for path in paths:
        if not Path(path).is_file():
            raise LoreError(f"corpus: {path} does not exist. Run the recipe that creates it (see `needs`), or correct the path.")
        hint = "A file of `corpus` has the columns text and image: correct the path, or run the recipe that creates the file again."
        places = PhotoPlaces(Path(path).parent)
        for _, row in parquet_records(Path(path), ["text", "image"], ["trained"], hint=hint):
            if row["image"] and photos:
                try:
                    row["image"] = {"bytes": check_image(places.placed(row["image"])), "path": None}
                except ImageError as error:
                    fix = "Put the photos below the folder of the corpus, or store them in the file."
                    if error.reason not in ("image_outside", "image_missing"):
                        fix = f"Replace this photo by {error.expected}, or remove its row."
                    raise LoreError(f"corpus: {path}: {error.found}. {fix}") from error
            yield {"trained": None, **row}


def corpus_rows(paths: list[str], processor: Any):
    """Training rows of a corpus. mask: whether each text token (image tokens excluded) carries loss."""
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(IMAGE_PLACE)
    for row in read_corpus(paths):
        encoded = tokenizer(row["text"], add_special_tokens=False, return_offsets_mapping=True)
        written = [
            offsets for token, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True) if token != image
        ]
        spans = row["trained"]
        mask = [spans is None or any(s["start"] < end and start < s["end"] for s in spans) for start, end in written]
        if not any(mask):
            raise LoreError(
                f"corpus: the text {row['text'][:80]!r} has no trained span, so no token carries loss.\n"
                "Set `trained` to null to train on the full text, or remove the row."
            )
        images = [row["image"]] if row["image"] else []
        yield {"text": row["text"], "images": images, "mask": mask, "length": len(written) + len(images) * processor.image_seq_len}


def build_processor(
    corpus: list[str], vocabulary: int, architecture: ArchitectureSection, lowercase: bool = False, plural_s: bool = False
) -> Idefics3Processor:
    """A byte-level BPE tokenizer trained on the corpus, with the codec's tags as tokens, and a processor for single-tile photos."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    # A word has the same token at the start of a field as after a space, so a small model need not learn that two tokens are the
    # same word. The decoder removes the space after a tag.
    leading_space = [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A (?=[^\p{L}\p{N}])"), "")]
    tokenizer.normalizer = normalizers.Sequence(([normalizers.Lowercase()] if lowercase else []) + leading_space)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            *([pre_tokenizers.Split(Regex(PLURAL_S), "isolated")] if plural_s else []),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("> ", ">"), decoders.Strip(" ", 1, 0)])
    # Train only on the text between tags: each tag becomes a separate token below.
    texts = (part for row in read_corpus(corpus, photos=False) for part in _BETWEEN.split(row["text"]) if part)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *SPECIAL[3:]],
        model_max_length=architecture.max_positions,
        clean_up_tokenization_spaces=False,
    )
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    fast.chat_template = template
    side = {"longest_edge": architecture.image_size}
    images = Idefics3ImageProcessorPil(do_image_splitting=False, size=side, max_image_size=side)
    return Idefics3Processor(images, fast, image_seq_len=architecture.image_tokens, chat_template=template)


_BETWEEN = re.compile("|".join(map(re.escape, (*TAGS, *SPECIAL))))


def build_model(architecture: ArchitectureSection, processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    """The model with random weights. Seed torch first."""
    tokenizer = processor.tokenizer
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": architecture.hidden,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": architecture.heads,
        "num_key_value_heads": architecture.heads,
        "intermediate_size": architecture.mlp,
        "max_position_embeddings": architecture.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rope_theta},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # With the default 0.02, attention in a narrow model stays uniform for hundreds of steps.
        "initializer_range": architecture.hidden**-0.5,
    }
    vision = {
        "initializer_range": architecture.vision_hidden**-0.5,
        "hidden_size": architecture.vision_hidden,
        "num_hidden_layers": architecture.vision_layers,
        "num_attention_heads": architecture.vision_heads,
        "intermediate_size": 4 * architecture.vision_hidden,
        "image_size": architecture.image_size,
        "patch_size": architecture.patch_size,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=architecture.scale_factor,
        tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration(config)
    if architecture.loud_embeddings:
        torch.nn.init.normal_(model.model.text_model.embed_tokens.weight)
        for layer in model.model.text_model.layers:
            layer.self_attn.o_proj.weight.data.mul_(0.3)
            layer.mlp.down_proj.weight.data.mul_(0.3)
    # Mimetic initialization (arXiv 2305.09828): half of the heads start with keys equal to queries, so they attend to equal tokens,
    # which is what matching needs. Without it a small model needs far more steps to distinguish red | red from red | blue; with it
    # in every head, no head attends to the photo.
    alike = architecture.hidden // 2
    for layer in model.model.text_model.layers:
        layer.self_attn.k_proj.weight.data[:alike] = layer.self_attn.q_proj.weight.data[:alike]
    # Output embeddings start as input embeddings, so learning to copy one word generalizes to all words.
    read = model.model.text_model.embed_tokens.weight.data
    model.lm_head.weight.data.copy_(read * (architecture.hidden**-0.5 / read.std()))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
