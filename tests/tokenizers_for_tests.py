"""Small tokenizers of the same kinds as in public checkpoints, trained in memory. Each has a chat template."""

from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "<s>{% for message in messages %}{% if message['role'] == 'system' %}[INST] {{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}{{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
PLAIN_TURNS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + '</s>' }}"
    "{% else %}{{ '### System\n' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
# Qwen's split joins a non-letter with the letters after it, so `<verdict>L1` becomes `<`, `verdict`, `>L`, `1`.
QWEN_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CORPUS = [
    "<query>red dress</query>\n<item>\n<title>red cotton dress for women</title>\n<brand>Lumo</brand>\n</item>",
    "<attributes>colour: red; material: cotton</attributes>\n<description>a long summer dress</description>",
    "Judge relevance. Rubric: shop. You judge how well one shop item answers one search query.",
    "<reason>colour: red | blue (title) | colour-other L2</reason>\n<verdict>L2</verdict>\n<mismatch>colour</mismatch>",
    "<verdict>L1</verdict> <verdict>L2</verdict> <verdict>L3</verdict> <verdict>L4</verdict>",
    "<verdict>1</verdict> <verdict>Exact</verdict> <verdict>Partial</verdict> <verdict>Irrelevant</verdict>",
]


def wrap(tokenizer: Tokenizer, template: str, **special) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    wrapped.chat_template = template
    return wrapped


def byte_level(split: str | None, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level]) if split else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def chatml() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's split and special tokens. <think>, <tool_call> and <image> are added but not special tokens."""
    tokenizer = byte_level(QWEN_SPLIT, 420)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>", "<tool_call>", "<image>")])
    return wrap(tokenizer, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@cache
def gpt2_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's split: `>` is a separate token, and a tier is `L` and a digit."""
    tokenizer = byte_level(None, 420)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return wrap(tokenizer, CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@cache
def tier_tokens() -> PreTrainedTokenizerFast:
    """GPT-2's split with each tier L1 to L4 as one special token, as in some checkpoints."""
    tokenizer = byte_level(None, 420)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "L1", "L2", "L3", "L4"])
    return wrap(tokenizer, CHATML, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


@cache
def inst() -> PreTrainedTokenizerFast:
    """BPE over ▁-joined words with [INST] turns, <s> and </s>, as in Llama and Mistral."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)])
    tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    alphabet = [chr(c) for c in range(32, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"])
    return wrap(tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


@cache
def plain_turns() -> PreTrainedTokenizerFast:
    """Turns marked by plain words in the template (`USER:`) instead of special tokens, as in Vicuna."""
    tokenizer = byte_level(None, 420)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return wrap(tokenizer, PLAIN_TURNS, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@cache
def normalizing() -> PreTrainedTokenizerFast:
    """NFKC, stripped accents and lower case, with added tokens that are matched after normalization."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFKC()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = [chr(c) for c in range(32, 127)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["[UNK]"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    tokenizer.add_tokens(
        [AddedToken(t, normalized=True, special=True) for t in ("[SEP]", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>")]
    )
    return wrap(tokenizer, CHATML, unk_token="[UNK]", sep_token="[SEP]", pad_token="[SEP]")


@cache
def word_level(words: tuple[str, ...] = ("<", "verdict", ">", "</", "L", "red", "dress")) -> PreTrainedTokenizerFast:
    """A fixed word list. With the default list, all tiers are unknown tokens."""
    vocab = {word: i for i, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrap(tokenizer, CHATML, unk_token="[UNK]", pad_token="[UNK]")


CHAT_TOKENIZERS = {
    "chatml": chatml,
    "gpt2_like": gpt2_like,
    "tier_tokens": tier_tokens,
    "inst": inst,
    "plain_turns": plain_turns,
    "normalizing": normalizing,
}

LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<s>[INST] <<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' </s>' }}{% endif %}{% endfor %}"
)


@cache
def llama2() -> PreTrainedTokenizerFast:
    """BPE over ▁-joined words with byte fallback, whose turn markers are plain text, as in Llama 2."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    # Words that end in a space's mark, as the merges of Llama 2 begin with it.
    tokenizer.train_from_iterator([*CORPUS, *(f"a {text}" for text in CORPUS)], trainer)
    return wrap(tokenizer, LLAMA2, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Unigram over words with ▁, as in XLM-R, T5 and Gemma's SentencePiece."""
    tokenizer = Tokenizer(models.Unigram())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [chr(c) for c in range(33, 127)] + ["▁", "\n"]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer, CHATML, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece with BERT's split, as in student encoders."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "<|im_start|>", "<|im_end|>"]
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    return wrap(tokenizer, CHATML, unk_token="[UNK]", eos_token="[SEP]", pad_token="[PAD]")


# Every kind of tokenizer: byte-level, SentencePiece (BPE and Unigram) and WordPiece.
TOKENIZERS = CHAT_TOKENIZERS | {"llama2": llama2, "unigram": unigram, "wordpiece": wordpiece}
