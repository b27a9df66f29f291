"""PPO's value head on the judge's last hidden state, and its values in the forward pass. ppo.py uses them."""

from dataclasses import dataclass
from functools import cache, wraps
from types import MethodType
from typing import Any

import torch

from lore.train.common.trl_internals import STATE_VALUES, before_labels, is_fused_pass

HEAD = "value_head"


class ValueHead(torch.nn.Module):
    """A linear layer that predicts the return from a hidden state, plus an offset: the mean reward of the first step. Without the
    offset the value would need a whole run to reach that mean, and short answers would get too large advantages meanwhile.

    alone: the value loss trains only the head, not the judge.
    """

    alone = False

    def __init__(self, hidden: int):
        super().__init__()
        self.linear = torch.nn.Linear(hidden, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.detach() if self.alone else hidden
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1).float() + self.offset.float()


def attach_value_head(base: Any) -> list[torch.Tensor]:
    """Adds a value head to a model with TRL's fused output layer. Each fused forward pass appends its values [rows, tokens - 1] to
    the returned list; position t holds the value after token t. Under a `SharedPrefix` it is 0 where token t + 1 is no label.

    The head runs inside the model's forward, so that wrappers for data parallel training see its parameters.
    """
    head = ValueHead(base.config.get_text_config().hidden_size).to(next(base.parameters()).device)
    setattr(base, HEAD, head)
    plain = base.forward
    values: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        hidden[:] = [output.last_hidden_state]

    @wraps(type(base).forward)  # `generate` reads the signature
    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        output = plain(*arguments, **options)
        if is_fused_pass(options) or torch.is_grad_enabled():
            # Part of the output: data parallel training finds the parameters in use from the output of the last pass.
            output = _valued(type(output))(**output, **{STATE_VALUES: head(before_labels(hidden[0], options))})
        hidden.clear()
        return output

    def collect(module: Any, arguments: Any, options: dict[str, Any], output: Any) -> None:
        if is_fused_pass(options):
            values.append(output.state_values)

    base.base_model.register_forward_hook(keep)
    base.forward = MethodType(forward, base)
    base.register_forward_hook(collect, with_kwargs=True)
    return values


@cache
def _valued(kind: type) -> type:
    """The model's output class with the field state_values. A dataclass, because data parallel training rebuilds outputs from
    fields."""
    field = {STATE_VALUES: None, "__annotations__": {STATE_VALUES: "torch.Tensor | None"}}
    return dataclass(type(f"Valued{kind.__name__}", (kind,), field))
