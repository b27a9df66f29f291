"""Opens the teachers of a recipe. Heavy libraries are imported only for the kinds that need them."""

import asyncio
import hashlib
import importlib
import json
from functools import partial
from typing import Any

from lore.data_synth.synthesis.config import SynthesizeRecipe, TeacherSection
from lore.data_synth.synthesis.program import ProgramTeacher
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.teachers import ByModel, ByProgram, Teacher
from lore.engines.batching import Batched
from lore.engines.engine import Engine
from lore.engines.open_engine import open_engine
from lore.engines.unanswered import AnswerWatch
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.support.fingerprint import model_fingerprint

# Imported by dotted name, as stages are: the shop depends on the synthesis, not the other way around.
PROGRAMS = {
    "shop": "lore.data_synth.shop.oracle_teacher:ShopProgram",
    "words": "lore.data_synth.synthesis.program_words:WordsProgram",
}


def open_teachers(recipe: SynthesizeRecipe, rubric: Rubric) -> tuple[Teacher, ByModel | None, ByModel | None]:
    """Teacher, captioner and critic. Roles with the same model share one engine."""
    engines: list[tuple[Any, Engine]] = []
    teacher = open_teacher("teacher", recipe.teacher, recipe, rubric, engines)
    captioner = open_teacher("captioner", recipe.captioner, recipe, rubric, engines) if recipe.captioner else None
    critic = open_teacher("critic", recipe.critic, recipe, rubric, engines) if recipe.critic else None
    return teacher, captioner, critic


def open_teacher(role: str, section: TeacherSection, recipe: SynthesizeRecipe, rubric: Rubric, engines: list) -> Teacher:
    if section.kind == "program":
        return ByProgram(ProgramTeacher(_program(section, recipe, rubric), rubric, section.errors))
    place = section.endpoint if section.kind == "endpoint" else (section.kind, section.model)
    engine = next((engine for known, engine in engines if known == place), None)
    if engine is None:
        if section.kind == "endpoint":
            engine = open_engine(section.endpoint, rubric)
        else:
            engine = _open_model(section, recipe, rubric)
        engines.append((place, engine))
    tokenizer = getattr(engine, "processor", None) or engine.tokenizer
    prompts = Prompts(rubric, recipe.language, recipe.prompts, recipe.max_photo_pixels, tokenizer)
    complete, close = (engine.complete, engine.aclose) if section.kind == "endpoint" else (Batched(engine).complete, None)
    if hasattr(engine, "close"):
        close = partial(asyncio.to_thread, engine.close)
    watch = AnswerWatch(recipe.unanswered, role)
    name, identity = teacher_name(section), teacher_identity(section)
    return ByModel(name, complete, section, prompts, recipe.seed, close, engine.takes_images, watch, identity)


def _open_model(section: TeacherSection, recipe: SynthesizeRecipe, rubric: Rubric) -> Engine:
    """A model in this process, or in the workers of a Ray cluster."""
    vllm = section.vllm if section.kind == "vllm" else None
    if recipe.ray is None:
        return open_engine(section.model, rubric, vllm=vllm)
    from lore.engines.loading import load_processor  # loads torch: only for a model on a cluster
    from lore.engines.ray_engine import RayEngine

    open_one = partial(open_engine, section.model, rubric, vllm=vllm)
    each = vllm.tensor_parallel if vllm is not None else 1
    return RayEngine(recipe.ray, load_processor(section.model, chat=True), open_one, tensor_parallel=each)


def teacher_identity(section: TeacherSection) -> str:
    """What a teacher's answers depend on: model, decoding and additional fields, but not where it runs. It is hashed into the keys
    of the answers and never written."""
    extra = section.endpoint.extra if section.kind == "endpoint" else {}
    return _model_and_decoding(section) + (f" {sorted(extra.items())}" if extra else "")


def teacher_name(section: TeacherSection) -> str:
    """The name of a teacher in traces and cards, which are published: a hash stands for the additional fields."""
    extra = section.endpoint.extra if section.kind == "endpoint" else {}
    told = json.dumps(extra, sort_keys=True).encode()
    return _model_and_decoding(section) + (f" extra:{hashlib.blake2b(told, digest_size=4).hexdigest()}" if extra else "")


def _model_and_decoding(section: TeacherSection) -> str:
    decoding = f"t{section.temperature:g} p{section.top_p:g} m{section.max_tokens}"
    if section.kind == "endpoint":
        return f"endpoint:{section.endpoint.model} {decoding}"
    model = section.model
    return f"{section.kind}:{model.name}@{model_fingerprint(model.name, model.adapter)} {decoding}"


def _program(section: TeacherSection, recipe: SynthesizeRecipe, rubric: Rubric) -> Any:
    if rubric.aggregate == "free":
        raise LoreError(
            f"Rubric {rubric.name} leaves the verdict to the judge (aggregate: free), so a program cannot compute it.\n"
            "Set aggregate: worst or mean in the rubric, or use a model as teacher."
        )
    if section.program == "shop" and rubric.name != "shop":
        raise LoreError(
            f"teacher.program is shop, which works only for the embedded shop, but the rubric is {rubric.name}.\n"
            "Set data.rubric: shop, or teacher.program: words for other pairs."
        )
    module, _, name = PROGRAMS[section.program].partition(":")
    return getattr(importlib.import_module(module), name)(rubric, recipe.language)
