"""PPO's value head on the judge's last hidden state, and how its values leave the model's forward pass.

ppo.py has what is done with them.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

HEAD = "value_head"


class ValueHead(torch.nn.Module):
    """One linear layer from a hidden state to the reward that is still to come, beyond the offset: the first step's mean reward.
    From zero the value would take a run to get there, and meanwhile short answers, whose end is near, would look like good ones.

    alone: its loss moves the head and leaves the judge as it is.
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
    """Puts a value head on a model that TRL has given its fused output layer. Each fused forward pass adds its values
    [rows, tokens - 1] to the returned list: at t what follows token t is worth.

    They are computed inside the model's forward, where a wrapper for data parallel training can see them.
    """
    head = ValueHead(base.config.get_text_config().hidden_size).to(next(base.parameters()).device)
    setattr(base, HEAD, head)
    values: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        hidden[:] = [output.last_hidden_state]

    def add(module: Any, arguments: Any, options: dict[str, Any], output: Any) -> Any:
        fused = options.get("fused_lm_head")
        if fused or torch.is_grad_enabled():
            # As part of the output: data parallel training looks in that of the last pass for the parameters that are used.
            output = _valued(type(output))(**output, state_values=head(hidden[0][:, :-1]))
        if fused:
            values.append(output.state_values)
        hidden.clear()
        return output

    base.base_model.register_forward_hook(keep)
    base.register_forward_hook(add, with_kwargs=True)
    return values


@cache
def _valued(kind: type) -> type:
    """The model's kind of output with one field more: data parallel training takes outputs apart and makes them anew."""
    field = {"state_values": None, "__annotations__": {"state_values": "torch.Tensor | None"}}
    return dataclass(type(f"Valued{kind.__name__}", (kind,), field))
