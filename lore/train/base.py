"""A small base model from nothing: byte-level BPE tokenizer and Idefics3, trained as a language model on texts and captions.

It gives the quickstart and the tests a real checkpoint where no hub can be reached. What it leaves out of pre-training: scale,
data mixing, a held-out loss. Real users name any text or vision-language checkpoint instead.

    lore run recipes/quickstart/base.yaml
"""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
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

from lore.errors import LoreError
from lore.folder import RunFolder
from lore.train.config import ArchitectureSection, BaseModelRecipe
from lore.train.loop import Recorder, total_steps, train, training_arguments
from lore.train.order import training_order
from lore.train.rows import IMAGE, write_rows

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
# Words keep their hyphens and digits together (colour-same, x20, L4); numbers stay whole; the rest is single signs.
WORDS = r" ?\p{L}[\p{L}\p{M}\p{N}]*(?:-[\p{L}\p{N}]+)*| ?\p{N}+| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"
CHAT_TEMPLATE = Path(__file__).with_name("base_chat_template.jinja")
CORPUS_SCHEMA = pa.schema([("text", pa.string()), ("images", pa.list_(IMAGE)), ("length", pa.int32())])


def run(recipe: BaseModelRecipe, folder: RunFolder) -> None:
    """Tokenizer, model, training; leaves a loadable checkpoint in <run>/model."""
    set_seed(recipe.seed)
    processor = build_processor(recipe.corpus, recipe.vocabulary, recipe.architecture, recipe.lowercase)
    model = build_model(recipe.architecture, processor)
    size = sum(p.numel() for p in model.parameters())
    path = folder / "data" / "rows.arrow"
    if not path.is_file():
        write_rows(corpus_rows(recipe.corpus, processor), CORPUS_SCHEMA, path)
    rows = datasets.Dataset.from_file(str(path)).cast_column("images", datasets.Sequence(datasets.Image()))
    lengths = rows["length"][:]
    steps = total_steps(recipe.train, len(rows))
    print(
        f"{size / 1e6:.2f} M parameters, vocabulary {len(processor.tokenizer)}, {len(rows):,} texts, {sum(lengths):,} tokens, {steps} steps"
    )
    order = training_order(lengths, recipe.train.batch_size, steps, recipe.seed)
    cpu = not torch.cuda.is_available()
    args = training_arguments(recipe.train, folder, steps, recipe.seed, bf16=False, vision=True, cpu=cpu)
    recorder = Recorder(folder, "base")
    collator = TextAndPhotoCollator(processor=processor)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=rows.select_columns(["text", "images"]).select(order),
        processing_class=processor,
        data_collator=collator,
    )
    train(trainer, recorder, folder)
    trainer.model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    final = folder.metrics()[-1]
    folder.finish(
        {
            "parameters": size,
            "vocabulary": len(processor.tokenizer),
            "steps": steps,
            "loss": final["loss"],
            "model": str(folder / "model"),
        }
    )


class TextAndPhotoCollator(DataCollatorForVisionLanguageModeling):
    """TRL's collator with a loss on text only: image tokens are inputs, nothing to predict."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        tokenizer = self.processor.tokenizer
        silent = torch.tensor(tokenizer.convert_tokens_to_ids(["<image>", "<fake_token_around_image>", "<global-img>"]))
        batch["labels"][torch.isin(batch["input_ids"], silent)] = -100
        return batch


def read_corpus(paths: list[str]):
    """Rows {text, image} of the corpus files, streaming."""
    for path in paths:
        if not Path(path).is_file():
            raise LoreError(f"corpus: {path} is not there. Run the recipe that writes it (see `needs`), or correct the path.")
        file = pq.ParquetFile(path)
        if not {"text", "image"} <= set(file.schema_arrow.names):
            raise LoreError(f"corpus: {path} has columns {file.schema_arrow.names}, expected text and image.")
        for batch in file.iter_batches(1024, columns=["text", "image"]):
            yield from batch.to_pylist()


def corpus_rows(paths: list[str], processor: Any):
    """Training rows of a corpus."""
    for row in read_corpus(paths):
        text = row["text"]
        length = len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        images = [row["image"]] if row["image"] else []
        yield {"text": text, "images": images, "length": length + len(images) * processor.image_seq_len}


def build_processor(
    corpus: list[str], vocabulary: int, architecture: ArchitectureSection, lowercase: bool = False
) -> Idefics3Processor:
    """A byte-level BPE over the corpus with the codec's tags as single tokens, and a processor for photos of one tile."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    if lowercase:  # a space is put before the text and taken away again where no letter follows it
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A (?=\P{L})"), "")]
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The text is trained on without its tags, which become tokens of their own.
    texts = (_without_tags(row["text"]) for row in read_corpus(corpus))
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


def _without_tags(text: str) -> str:
    for tag in (*TAGS, *SPECIAL):
        text = text.replace(tag, "\n")
    return text


def build_model(architecture: ArchitectureSection, processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    """Random weights; seed torch before."""
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
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # 0.02 leaves a narrow model with flat attention for its first hundreds of steps.
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
    for layer in model.model.text_model.layers:
        # After mimetic initialisation (arXiv 2305.09828): keys start as queries do, so attention starts out finding equal
        # tokens, which is what matching is about. Without it a small model needs far more steps to tell red | red from red | blue.
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
