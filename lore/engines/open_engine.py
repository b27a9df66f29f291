"""Opens the engine that a recipe section describes."""

from lore.engines.config import EndpointSection, ModelSection, VllmSection
from lore.engines.engine import Engine
from lore.rubric.rubric import Rubric


def open_engine(
    model: ModelSection | EndpointSection,
    rubric: Rubric,
    *,
    vllm: VllmSection | None = None,
    batch_tokens: int = 16384,
    device: str | None = None,
) -> Engine:
    """The engine for a section: an HTTP endpoint for an EndpointSection; for a ModelSection, vLLM in this process if `vllm` is
    given, else transformers. batch_tokens (padded tokens per forward pass) and device apply to transformers only.
    """
    if isinstance(model, EndpointSection):
        from lore.engines.http.endpoint import EndpointEngine

        return EndpointEngine(model, rubric)
    if vllm is not None:
        from lore.engines.vllm import VllmEngine

        return VllmEngine.load(model, rubric, vllm)
    from lore.engines.transformers import TransformersEngine

    return TransformersEngine.load(model, rubric, batch_tokens=batch_tokens, device=device)
