"""PPO's value side and TRL's token-level surrogate, against numbers worked by hand."""

import pytest
import torch

from lore.train.rl.ppo import gae, value_loss

ONES = torch.ones(1, 3)
REWARDS = torch.tensor([[0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.5, 0.25, 0.75]])


def test_advantages_of_one_answer_worked_by_hand():
    # gamma 0.9, lambda 0.5. Surprises: t2: 1 - 0.75 = 0.25; t1: 0.9 * 0.75 - 0.25 = 0.425; t0: 0.9 * 0.25 - 0.5 = -0.275.
    # Advantages: A2 = 0.25; A1 = 0.425 + 0.45 * 0.25 = 0.5375; A0 = -0.275 + 0.45 * 0.5375 = -0.033125.
    advantages, returns = gae(REWARDS, VALUES, ONES, 0.9, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[-0.033125, 0.5375, 0.25]]))
    torch.testing.assert_close(returns, torch.tensor([[0.466875, 0.7875, 1.0]]))


def test_lambda_0_looks_one_token_ahead():
    # The surprises themselves, gamma 1: 0.25 - 0.5, 0.75 - 0.25, 1 - 0.75; the returns are the next values and the reward.
    advantages, returns = gae(REWARDS, VALUES, ONES, 1.0, 0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-0.25, 0.5, 0.25]]))
    torch.testing.assert_close(returns, torch.tensor([[0.25, 0.75, 1.0]]))


def test_lambda_1_takes_the_whole_return():
    # Surprises telescope to the discounted return less the value: 0.9^2 - 0.5, 0.9 - 0.25, 1 - 0.75.
    advantages, returns = gae(REWARDS, VALUES, ONES, 0.9, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[0.31, 0.65, 0.25]]))
    torch.testing.assert_close(returns, torch.tensor([[0.81, 0.9, 1.0]]))
    undiscounted, returns = gae(REWARDS, VALUES, ONES, 1.0, 1.0)
    torch.testing.assert_close(returns, ONES)
    torch.testing.assert_close(undiscounted, 1 - VALUES)


def test_rewards_on_the_way_count_from_where_they_come():
    # gamma 0.5, lambda 1, values 0: returns 4, 2 + 0.5 * 4 = 4, 1 + 0.5 * 4 = 3.
    advantages, returns = gae(torch.tensor([[1.0, 2.0, 4.0]]), torch.zeros(1, 3), ONES, 0.5, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[3.0, 4.0, 4.0]]))
    torch.testing.assert_close(returns, advantages)


def test_masked_tokens_are_worth_nothing_to_those_before_them():
    # Row 0 ends after its first token, row 1 begins with a given one, row 2 takes no part. What stands in the masked places
    # must not be seen. gamma 0.9, lambda 0.5. Row 0: 1 - 0.5. Row 1: t2 1 - 0.75, t1 0.9 * 0.75 - 0.25 + 0.45 * 0.25.
    mask = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    values = torch.tensor([[0.5, 7.0, -9.0], [7.0, 0.25, 0.75], [7.0, 7.0, 7.0]])
    advantages, returns = gae(rewards, values, mask, 0.9, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5375, 0.25], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.7875, 1.0], [0.0, 0.0, 0.0]]))


def test_a_row_is_estimated_as_it_is_alone():
    torch.manual_seed(0)
    rewards, values, mask = torch.randn(4, 6), torch.randn(4, 6), torch.ones(4, 6)
    mask[1, 4:], mask[2, :2], mask[3, 1:] = 0, 0, 0
    together = gae(rewards, values, mask, 0.97, 0.8)
    alone = [gae(*(part[row : row + 1] for part in (rewards, values, mask)), 0.97, 0.8) for row in range(4)]
    for number in range(2):
        torch.testing.assert_close(together[number], torch.cat([one[number] for one in alone]))


@pytest.mark.parametrize(
    "value, returned, expected",
    [
        (0.1, 1.0, 0.5 * 0.81),  # moved by 0.1: inside the clip, (0.1 - 1)^2
        (0.6, 1.0, 0.5 * 0.64),  # moved up by 0.6: clipped at 0.2, where (0.2 - 1)^2 is above (0.6 - 1)^2
        (-0.6, -1.0, 0.5 * 0.64),  # the same downwards
        (0.6, -1.0, 0.5 * 2.56),  # moved away from the return: (0.6 + 1)^2 stands, unclipped
        (-0.6, 1.0, 0.5 * 2.56),
    ],
)
def test_the_value_loss_of_one_token_worked_by_hand(value, returned, expected):
    one = [torch.tensor([[number]]) for number in (value, 0.0, returned, 1.0)]
    torch.testing.assert_close(value_loss(*one, 0.2), torch.tensor(expected))


def test_a_value_pulls_no_further_once_it_has_moved_past_the_clip_towards_the_return_on_either_side():
    values = torch.tensor([[0.1, 0.6, -0.6, 0.6, -0.6]], requires_grad=True)
    returns = torch.tensor([[1.0, 1.0, -1.0, -1.0, 1.0]])
    value_loss(values, torch.zeros(1, 5), returns, torch.ones(1, 5), 0.2).backward()
    # (value - return) / 5 where unclipped, 0 where the clipped error is the larger one.
    torch.testing.assert_close(values.grad, torch.tensor([[-0.18, 0.0, 0.0, 0.32, -0.32]]))


def test_the_value_loss_is_the_mean_over_the_mask():
    values, returns = torch.tensor([[0.1, 9.0], [0.0, 9.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    mask = torch.tensor([[1, 0], [1, 0]])
    # Half of (0.81 + 0.25) / 2.
    torch.testing.assert_close(value_loss(values, torch.zeros(2, 2), returns, mask, 0.2), torch.tensor(0.265))
    assert value_loss(values, torch.zeros(2, 2), returns, torch.zeros(2, 2), 0.2) == 0
