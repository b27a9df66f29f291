"""What Elasticsearch, OpenSearch and Vespa do with the files of launch/, as far as LORE sees it.

Sources:
- Elasticsearch's `custom` inference service, 8.19 and later:
  https://www.elastic.co/docs/api/doc/elasticsearch/operation/operation-inference-put-custom, and in elastic/elasticsearch,
  x-pack/plugin/inference, services/custom: CustomRequest, RerankParameters, RerankResponseParser, CustomRequestTests
- OpenSearch's connectors and its rerank processor:
  https://docs.opensearch.org/latest/ml-commons-plugin/remote-models/blueprints/,
  https://docs.opensearch.org/latest/search-plugins/search-pipelines/rerank-processor/, and in opensearch-project/ml-commons
  CohereRerankPreProcessFunction, ConnectorUtils, HttpConnector, MLPostProcessFunction, CohereRerankPostProcessFunction, and in
  opensearch-project/neural-search DocumentContextSourceFetcher
- Vespa's cross-encoders: https://docs.vespa.ai/en/ranking/cross-encoders.html,
  https://docs.vespa.ai/en/reference/rank-features.html, and in vespa-engine/vespa TokenTransformer, HuggingFaceTokenizer, Embed
"""

import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer


def elasticsearch_request(settings: dict[str, Any], query: str, documents: list[str]) -> dict[str, Any]:
    """URL, headers and content of the request for a page. Values are JSON in the body, and plain in URL and headers."""
    secrets = settings["secret_parameters"]
    values = {name: json.dumps(value) for name, value in secrets.items()}
    values |= {"query": json.dumps(query, ensure_ascii=False), "input": json.dumps(documents, ensure_ascii=False)}
    headers = {name: _filled(value, secrets) for name, value in settings["headers"].items()}
    content = _filled(settings["request"], values)
    url = _filled(settings["url"], secrets)
    return {"url": url, "headers": {"Content-Type": "application/json"} | headers, "content": content.encode()}


def elasticsearch_ranking(settings: dict[str, Any], reply: dict[str, Any]) -> list[tuple[int, float]]:
    """Index and score of each ranked document. Raises an error where Elasticsearch does."""
    paths = settings["response"]["json_parser"]
    scores, indices = (_extracted(reply, paths[name]) for name in ("relevance_score", "reranked_index"))
    if len(scores) != len(indices) or not all(isinstance(one, int | float) for one in scores):
        raise ValueError("Failed to parse rerank scores")
    return list(zip(map(int, indices), map(float, scores), strict=True))


def opensearch_request(connector: dict[str, Any], query: str, documents: list[str]) -> dict[str, Any]:
    """URL, headers and content of the request for a page, with the parameters of the Cohere pre-process function."""
    (action,) = connector["actions"]
    if action["pre_process_function"] != "connector.pre_process.cohere.rerank":
        raise ValueError("pre_process_function not defined in connector")
    given = {"query": query, "documents": _gson(documents), "top_n": _gson(len(documents))}
    parameters = {name: value if _is_json(value) else _escaped(value) for name, value in given.items()}
    content = re.sub(r"\$\{parameters\.(\w+)\}", lambda found: parameters[found[1]], action["request_body"])
    if not _is_json(content):
        raise ValueError("Invalid payload")
    credential = connector["credential"]
    headers = {
        name: re.sub(r"\$\{credential\.(\w+)\}", lambda found: credential[found[1]], value)
        for name, value in action["headers"].items()
    }
    return {"method": action["method"], "url": action["url"], "headers": headers, "content": content.encode()}


def opensearch_scores(connector: dict[str, Any], reply: dict[str, Any]) -> list[float]:
    """A score per document, in the order of the documents. Raises an error where OpenSearch does: it casts to Integer and Double,
    and a JSON number without a point is no Double."""
    (action,) = connector["actions"]
    if action["post_process_function"] != "connector.post_process.cohere.rerank":
        raise ValueError("no list of results")
    results = reply["results"]
    scores: list[Any] = [None] * len(results)
    for one in results:
        if type(one["index"]) is not int or type(one["relevance_score"]) is not float:
            raise TypeError("ClassCastException")
        scores[one["index"]] = one["relevance_score"]
    return scores


class VespaRanking:
    """The token inputs and the relevance of a rank profile in a schema. tokenizer: without special tokens, as in services.xml."""

    def __init__(self, schema: str, profile: str, tokenizer: Tokenizer):
        self.functions: dict[str, str] = {}
        for name in _lineage(schema, profile):
            block = _block(schema, f"rank-profile {name}")
            self.functions |= dict(re.findall(r"function (\w+)\(\) \{\s*expression: (.*)\n", block))
        sizes = dict(re.findall(r"(item_tokens|query_tokens)\)? (?:type )?tensor<float>\(d0\[(\d+)\]\)", schema))
        self.sizes = {name: int(size) for name, size in sizes.items()}
        self.tokenizer = tokenizer

    def inputs(self, query: str, item: str) -> dict[str, np.ndarray]:
        """The arrays that the model gets, [1, length]."""
        tensors = {
            "query(query_tokens)": self._tokens(query, "query_tokens"),
            "attribute(item_tokens)": self._tokens(item, "item_tokens"),
        }
        return {name: self._input(self.functions[name], tensors) for name in ("input_ids", "token_type_ids", "attention_mask")}

    def relevance(self, logits: np.ndarray) -> float:
        """The score of the profile, from the model's logits [1, outputs]."""
        return float(self._evaluated("relevance", logits))

    def _tokens(self, text: str, name: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids[: self.sizes[name]]

    def _input(self, expression: str, tensors: dict[str, list[int]]) -> np.ndarray:
        function, given = re.fullmatch(r"(\w+)\((.*)\)", expression).groups()
        arguments = given.split(", ")
        start, separator = (101, 102) if function != "customTokenInputIds" else (int(arguments.pop(0)), int(arguments.pop(0)))
        length, (first, second) = int(arguments[0]), (tensors[name] for name in arguments[1:])
        parts = {
            "customTokenInputIds": [start, *first, separator, *second, separator],
            "tokenInputIds": [start, *first, separator, *second, separator],
            "tokenTypeIds": [0] * (len(first) + 2) + [1] * (len(second) + 1),
            "tokenAttentionMask": [1] * (len(first) + len(second) + 3),
        }
        found = np.zeros((1, length), dtype=np.int64)
        cut = parts[function][:length]
        found[0, : len(cut)] = cut
        return found

    def _evaluated(self, name: str, logits: np.ndarray) -> Any:
        text = self.functions[name]
        text = re.sub(r"onnx\(student\)\.logits\{d0:(\d+),d1:(\d+)\}", r"logits[\1,\2]", text)
        text = text.replace("onnx(student).logits", "logits").replace(", d1)", ")")
        text = re.sub(r"tensor<float>\(d1\[(\d+)\]\)\(d1\)", r"arange(\1)", text)
        inner = {one: self._evaluated(one, logits) for one in self.functions if one != name and re.search(rf"\b{one}\b", text)}
        known = {"logits": logits.astype(np.float64), "sum": np.sum, "softmax": _softmax, "sigmoid": _sigmoid, "arange": np.arange}
        return eval(text, {"__builtins__": {}}, known | inner)  # noqa: S307  (an expression of launch/)


def _filled(template: str, values: dict[str, str]) -> str:
    found = re.sub(r"\$\{(\w+)\}", lambda one: values.get(one[1], one[0]), template)
    if (left := re.search(r"\$\{\w+\}", found)) is not None:
        raise ValueError(f"Found placeholder [{left[0]}] after replacement call")
    return found


def _extracted(reply: Any, path: str) -> list[Any]:
    """The values at a path of the form $.list[*].name."""
    listed, name = re.fullmatch(r"\$\.(\w+)\[\*\]\.(\w+)", path).groups()
    return [one[name] for one in reply[listed]]


def _gson(value: Any) -> str:
    """JSON as Gson writes it, which escapes what could be HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&='\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(text: str) -> str:
    """A text as Apache Commons' escapeJson writes it."""
    return json.dumps(text)[1:-1].replace("/", "\\/")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _block(schema: str, opening: str) -> str:
    begins = re.search(rf"{re.escape(opening)}\b[^{{]*\{{", schema)
    depth, at = 1, begins.end()
    while depth:
        depth += {"{": 1, "}": -1}.get(schema[at], 0)
        at += 1
    return schema[begins.end() : at]


def _lineage(schema: str, profile: str) -> list[str]:
    parent = re.search(rf"rank-profile {profile} inherits (\w+)", schema)
    return [*(_lineage(schema, parent[1]) if parent else []), profile]


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(axis=-1, keepdims=True)


def _sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))
