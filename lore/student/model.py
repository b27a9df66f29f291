"""Builds, saves and loads students. Only safetensors are read, and no code from a checkpoint runs.

Files of a folder:

    config.json, model.safetensors     a text cross-encoder, or the encoder of a bi-encoder, as transformers writes them
    encoder.json, student.safetensors  all weights of a student with photos or matches, which transformers cannot load by itself
    student.safetensors                otherwise: the head of a bi-encoder
    student.json                       lore.student.config
    tokenizer.json, …                  the tokenizer, as transformers writes it
"""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    SiglipVisionModel,
)

from lore.codec.pair_text import PairTextFormat
from lore.data.pair import Pair
from lore.engines.config import ModelSection
from lore.engines.weight_files import REPORTED, refuse_misfits
from lore.student.config import ADVICE, CONFIG, LOST, StudentConfig, read_config
from lore.student.encode import PairEncoder
from lore.student.head import outputs_of
from lore.student.networks import BiEncoder, CrossEncoder, Student, build_tower
from lore.student.photo_embeddings import PhotoEmbeddings
from lore.student.section import ScratchSection, StudentSection, TowerSize
from lore.support.atomic_files import write_atomic
from lore.support.errors import LoreError, translated
from lore.support.library_logging import silence
from lore.support.untrusted_json import read_object

ENCODER, WEIGHTS = "encoder.json", "student.safetensors"
TOWERS = ("siglip", "siglip_vision_model", "idefics2", "idefics3", "smolvlm")
PLURAL_S = r"(?<=\p{L}{3})(?<!s)s(?![\p{L}\p{N}])"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
ROPE_THETA = 1e6  # with a large base most dimensions of a head hardly depend on position, so equal words match at any distance
QUIET = 0.3  # factor of the layers' output projections beside loud embeddings


def open_tokenizer(section: StudentSection, texts: Iterable[str] = ()) -> Any:
    """The checkpoint's tokenizer; for an encoder from scratch one that is trained on the texts."""
    if section.encoder is not None:
        return load_tokenizer(section.encoder)
    return train_tokenizer(texts, section.scratch)


def train_tokenizer(texts: Iterable[str], scratch: ScratchSection) -> Any:
    """A lowercase BPE tokenizer over bytes, so that no letter is unknown. The same texts in the same order give the same one, which
    the trainer of WordPiece does not promise."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    plural = [pre_tokenizers.Split(Regex(PLURAL_S), "isolated")] if scratch.plural_s else []
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), *plural, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=scratch.vocabulary,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = map(tokenizer.token_to_id, SPECIAL[2:])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    typed = ["token_type_ids"] if scratch.architecture == "bert" else []  # ModernBERT reads none
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True)),
        model_input_names=["input_ids", *typed, "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a checkpoint or of a student's folder."""
    silence()
    with _readable(str(name), "tokenizer"):
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)


def build_student(
    section: StudentSection,
    tiers: list[str],
    seed: int,
    tokenizer: Any,
    *,
    max_tokens: int = 128,
    embedding_size: int | None = None,
) -> Student:
    """A student to train, with a new head, on the CPU in float32. The same seed gives the same weights.

    tokenizer: see `open_tokenizer`. max_tokens: longest pair in tokens. embedding_size: length of the vectors of photos, for
    photo: embedding. Raises LoreError for an encoder that cannot be a student.
    """
    silence()
    torch.manual_seed(seed)
    tower = size = None
    if section.photo == "tower":
        tower = load_tower(section.tower.name, section.tower.merge) if section.tower.name else None
        size = _size_of(tower, section.tower.merge) if tower else TowerSize(**section.tower.model_dump(exclude={"name"}))
    config = StudentConfig(
        kind=section.kind,
        head=section.head,
        photo=section.photo,
        tiers=tiers,
        tower=size,
        embedding_size=embedding_size if section.photo == "embedding" else None,
        photo_embeddings=section.photo_embeddings,
        match_embedding=section.sees_matches,
        plain_ids=sorted(tokenizer.all_special_ids) if section.sees_matches else [],
        interaction=section.interaction,
    )
    encoder = _new_encoder(section, config, tokenizer, max_tokens)
    model = _with_head(config, encoder)
    if tower is not None:
        model.photo.tower.load_state_dict(tower.state_dict())
    check_student(model, tokenizer, max_tokens, section.encoder or "scratch")
    return model


def _new_encoder(section: StudentSection, config: StudentConfig, tokenizer: Any, max_tokens: int) -> Any:
    auto = AutoModelForSequenceClassification if config.kind == "cross_encoder" else AutoModel
    labels = _labels(config) if config.kind == "cross_encoder" else {}
    if section.encoder is None:
        shape = _scratch_config(section.scratch, tokenizer, max_tokens + config.photo_tokens, labels)
        encoder = auto.from_config(shape, **_without_pooler(auto, shape))
        _start(encoder, section.scratch)
        return encoder
    with _readable(section.encoder, "config.json and weights"):
        shape = AutoConfig.from_pretrained(section.encoder, trust_remote_code=False, **labels)
        encoder, found = auto.from_pretrained(
            section.encoder,
            config=shape,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            **_without_pooler(auto, shape),
            **REPORTED,
        )
    # The checkpoint has no head, or one for other outputs; its encoder has to be whole.
    base = encoder.base_model_prefix
    found["missing_keys"] = {name for name in found["missing_keys"] if _of_encoder(name, base, encoder)}
    found["mismatched_keys"] = {one for one in found["mismatched_keys"] if _of_encoder(one[0], base, encoder)}
    refuse_misfits(ModelSection(name=section.encoder), found)
    return encoder


def _without_pooler(auto: Any, config: Any) -> dict[str, Any]:
    """A bi-encoder takes the mean over the tokens, so a pooler would have weights that nothing trains."""
    if auto is not AutoModel or type(config) not in AutoModel._model_mapping:
        return {}
    takes = "add_pooling_layer" in inspect.signature(AutoModel._model_mapping[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if takes else {}


def _of_encoder(name: str, base: str, encoder: Any) -> bool:
    """Whether a weight belongs to the pretrained part: not to a head, and not to a pooler, which many checkpoints lack."""
    inside = name.startswith(f"{base}.") if hasattr(encoder, base) else True
    return inside and ".pooler." not in f".{name}"


def _scratch_config(scratch: ScratchSection, tokenizer: Any, positions: int, labels: dict[str, Any]) -> Any:
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": scratch.hidden,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "intermediate_size": scratch.mlp,
        "max_position_embeddings": positions,
        "pad_token_id": tokenizer.pad_token_id,
        # With the default 0.02, attention in a narrow model stays uniform for hundreds of steps.
        "initializer_range": scratch.hidden**-0.5,
    }
    if scratch.architecture == "bert":
        return BertConfig(
            hidden_dropout_prob=scratch.dropout, attention_probs_dropout_prob=scratch.dropout, **shared, **labels
        )
    rotary = {"rope_type": "default", "rope_theta": ROPE_THETA}
    return ModernBertConfig(
        embedding_dropout=scratch.dropout,
        attention_dropout=scratch.dropout,
        mlp_dropout=scratch.dropout,
        classifier_dropout=scratch.dropout,
        classifier_pooling="mean",
        global_attn_every_n_layers=1,
        rope_parameters={"full_attention": rotary, "sliding_attention": rotary},
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=None,
        eos_token_id=None,
        **shared,
        **labels,
    )


def _start(encoder: Any, scratch: ScratchSection) -> None:
    """The weights that an encoder from scratch begins with, where they differ from those of transformers."""
    half, base = scratch.hidden // 2, encoder.base_model
    if scratch.architecture == "bert":
        for layer in base.encoder.layer if scratch.mimetic else ():
            layer.attention.self.key.weight.data[:half] = layer.attention.self.query.weight.data[:half]
        return
    for layer in base.layers:
        joint = layer.attn.Wqkv.weight.data  # [3 * hidden, hidden]: queries, keys, values
        if scratch.mimetic:
            joint[scratch.hidden : scratch.hidden + half] = joint[:half]
        if scratch.loud_embeddings:
            layer.attn.Wo.weight.data.mul_(QUIET)
            layer.mlp.Wo.weight.data.mul_(QUIET)
    if scratch.loud_embeddings:
        torch.nn.init.normal_(base.get_input_embeddings().weight)


def _labels(config: StudentConfig) -> dict[str, Any]:
    names = config.tiers if config.head == "softmax" else [f"above {tier}" for tier in config.tiers[:-1]]
    # One output would make transformers a regression out of it when it computes a loss; ours computes its own.
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}


def _with_head(config: StudentConfig, encoder: Any) -> Student:
    return (CrossEncoder if config.kind == "cross_encoder" else BiEncoder)(config, encoder)


def load_tower(name: str, merge: int) -> SiglipVisionModel:
    """The vision tower of a checkpoint, as SigLIP: Idefics' tower takes photos of any shape, and on squares the two agree. Raises
    LoreError for another kind of tower."""
    silence()
    with _readable(name, "config.json and weights"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type not in TOWERS:
            raise LoreError(
                f"student.tower.name {name} is a {config.model_type}, whose vision tower this version cannot take.\nName a "
                f"checkpoint of one of {', '.join(TOWERS)}, or leave the name out and train a tower from scratch."
            )
        auto = AutoModel if config.model_type.startswith("siglip") else AutoModelForImageTextToText
        whole, found = auto.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, **REPORTED
        )
    refuse_misfits(ModelSection(name=name), found)
    vision = getattr(getattr(whole, "model", whole), "vision_model", whole)
    size = _size_of(vision, merge)
    for conflict in size.conflicts():
        raise LoreError(f"student.tower: {name} has photos of {size.image_size} pixels; expected {conflict.expected}.")
    tower = build_tower(size)
    for key in ("hidden_act", "layer_norm_eps", "num_channels"):
        if getattr(vision.config, key) != getattr(tower.config, key):
            raise LoreError(
                f"student.tower.name {name} has {key} {getattr(vision.config, key)}, and a student's tower has "
                f"{getattr(tower.config, key)}.\nName another checkpoint, or leave the name out and train a tower from scratch."
            )
    with _readable(name, "vision tower"):
        tower.load_state_dict({key: value for key, value in vision.state_dict().items() if not key.startswith("head.")})
    return tower


def _size_of(vision: Any, merge: int) -> TowerSize:
    config = vision.config
    return TowerSize(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp=config.intermediate_size,
        merge=merge,
    )


def check_student(model: Student, tokenizer: Any, max_tokens: int, name: str) -> None:
    """Raises LoreError if the encoder cannot read a student's input: too few positions, a smaller vocabulary, or answers of a pair
    that depend on its batch."""
    positions = getattr(model.encoder.config, "max_position_embeddings", None)
    needed = max_tokens + model.config.photo_tokens
    # RoBERTa and its kin begin to count behind the id of the padding.
    offset = (model.encoder.config.pad_token_id or 0) + 1 if "roberta" in model.encoder.config.model_type else 0
    if positions is not None and positions - offset < needed:
        raise LoreError(
            f"student.encoder {name} reads {positions - offset} tokens at most, and the student needs {needed} (max_tokens and the "
            "photo's tokens).\nLower text.max_tokens, or take an encoder with more positions."
        )
    if len(tokenizer) > (words := model.encoder.get_input_embeddings().num_embeddings):
        raise LoreError(
            f"student.encoder {name} has {words:,} word vectors and a tokenizer of {len(tokenizer):,} tokens, so some have "
            "none.\nTake the tokenizer that belongs to the encoder."
        )
    moved = _moved_by_padding(model, tokenizer, max_tokens)
    if not moved < 1e-3:
        raise LoreError(
            f"student.encoder {name}: padding changes the answer of a pair by {moved:.2g}, so it would depend on its batch.\n"
            "Take an encoder of the kind of BERT, whose attention leaves padding out."
        )


@torch.no_grad()
def _moved_by_padding(model: Student, tokenizer: Any, max_tokens: int) -> float:
    """Largest change of a short pair's logits beside a long one."""
    was_training = model.training
    model.eval()
    size = model.config.embedding_size
    embeddings = PhotoEmbeddings([], np.empty((0, size))) if size else None
    encoder = PairEncoder(tokenizer, PairTextFormat(max_tokens=max_tokens), model.config, embeddings)
    rows = encoder.rows([Pair(pair_id=title, query="a", title=title) for title in ("b", "b b b b")])
    alone, together = (
        model(**{name: torch.from_numpy(array) for name, array in encoder.batch(some).items()}) for some in (rows[:1], rows)
    )
    model.train(was_training)
    return (alone[0] - together[0]).abs().max().item()


def save_student(model: Student, folder: str | Path, tokenizer: Any) -> None:
    """Writes weights, config and tokenizer."""
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    if config.is_plain:
        model.encoder.save_pretrained(folder)
        own = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    else:
        write_atomic(folder / ENCODER, model.encoder.config.to_json_string(use_diff=False) + "\n")
        own = model.state_dict()
    if own:
        save_file({name: value.contiguous().clone() for name, value in own.items()}, folder / WEIGHTS, {"format": "pt"})
    tokenizer.save_pretrained(folder)
    write_atomic(folder / CONFIG, config.model_dump_json(indent=2) + "\n")


def load_student(folder: str | Path) -> Student:
    """The student in a folder, on the CPU in float32, ready to answer. Raises LoreError for a damaged one."""
    folder = Path(folder)
    config = read_config(folder)
    silence()
    auto = AutoModelForSequenceClassification if config.kind == "cross_encoder" else AutoModel
    with _readable(str(folder), "config.json and weights"):
        if config.is_plain:
            shape = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            encoder, found = auto.from_pretrained(
                str(folder),
                config=shape,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                **_without_pooler(auto, shape),
                **REPORTED,
            )
            refuse_misfits(ModelSection(name=str(folder)), found)
        else:
            shape = AutoConfig.for_model(**read_object(folder / ENCODER, LOST, ADVICE))
            encoder = auto.from_config(shape, trust_remote_code=False, dtype=torch.float32, **_without_pooler(auto, shape))
        outputs = outputs_of(config.head, len(config.tiers))
        if config.kind == "cross_encoder" and encoder.config.num_labels != outputs:
            found = f"its weights have {encoder.config.num_labels} outputs"
            raise LoreError(f"{folder}: {found}, and {CONFIG} needs {outputs}.\n{ADVICE}")
        model = _with_head(config, encoder)
        own = {name for name in model.state_dict() if not (config.is_plain and name.startswith("encoder."))}
        if own:
            state = load_file(folder / WEIGHTS)
            if state.keys() != own:
                wrong = ", ".join(sorted(state.keys() ^ own)[:3])
                raise LoreError(f"{folder / WEIGHTS} does not belong to {CONFIG} ({wrong}).\n{ADVICE}")
            model.load_state_dict(state, strict=False)
    return model.float().eval()


def _readable(name: str, part: str) -> Any:
    """Translates errors of transformers and safetensors while a part of a checkpoint is loaded."""
    return translated(
        lambda _: (
            f"{name}: its {part} cannot be loaded",
            "Give the folder of an encoder with safetensors, or a hub id that this machine can download; copy a damaged one again.",
        )
    )
