"""From a question to a cited answer, top to bottom.

    graph, vectors = Graph(town, relations), Vectors(town.vectors, encode, relations)
    ask(town, "somewhere quiet to work, open now", 41.88, -87.63, now=datetime.now(), graph=graph, layers=[vectors]).text

    question -> intent -> circle -> layers -> fusion -> hours -> rules -> order -> answer

Where the question has needs of the relations, only places that the graph finds for them are shown; the other layers order those.
Other words are answered by names that hold them, and where no name does, by the vector layer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from lore.config.sections import Conflict, StrictModel
from lore.config.validation import validate
from lore.config.yaml_text import read_recipe_text
from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.engines.engine import Engine
from lore.engines.open_engine import open_engine
from lore.judge.scorer import Scorer
from lore.nearby.answer import Answer, model_answer, template_answer
from lore.nearby.fusion import DEPTH, LearnedFusion, candidates
from lore.nearby.graph import RELATIONS, Graph, Linker, load_relations
from lore.nearby.intent import MINUTES, Corrections, model_corrections, understand, understood
from lore.nearby.retrieval import Layer, Reach
from lore.nearby.rules import grade, open_scorer, ordered
from lore.nearby.streets import within
from lore.nearby.town import Town
from lore.places.hours import Opening, opening_of
from lore.places.local_life import ceiling, local_life
from lore.places.place import Place, plain_name
from lore.places.question import Candidate, Hit, Intent
from lore.support.errors import LoreError

POOL = 40
"""Places that are checked against the rules, and graded by a judge; more if more are to be shown."""
BEYOND_MINUTES = 60.0
"""How far the nearest place is looked for if the circle has none."""


class Names:
    """The layer of places whose name holds the words of a need without a key: "Starbucks near Union Station"."""

    name = "name"

    def __init__(self, town: Town):
        self._town = town

    def retrieve(self, intent: Intent, reach: Reach, k: int) -> list[Hit]:
        wanted = [plain_name(need.text) for need in intent.needs if need.key is None and not need.excluded]
        shared = Counter(row for words in wanted for row in self._town.names_holding(words))
        hits = [Hit(row, float(shared[row]), self._town.names[row]) for row in reach.rows.tolist() if row in shared]
        return sorted(hits, key=lambda hit: -hit.score)[:k]


def ask(
    town: Town,
    text: str,
    lat: float,
    lon: float,
    *,
    now: datetime,
    graph: Graph,
    layers: Sequence[Layer] = (),
    k: int = 4,
    corrections: Sequence[Corrections] = (),
    learned: LearnedFusion | None = None,
    scorer: Scorer | None = None,
    engine: Engine | None = None,
    personal: Mapping[int, float] | None = None,
) -> Answer:
    """The answer to a question from a position. now: wall clock of the town. layers: besides the graph. corrections: of what was
    understood. scorer: a judge or student that orders the places. engine: a language model that reads the question and writes the
    answer; both are checked. personal: score by row of the town, which orders places within a tier. Raises LoreError for a
    question, position or time out of bounds."""
    began = time.perf_counter()
    needs, notes = graph.relations.needs, []
    intent = understand(text, town, lat, lon, now, needs, *corrections)
    if engine is not None:
        try:
            read = model_corrections(text, engine, needs)
            intent = understand(text, town, lat, lon, now, needs, read, *corrections)
        except LoreError as error:
            notes.append(str(error))

    reach = within(town, intent.lat, intent.lon, intent.minutes)
    for depth in (DEPTH, len(reach.rows)):
        hits = _retrieve(town, intent, reach, graph, [graph, Names(town), *layers], depth)
        fusion = None if hits.get("name") else learned  # it was fitted without this layer
        pool = candidates(town, intent, reach, hits, _opening_of(town, intent), max(POOL, k), fusion)
        found = _pass_rules(pool, intent)
        # The first DEPTH places may all be closed while another one in the circle is open.
        if found or len(reach.rows) <= depth:
            break
    refused = 0
    if scorer is not None and found:
        found, refused = grade(found, intent, scorer)
    found = ordered(found, intent, personal)[:k]
    beyond = None if found else _nearest_beyond(town, intent, graph)

    answer, struck = template_answer(intent, found, beyond), 0
    if engine is not None and found:
        try:
            written, struck = model_answer(intent, found, engine, town)
            answer = written or answer
            if not written:
                notes.append("Nothing of the language model's answer could be kept, so the template answers.")
        except LoreError as error:
            notes.append(str(error))
    seconds = time.perf_counter() - began
    return Answer(intent, understood(intent), answer, found, beyond, struck, refused, notes, hits, seconds)


def open_layers(
    town: Town,
    *,
    relations: Path | None = None,
    encoder: str | None = None,
    judge: Path | None = None,
    model: Path | None = None,
) -> dict[str, Any]:
    """What `ask` needs besides a question, by the names of its arguments. relations: a file; None: those of LORE. encoder: where
    the town's encoder lies now; None: as at indexing. judge: folder of a judge or student. model: file of a language model."""
    known, parts = load_relations(relations or RELATIONS), {}
    linker, encoder = None, encoder or town.meta.get("encoder")
    if encoder is not None:
        from lore.nearby.vectors import Vectors, sentence_encoder  # loads torch: only with an encoder

        encode = sentence_encoder(encoder)
        linker = Linker(known, encode)
        parts |= {"layers": [Vectors(town.vectors, encode, known)], "learned": LearnedFusion.load()}
    if judge is not None:
        parts["scorer"] = open_scorer(judge)
    if model is not None:
        parts["engine"] = open_language_model(model)
    return parts | {"graph": Graph(town, known, linker)}


def clock(town: Town) -> datetime:
    """The town's wall clock now; this machine's for a town without a time zone."""
    name = town.meta.get("timezone")
    return datetime.now(ZoneInfo(name) if name else None).replace(tzinfo=None, second=0, microsecond=0)


class LanguageModelFile(StrictModel):
    """A language model in a YAML file: one of the two sections. vllm: run the model in vLLM."""

    model: ModelSection | None = None
    endpoint: EndpointSection | None = None
    vllm: VllmSection | None = None

    def conflicts(self) -> Iterator[Conflict]:
        if (self.model is None) == (self.endpoint is None):
            yield Conflict(("model", "endpoint"), "none or both of the two", "one of the two")


def open_language_model(path: Path) -> Engine:
    """The engine of a file with a LanguageModelFile."""
    file = validate(read_recipe_text(path), LanguageModelFile)
    return open_engine(file.endpoint or file.model, local_life(), vllm=file.vllm)


def _retrieve(town: Town, intent: Intent, reach: Reach, graph: Graph, layers: Sequence[Layer], k: int) -> dict[str, list[Hit]]:
    """Hits by layer, only of places that meet what the question needs. Without needs, the nearest places."""
    reach = graph.allowed(intent, reach)
    wanted = [need for need in intent.needs if not need.excluded]
    if not wanted:
        near = [row for row in reach.rows.tolist() if town.kinds[row] in ("place", "event")][:k]
        return {"near": [Hit(row, 1.0, "") for row in near]}
    hits = {layer.name: _of_places(town, layer.retrieve(intent, reach, k), reach) for layer in layers}
    must = "graph" if any(need.key for need in wanted) else "name" if hits["name"] else None
    if must is None:
        return hits
    meet = {hit.row for hit in hits[must]}
    return {name: [hit for hit in found if hit.row in meet] for name, found in hits.items()}


def _of_places(town: Town, hits: list[Hit], reach: Reach) -> list[Hit]:
    """The hits with each post replaced by the place that it is about, if that is within reach; each place once."""
    posts = [hit.row for hit in hits if town.kinds[hit.row] == "post"]
    about = {row: town.row(place.about) for row, place in zip(posts, town.places(posts), strict=True) if place.about is not None}
    near, best = set(reach.rows.tolist()) if posts else set(), {}
    for hit in hits:
        row = about.get(hit.row) if town.kinds[hit.row] == "post" else hit.row
        if row is not None and (row == hit.row or row in near):
            best.setdefault(row, hit if row == hit.row else Hit(row, hit.score, f"{hit.why}, in a post"))
    return list(best.values())


def _pass_rules(found: Sequence[Candidate], intent: Intent) -> list[Candidate]:
    rubric = local_life()
    return [one for one in found if rubric.relevant_mask[rubric.index(ceiling(one, intent))]]


def _nearest_beyond(town: Town, intent: Intent, graph: Graph) -> Candidate | None:
    """The nearest place that meets the question within BEYOND_MINUTES; of a longer walk, as far as anyone may ask to walk."""
    minutes, most = intent.minutes, BEYOND_MINUTES if intent.minutes < BEYOND_MINUTES else MINUTES[1]
    while minutes < most:
        minutes = min(2 * minutes, most)
        far = replace(intent, minutes=minutes)
        reach = within(town, intent.lat, intent.lon, minutes)
        hits = _retrieve(town, far, reach, graph, [graph, Names(town)], len(reach.rows))
        equal = {name: [replace(hit, score=1.0) for hit in found] for name, found in hits.items()}  # then the nearest comes first
        met = np.isin(reach.rows, [hit.row for found in hits.values() for hit in found])
        reach = replace(reach, rows=reach.rows[met], metres=reach.metres[met], minutes=reach.minutes[met])
        found = _pass_rules(candidates(town, far, reach, equal, _opening_of(town, far), POOL), far)
        if found:
            return min(found, key=lambda one: one.metres)
    return None


def _opening_of(town: Town, intent: Intent) -> Callable[[Place], Opening]:
    when = intent.when
    assert when is not None

    return partial(opening_of, when=when, country=town.meta.get("country"), timezone=town.meta.get("timezone"))
