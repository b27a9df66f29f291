"""The requests and replies of the service: the formats that search engines and re-ranking clients speak, and LORE's own.

    POST /v1/rerank, /v2/rerank, /rerank   Cohere (https://docs.cohere.com/reference/rerank, .../v1/reference/rerank) and Jina
                                           (https://api.jina.ai/scalar), which vLLM speaks too
    POST /rerank with `texts`              text-embeddings-inference (https://huggingface.github.io/text-embeddings-inference)
    POST /score, /v1/score                 vLLM (https://docs.vllm.ai/en/latest/models/pooling_models/scoring.html)
    POST /judge                            pairs in, Verdict rows out

All of them become the same pairs and the same answers. A text is an item's title; an object has the fields of an item. What is
wrong with the form of a request fails the request. What is wrong with the content of one pair fails this pair: score 0, the last
place, and the reason in `lore.failure`.

Left out of the formats: chunks of long documents (`max_chunks_per_doc`), token limits of a request (`max_tokens_per_doc`,
`truncate_prompt_tokens`: the student cuts where it was trained to) and activations (`raw_scores`, `use_activation`: a score is
always in [0, 1]). Such fields are accepted and change nothing, like all others that are not named here.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from lore.data.pair import FIELDS, Pair
from lore.data.row_validation import MAX_LIST, RowChecker
from lore.engines.engine import MAX_WORDS
from lore.judge.verdict import Verdict, to_row
from lore.online.answer import TOO_LATE, Answer
from lore.online.config import MAX_MILLISECONDS
from lore.online.exchange import ApiError
from lore.online.plain_rows import plain_pair
from lore.support.bounds import MAX_COUNT
from lore.support.text import encodable

ITEM_FIELDS = ("title", "item_id", "attributes", "description", "category", "brand", "shop", "price", "image")
"""What a request may say about an item."""
PAIR_FIELDS = ("query", *ITEM_FIELDS, "pair_id", "slices")
TEXT_TOO_LONG, UNKNOWN_FIELD = "text_too_long", "unknown_field"
Row = dict[str, Any]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_COUNT else value


Count = Annotated[int, Field(ge=0, le=MAX_COUNT), BeforeValidator(_whole)]
"""JSON does not tell 5.0 from 5."""

_SAID = {
    "title": "Name of the item. Without it, `text` is the title.",
    "text": "The item as one text.",
    "item_id": "Id of the item, or `id`.",
    "attributes": "Object of names and values, or a list of objects with `key` and `value`.",
    "description": "Longer text about the item.",
    "category": "Category, as the judge was trained on.",
    "brand": "Brand.",
    "shop": "Shop that offers the item.",
    "price": "Number.",
    "image": "A photo: data:image/...;base64,... or a URL of an allowed host.",
}
_ITEM_SCHEMA = {
    "type": "object",
    "description": "An item.",
    "properties": {name: {"description": said} for name, said in _SAID.items()},
}
_PAIR_SCHEMA = {
    "type": "object",
    "description": "A query and an item.",
    "properties": {
        "query": {"description": "The query."},
        "pair_id": {"description": "Comes back with the verdict; by default a hash of query and item."},
        "slices": {"description": "Such as locale:us, if the judge's labels are kept apart by market."},
        **_ITEM_SCHEMA["properties"],
    },
}
Item = Annotated[dict[str, Any], WithJsonSchema(_ITEM_SCHEMA)]
PairObject = Annotated[dict[str, Any], WithJsonSchema(_PAIR_SCHEMA)]
Document = str | Item
Query = Annotated[str, Field(min_length=1)]
# The first error ends the check of a list: a million of them would take seconds to describe.
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Queries = Annotated[list[Query], Field(min_length=1, fail_fast=True)]
Documents = Annotated[list[Document], Field(min_length=1, fail_fast=True)]


class Body(BaseModel):
    """A request. Types are exact: "5" is no number. Fields that are not named are ignored, because clients differ in them."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class RerankBody(Body):
    """Cohere's, Jina's and vLLM's re-ranking."""

    model: str | None = None
    """Comes back in the reply; there is one model."""
    query: Query
    documents: Documents
    """Texts, or objects with the fields of an item."""
    top_n: Count | None = None
    """How many results. null and 0: all."""
    return_documents: bool | None = False
    rank_fields: Annotated[Texts, Field(max_length=100)] | None = None
    """Only these fields of the objects are read. One that is no field of an item is an attribute. null: the fields of an item."""


class TextsBody(Body):
    """text-embeddings-inference's re-ranking."""

    query: Query
    texts: Texts
    return_text: bool | None = False
    raw_scores: bool | None = False
    """Changes nothing: scores are calibrated to [0, 1]."""
    truncate: bool | None = None
    """Changes nothing: the student cuts long texts where it was trained to."""


class TextScoreBody(Body):
    """vLLM's scores of text pairs, 1:1, 1:N or N:N."""

    model: str | None = None
    text_1: Query | Queries
    text_2: Document | Documents


class DocumentScoreBody(Body):
    """The newer names of the same: queries and documents."""

    model: str | None = None
    queries: Query | Queries
    documents: Document | Documents


class ItemScoreBody(Body):
    """The same with items."""

    model: str | None = None
    queries: Query | Queries
    items: Document | Documents


class DataScoreBody(Body):
    """The same with data_1 and data_2."""

    model: str | None = None
    data_1: Query | Queries
    data_2: Document | Documents


class JudgeBody(Body):
    """LORE's own format."""

    pairs: Annotated[list[PairObject], Field(min_length=1, fail_fast=True)]
    deadline_ms: Annotated[float, Field(gt=0, le=MAX_MILLISECONDS)] | None = None
    """Deadline of the reply; the header x-envoy-expected-rq-timeout-ms says the same for every format. null: the service's."""


def _told_apart(forms: dict[str, tuple[str, ...]]) -> Discriminator:
    """Which of several bodies a request has, by the fields that it needs; several at once are an error. forms: tag -> fields."""

    def tag(body: Any) -> str | None:
        given = {name for name, value in body.items() if value is not None} if isinstance(body, dict) else set()
        whole = [tag for tag, names in forms.items() if given.issuperset(names)]
        if len(whole) > 1:
            return None
        return whole[0] if whole else next((tag for tag in forms if tag in given), next(iter(forms)))

    expected = " or ".join(", ".join(names) for names in forms.values())
    return Discriminator(tag, "several_formats", f"the fields of several formats at once; expected {expected}")


AnyRerankBody = Annotated[
    Annotated[RerankBody, Tag("documents")] | Annotated[TextsBody, Tag("texts")],
    _told_apart({"documents": ("query", "documents"), "texts": ("query", "texts")}),
]
ScoreBody = Annotated[
    Annotated[TextScoreBody, Tag("text_1")]
    | Annotated[DocumentScoreBody, Tag("documents")]
    | Annotated[ItemScoreBody, Tag("items")]
    | Annotated[DataScoreBody, Tag("data_1")],
    _told_apart(
        {
            "text_1": ("text_1", "text_2"),
            "documents": ("queries", "documents"),
            "items": ("queries", "items"),
            "data_1": ("data_1", "data_2"),
        }
    ),
]


class Lore(BaseModel):
    """What LORE adds to a result of another format."""

    tier: str | None = Field(description="Tier of the rubric. null: see failure.")
    probabilities: dict[str, float] | None = Field(description="Probability per tier.")
    source: str | None = Field(description="cache, student or judge.")
    band: str | None = Field(description="Of the query's frequency: head, torso or tail.")
    late: bool = Field(description="The student answers for the judge, which did not answer in time or could not be asked.")
    age_seconds: float | None = Field(description="Age of a cached verdict, if known.")
    photo: str = Field(description="seen, hidden, failed or none.")
    photo_failure: str | None = Field(None, description="Why a photo could not be read.")
    failure: str | None = Field(description="Why there is no tier.")
    detail: str | None = Field(description="More about a failure, in words.")


class Usage(BaseModel):
    """Tokens are not counted: clients of vLLM and Jina ask for these fields."""

    prompt_tokens: int = 0
    total_tokens: int = 0


NO_USAGE = Usage().model_dump()


class RerankResult(BaseModel):
    index: int
    relevance_score: float = Field(ge=0, le=1)
    document: dict[str, Any] | None = None
    lore: Lore


class RerankReply(BaseModel):
    id: str
    model: str
    results: list[RerankResult]
    meta: dict[str, Any]
    usage: Usage


class TextResult(BaseModel):
    index: int
    score: float = Field(ge=0, le=1)
    text: str | None = None
    lore: Lore


class ScoreResult(BaseModel):
    index: int
    object: str
    score: float = Field(ge=0, le=1)
    lore: Lore


class ScoreReply(BaseModel):
    id: str
    object: str
    created: int
    model: str
    data: list[ScoreResult]
    usage: Usage


class VerdictRow(BaseModel):
    """lore.judge.verdict.to_row and how the answer came about."""

    model_config = ConfigDict(extra="allow")

    pair_id: str
    tier: str | None
    score: float | None
    source: str | None
    band: str | None
    late: bool
    age_seconds: float | None
    failure: str | None
    photo: str
    photo_failure: str | None = None


class JudgeReply(BaseModel):
    id: str
    tiers: list[str]
    verdicts: list[VerdictRow]


class ErrorDetail(BaseModel):
    message: str
    type: str
    request_id: str | None = None
    errors: list[dict[str, Any]] | None = None


class ErrorReply(BaseModel):
    error: ErrorDetail


def rerank_rows(body: RerankBody) -> list[Row]:
    """One row per document."""
    return [_document_row(body.query, document, index, body.rank_fields) for index, document in enumerate(body.documents)]


def text_rows(body: TextsBody) -> list[Row]:
    """One row per text."""
    return [_document_row(body.query, text, index) for index, text in enumerate(body.texts)]


def score_rows(body: TextScoreBody | DocumentScoreBody | ItemScoreBody | DataScoreBody) -> list[Row]:
    """One row per score. Raises ApiError for lists of different lengths."""
    names = [name for name in type(body).model_fields if name != "model"]
    left, right = (value if isinstance(value := getattr(body, name), list) else [value] for name in names)
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        message = f"{names[0]} has {len(left):,} texts and {names[1]} has {len(right):,}; expected 1 and N, or N and N"
        raise ApiError(422, "invalid_request", message)
    return [_document_row(query, document, index) for index, (query, document) in enumerate(zip(left, right, strict=True))]


def judge_rows(body: JudgeBody) -> list[Row]:
    """One row per pair."""
    return body.pairs


def _document_row(query: str, document: str | Item, index: int, rank_fields: Sequence[str] | None = None) -> Row:
    row: Row = {"pair_id": str(index), "query": query}
    if isinstance(document, str):
        return row | {"title": document}
    if isinstance(parts := document.get("content"), list):
        document = _of_parts(parts)
    if rank_fields is not None:
        document = _ranked(document, rank_fields)
    row |= {name: document[name] for name in ITEM_FIELDS if document.get(name) is not None}
    text = document.get("text")
    if "title" not in row:
        row["title"] = text
    elif text is not None:
        row.setdefault("description", text)
    if "item_id" not in row and isinstance(item_id := document.get("id"), str | int):
        row["item_id"] = item_id
    return row


def _ranked(document: Item, names: Sequence[str]) -> Item:
    """The document with its ranked fields only. The first of them is the title if there is no other."""
    kept = {name: document[name] for name in names if document.get(name) is not None}
    if kept and "title" not in kept and "text" not in kept:
        kept["title"] = kept.pop(next(iter(kept)))
    others = {name: kept.pop(name) for name in list(kept) if name not in ITEM_FIELDS and name != "text"}
    if others:
        given = kept.get("attributes")
        kept["attributes"] = (given if isinstance(given, dict) else {}) | others
    return kept | {name: document[name] for name in ("item_id", "id") if name in document}


def _of_parts(parts: list[Any]) -> Item:
    """A document of text and image parts, as vLLM takes them for multimodal scores."""
    found: Item = {}
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if texts:
        found["title"] = " ".join(texts)
    for part in parts:
        url = part.get("image_url") if isinstance(part, dict) else None
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            found.setdefault("image", url)
    return found


class PairReader:
    """Rows of a request to pairs, cleaned like the rows of a table (lore.data.row_validation): the cache finds an item that was
    labeled from a table.

    most_characters: of a query or one text of an item.
    """

    def __init__(self, most_characters: int):
        self.most_characters = most_characters
        self._checker = RowChecker(None)

    def read(self, row: Row) -> Pair | Answer:
        """The pair, without its photo; for a row that is none, its answer: a failure."""
        return plain_pair(row, self.most_characters) or self.checked(row)

    def checked(self, row: Row) -> Pair | Answer:
        """The same, field by field."""
        raw = {name: row[name] for name in PAIR_FIELDS if name != "image" and row.get(name) is not None}
        attributes = raw.get("attributes")
        if isinstance(attributes, dict | list) and len(attributes) > MAX_LIST:
            return _refused(row, "attributes_too_long", f"attributes: {len(attributes):,}; expected at most {MAX_LIST:,}")
        if (name := self._too_long(raw)) is not None:
            return _refused(row, TEXT_TOO_LONG, f"{name}: a text of more than {self.most_characters:,} characters")
        if len(raw) < len(row) and (unknown := [name for name in row if name not in FIELDS]):
            return _refused(row, UNKNOWN_FIELD, f"{encodable(unknown[0])[:40]}: expected {', '.join(PAIR_FIELDS)}")
        pair, rejections = self._checker.check(raw)
        if pair is None:
            first = rejections[0]
            return _refused(row, first.reason, f"{first.field}: {first.found}; expected {first.expected}")
        return pair

    def _too_long(self, raw: Row) -> str | None:
        most = self.most_characters
        for name, value in raw.items():
            if isinstance(value, str):
                if len(value) > most:
                    return name
            elif any(len(text) > most for text in _texts(value)):
                return name
        return None


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value, names of attributes too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _refused(row: Row, failure: str, detail: str) -> Answer:
    pair_id = row.get("pair_id")
    pair_id = pair_id[:MAX_WORDS] if isinstance(pair_id, str) else ""
    return Answer(Verdict(pair_id, None, failure=failure, detail=encodable(detail)[:MAX_WORDS]), None, None)


def lore_of(answer: Answer, tier_ids: Sequence[str], photo_failure: str | None = None) -> Row:
    """The key `lore` of a result, see Lore."""
    verdict = answer.verdict
    probabilities = verdict.probabilities
    found = {
        "tier": verdict.tier,
        "probabilities": None if probabilities is None else dict(zip(tier_ids, probabilities, strict=True)),
        "source": None if answer.band is None else verdict.source,
        "band": answer.band,
        "late": answer.late,
        "age_seconds": answer.age_seconds,
        "photo": verdict.photo,
        "failure": verdict.failure,
        "detail": verdict.detail,
    }
    return found if photo_failure is None else found | _photo_failed(verdict, photo_failure)


def _photo_failed(verdict: Verdict, why: str) -> Row:
    """A model that reads no photos calls them hidden, and a vector of the item may stand in for its photo."""
    return {"photo": verdict.photo if verdict.photo == "seen" else "failed", "photo_failure": why}


def ranked(answers: Sequence[Answer]) -> list[int]:
    """Indices from the best to the worst: equal scores in the order of the request, failures last."""
    return sorted(range(len(answers)), key=lambda index: -1.0 if (score := answers[index].score) is None else score, reverse=True)


def score_of(answer: Answer) -> float:
    """The score for formats that have no place for a failure."""
    return 0.0 if answer.score is None else answer.score


class Reply:
    """The content of a reply. photos: why photos could not be read, by index."""

    def __init__(self, request_id: str, tier_ids: Sequence[str], answers: Sequence[Answer], photos: dict[int, str]):
        self.request_id, self.tier_ids, self.answers, self.photos = request_id, tier_ids, answers, photos

    def _lore(self, index: int) -> Row:
        return lore_of(self.answers[index], self.tier_ids, self.photos.get(index))

    def rerank(self, body: RerankBody, version: str) -> Row:
        """See RerankReply. version: of Cohere's interface."""
        order = ranked(self.answers)
        if body.top_n:
            order = order[: body.top_n]
        results = []
        for index in order:
            one: Row = {"index": index, "relevance_score": score_of(self.answers[index])}
            if body.return_documents:
                document = body.documents[index]
                one["document"] = {"text": document} if isinstance(document, str) else document
            one["lore"] = self._lore(index)
            results.append(one)
        meta: Row = {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
        if unanswered := sum(answer.verdict.failure == TOO_LATE for answer in self.answers):
            meta["warnings"] = [f"{unanswered:,} of {len(self.answers):,} documents had no answer by the deadline; they are last"]
        return {
            "id": self.request_id,
            "model": body.model or "lore",
            "results": results,
            "meta": meta,
            "usage": NO_USAGE,
        }

    def texts(self, body: TextsBody) -> list[Row]:
        """See TextResult."""
        found = []
        for index in ranked(self.answers):
            one: Row = {"index": index, "score": score_of(self.answers[index])}
            if body.return_text:
                one["text"] = body.texts[index]
            found.append(one | {"lore": self._lore(index)})
        return found

    def scores(self, model: str | None, created: int) -> Row:
        """See ScoreReply. created: seconds since 1970."""
        data = [
            {"index": index, "object": "score", "score": score_of(answer), "lore": self._lore(index)}
            for index, answer in enumerate(self.answers)
        ]
        return {
            "id": f"score-{self.request_id}",
            "object": "list",
            "created": created,
            "model": model or "lore",
            "data": data,
            "usage": NO_USAGE,
        }

    def verdicts(self) -> Row:
        """See JudgeReply."""
        return {"id": self.request_id, "tiers": list(self.tier_ids), "verdicts": list(map(self._row, range(len(self.answers))))}

    def _row(self, index: int) -> Row:
        answer = self.answers[index]
        row = to_row(answer.verdict, list(self.tier_ids))
        row |= {"score": answer.score, "band": answer.band, "late": answer.late, "age_seconds": answer.age_seconds}
        if answer.band is None:
            row["source"] = None
        return row | _photo_failed(answer.verdict, self.photos[index]) if index in self.photos else row


def sources_of(answers: Iterable[Answer]) -> dict[str, int]:
    """How many answers each source gave; failures by themselves."""
    found: dict[str, int] = {}
    for answer in answers:
        name = "failed" if answer.score is None else answer.source
        found[name] = found.get(name, 0) + 1
    return found
