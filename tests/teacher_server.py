"""The shop's program behind an OpenAI-compatible server. It reads the prompts like a model and answers correctly. `misbehaving`
adds errors."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import asdict

from openai_server import Answer, Request, error, reply

from lore.data.pair import Pair
from lore.data_synth.shop.oracle_teacher import ShopProgram
from lore.data_synth.shop.world import World
from lore.data_synth.synthesis.facts import Fact
from lore.data_synth.synthesis.trace import Evidence, Unreadable, Wish

WISH = re.compile(r"^\d+\. (\w+): (.*)$", re.MULTILINE)
JUDGED = re.compile(r"^\d+\. (\w+): wanted (.*) \| found (.*) \((\w+)\)$", re.MULTILINE)


class ShopServer:
    """`answer` is the function for `openai_server.serve`. asked: number of requests per step."""

    def __init__(self, language: str = "en", seconds: float = 0.0):
        self.world = World(0, language)
        self.program = ShopProgram(self.world.rubric, language)
        self.facts = [Fact("", **fact) for fact in self.world.lexicon.facts()]
        self.seconds = seconds
        self.asked: dict[str, int] = {}
        self.tokens = 0

    def answer(self, request: Request) -> Answer:
        step = step_of(request)
        self.asked[step] = self.asked.get(step, 0) + 1
        try:
            text = getattr(self, f"_{step}")(request)
        except Unreadable as problem:
            text = str(problem)
        prompt_tokens, tokens = len(json.dumps(request.body["messages"])) // 6, max(1, len(text) // 4)
        self.tokens += prompt_tokens + tokens
        return reply(text, prompt_tokens=prompt_tokens, tokens=tokens, model=request.body["model"], seconds=self.seconds)

    def _knowledge(self, request: Request) -> str:
        pair = Pair(pair_id="", query=_tag(request.text, "query"), title="")
        return json.dumps({"demands": [asdict(wish) for wish in self.program.knowledge(pair, self._about(pair.query))]})

    def _caption(self, request: Request) -> str:
        title = self.world.lexicon.types[0].name
        pair = Pair(pair_id="", query="", title=title, image={"bytes": photo_of(request), "path": None})
        wishes = [Wish("colour", "", ""), Wish("pattern", "", "")]
        return ", ".join(evidence.found for evidence in self.program.multimodal(pair, wishes, []))

    def _multimodal(self, request: Request) -> str:
        text = whole_text(request)
        pair = Pair(pair_id="", query="", title=_tag(text, "title"), brand=_tag(text, "brand") or None)
        pair.attributes = dict(part.split(": ", 1) for part in _tag(text, "attributes").split("; ") if part)
        pair.price = float(_tag(text, "price")) if "<price>" in text else None
        photo = photo_of(request)
        pair.image = {"bytes": photo, "path": None} if photo else None
        wishes = [Wish(dimension, "", wanted) for dimension, wanted in WISH.findall(_tag(text, "demands"))]
        facts = self._about(" ".join([pair.title, *pair.attributes.values()]))
        evidence = self.program.multimodal(pair, wishes, facts)
        caption = _tag(text, "photo_caption")
        if caption:
            seen = dict(zip(("colour", "pattern"), caption.split(", "), strict=True))
            evidence = [
                Evidence(seen[wish.dimension], "photo") if found.source == "none" and wish.dimension in seen else found
                for wish, found in zip(wishes, evidence, strict=True)
            ]
        return json.dumps({"evidence": [asdict(found) for found in evidence]})

    def _rules(self, request: Request) -> str:
        rows = JUDGED.findall(_tag(request.text, "demands"))
        wishes = [Wish(dimension, "", wanted) for dimension, wanted, _, _ in rows]
        rulings = self.program.rules(None, wishes, [Evidence(found, source) for _, _, found, source in rows])
        verdict = self.world.rubric.verdict_over([ruling.tier for ruling in rulings])
        return json.dumps({"rulings": [asdict(ruling) for ruling in rulings], "verdict": verdict})

    def _critic(self, request: Request) -> str:
        return json.dumps({"accept": "L1" not in _tag(request.text, "verdict"), "why": "no L1 today"})

    def _about(self, text: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.phrase in text]


def misbehaving(good: Callable[[Request], Answer], every: int = 5) -> Callable[[Request], Answer]:
    """Makes one of `every` requests fail, in a cycle: 429, 500, garbage, half a body, no response, another model's response."""
    faults = [
        lambda request: error(429, "slow down", **{"Retry-After": "0.05"}),
        lambda request: error(500, "out of luck"),
        lambda request: Answer(body=b"<html>gateway</html>"),
        lambda request: Answer(body=good(request).body, half=True),
        lambda request: Answer(silent=True),
        lambda request: reply("L4", model="somebody-else"),
    ]

    def answer(request: Request) -> Answer:
        turn, rest = divmod(request.number, every)
        return faults[turn % len(faults)](request) if rest == every - 1 else good(request)

    return answer


def step_of(request: Request) -> str:
    """The step of a request, recognized by the first line of its prompt."""
    system = request.body["messages"][0]["content"]
    first = system if isinstance(system, str) else system[0]["text"]
    marks = {"First step": "knowledge", "look at one product photo": "caption", "Second step": "multimodal", "Third step": "rules"}
    return next((step for mark, step in marks.items() if mark in first.split("\n")[0]), "critic")


def photo_of(request: Request) -> bytes | None:
    content = request.body["messages"][-1]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"] if isinstance(content, list) else []
    return base64.b64decode(urls[0].partition(",")[2]) if urls else None


def whole_text(request: Request) -> str:
    content = request.body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _tag(text: str, name: str) -> str:
    return text.partition(f"<{name}>")[2].partition(f"</{name}>")[0].strip()
