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
    shared_prefix: bool = True,
    only_scores: bool = False,
) -> Engine:
    """The engine for a section: an HTTP endpoint for an EndpointSection; for a ModelSection, vLLM in this process if `vllm` is
    given, else transformers. batch_tokens (padded tokens per forward pass), device and shared_prefix (process what all prompts of a
    call begin with once, see TransformersEngine) apply to transformers only. only_scores: the caller never generates, so vLLM
    may be started without a sampler (vllm.scoring).
    """
    if isinstance(model, EndpointSection):
        from lore.engines.http.endpoint import EndpointEngine  # loads aiohttp: only for a server

        return EndpointEngine(model, rubric)
    if vllm is not None:
        from lore.engines.vllm import VllmEngine  # loads torch: only for a model in this process

        return VllmEngine.load(model, rubric, vllm, only_scores=only_scores)
    from lore.engines.transformers import TransformersEngine  # loads torch: only for a model in this process

    return TransformersEngine.load(model, rubric, batch_tokens=batch_tokens, device=device, shared_prefix=shared_prefix)
