"""Prompts of the teacher: one file per step, `prompts/<step>.<language>.md`, a Jinja template with the system part before the line
`=== user`.

All texts of shoppers and sellers are neutralized before they are inserted. Shared parts come first, so that a server can cache the
prefix. The recipe's own folder of prompts takes precedence over the shipped one.
"""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lore.codec.chat_template import parts_of
from lore.codec.item_text import item_text
from lore.codec.prompt import Message, PromptFormat
from lore.codec.sanitize import control_strings, neutralize
from lore.data.pair import Pair
from lore.data_synth.synthesis.trace import STEPS, Evidence, Wish
from lore.engines.chat import open_photo
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

FOLDER = Path(__file__).parent / "prompts"
DIVIDER = "=== user"
PHOTO = "<photo>"
MAX_ITEM_CHARACTERS = 6000
MAX_PROMPT_BYTES = 1_000_000
KEPT = 256


@dataclass(frozen=True)
class Prompts:
    """The prompts of all steps in one language. tokenizer: of a local engine; its control strings are removed from texts."""

    rubric: Rubric
    language: str = "en"
    folder: str | None = None
    max_photo_pixels: int | None = None
    tokenizer: Any = None
    _kept: dict[tuple, str] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def control(self) -> frozenset[str]:
        return control_strings(self.tokenizer) if self.tokenizer is not None else frozenset()

    def source(self, step: str) -> str:
        """The text of a step's file. Raises LoreError if there is none."""
        return _read(step, self.language, self.folder)

    def instructions(self) -> tuple[str, ...]:
        """The unfilled system parts of all prompts, without the rubric: texts that an answer must not copy."""
        return tuple(self.source(step).partition(DIVIDER)[0] for step in STEPS)

    def messages(self, step: str, *, photo: Any = None, item: str | None = None, **values: Any) -> list[Message]:
        """System and user message of a step. item: the output of `item`. All other values, facts and teachers' texts included, are
        neutralized to one line. Raises LoreError for a prompt file that cannot be rendered.
        """
        known = {"rubric": self.rubric, **{name: self._safe(value) for name, value in values.items()}}
        known |= {} if item is None else {"item": item}
        # Split before rendering, so that no value can contain the divider.
        first, second = self.source(step).split(DIVIDER)
        system, user = self._shared(first, step, known), _filled(second, step, known)
        if photo is None:
            return [{"role": "system", "content": system}, {"role": "user", "content": user}]
        before, mark, after = user.partition(PHOTO)
        if not mark:
            raise LoreError(
                f"The prompt of step {step} has no {PHOTO} in its second part, so there is no place for the photo. Write {PHOTO} "
                "or {{ item }} there."
            )
        # Raises what the engine's processor would raise, before the photo can fail a whole batch.
        image = open_photo(photo, PromptFormat(max_photo_pixels=self.max_photo_pixels), self.tokenizer)
        parts = [{"type": "text", "text": before + mark}, {"type": "image", "image": image}]
        parts += [{"type": "text", "text": after or "</photo>"}]
        return [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": parts}]

    def _shared(self, source: str, step: str, known: dict[str, Any]) -> str:
        """The rendered system part. It is long and the same for many pairs, so it is cached."""
        values = {name: known[name] for name in _variables(source, step) if name in known and name != "rubric"}
        if any(not isinstance(value, str | None) for value in values.values()):
            return _filled(source, step, known)
        key = (source, *sorted(values.items()))
        if key not in self._kept:
            if len(self._kept) >= KEPT:  # for a prompt file that puts the pair's own text here
                self._kept.clear()
            self._kept[key] = _filled(source, step, known)
        return self._kept[key]

    def _safe(self, value: Any) -> Any:
        if isinstance(value, str):
            return neutralize(value, self.control)
        if isinstance(value, list):
            return [self._safe(part) for part in value]
        if isinstance(value, Wish | Evidence):
            return replace(value, **{name: self._safe(part) for name, part in asdict(value).items()})
        return value

    def item(self, pair: Pair, photo: bool) -> str:
        """The item as judges see it, without the query; `<photo>` marks the place of the photo."""
        before, after = item_text(pair, self.control, MAX_ITEM_CHARACTERS).block(photo)
        return before[before.index("<item>") :] + after


def _read(step: str, language: str, folder: str | None) -> str:
    name = f"{step}.{language}.md"
    for place in ([Path(folder)] if folder else []) + [FOLDER]:
        path = place / name
        if path.is_file():
            if path.stat().st_size > MAX_PROMPT_BYTES:
                raise LoreError(f"{path} has more than {MAX_PROMPT_BYTES:,} bytes, which is too long for a prompt. Shorten it.")
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise LoreError(f"{path} is not UTF-8 text ({error}), so it cannot be a prompt. Save it as UTF-8.") from error
            if text.count(DIVIDER) != 1:
                raise LoreError(f"{path} must have one line {DIVIDER!r} between what all pairs share and the pair's own part.")
            return text
    known = sorted(path.name for path in FOLDER.glob("*.md"))
    raise LoreError(f"There is no prompt {name}; the shipped ones are {', '.join(known)}. Set `prompts` to a folder that has it.")


def _filled(source: str, step: str, values: dict[str, Any]) -> str:
    try:
        return _template(source).render(values).strip()
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unfilled(step, error) from error


def _unfilled(step: str, error: Exception) -> LoreError:
    return LoreError(
        f"The prompt of step {step} cannot be rendered: {str(error).rstrip('.')}. Compare it with the shipped {step}.en.md, "
        "which uses every variable of the step."
    )


@lru_cache(maxsize=64)
def _variables(source: str, step: str) -> frozenset[str]:
    try:
        return frozenset(meta.find_undeclared_variables(jinja2.Environment().parse(source)))
    except jinja2.TemplateError as error:
        raise _unfilled(step, error) from error


@lru_cache(maxsize=64)
def _template(source: str) -> Any:
    # Immutable: all pairs share one rubric, which no template may change.
    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True).from_string(source)


def prompt_hash(messages: list[Message]) -> str:
    """16 hex digits over a prompt's texts and pixels."""
    digest = hashlib.blake2b(digest_size=8)
    for message in messages:
        digest.update(f"\x1e{message['role']}\x1f".encode())
        for part in parts_of(message):
            if part["type"] == "image":
                digest.update(f"{part['image'].size}".encode() + part["image"].tobytes())
            else:
                digest.update(part["text"].encode(errors="surrogatepass"))
    return digest.hexdigest()


def prompt_texts_hash(language: str, folder: str | None) -> str:
    """16 hex digits over the prompt files that a recipe uses."""
    texts = "\x1e".join(_read(step, language, folder) for step in STEPS)
    return hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()
