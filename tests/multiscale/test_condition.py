"""Conditions of labels and of prompts, worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from multiscale.condition import Classes, Condition, Prompts
from multiscale.core.storage import Table
from multiscale.guidance import Guidance, guided, guided_by

PROMPT = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]])  # three prompts of two tokens
POOLED = torch.tensor([[10.0], [20.0], [30.0]])
NULL = torch.tensor([[[0.5], [0.25]]]), torch.tensor([[-1.0]])


@pytest.fixture(params=["in memory", "mapped"])
def prompts(request, tmp_path) -> Prompts:
    if request.param == "in memory":
        return Prompts(Table({"prompt": PROMPT.numpy(), "pooled": POOLED.numpy()}), NULL)
    save_file({"prompt": PROMPT.half(), "pooled": POOLED}, tmp_path / "prompts.safetensors")
    return Prompts(Table.open(tmp_path / "prompts.safetensors"), NULL)


def lists(condition: Condition) -> list[list]:
    """What is given, each tensor as a list of rows of numbers."""
    return [x.flatten(1).tolist() if x.ndim > 1 else x.tolist() for x in condition.given]


def draws(*uniform: float) -> SimpleNamespace:
    """Draws with these numbers in the stream of labels."""
    return SimpleNamespace(uniform={"label": torch.tensor(uniform)}.__getitem__)


def test_class_labels_are_given_as_they_are_and_their_count_is_no_class():
    condition = Classes(5)(torch.tensor([3, 0, 4]))
    assert len(condition) == 3 and lists(condition) == [[3, 0, 4]]
    assert lists(condition.dropped(0.3, draws(0.2, 0.3, 0.1))) == [[5, 0, 5]]
    assert lists(condition.with_null()) == [[3, 0, 4, 5, 5, 5]]
    assert condition.with_null().given[0].dtype == torch.int64


def test_without_classes_nothing_is_given_nor_dropped():
    condition = Classes(0)(torch.tensor([3, 0, 4]))
    assert len(condition) == 0 and condition.given == () and condition.null is None
    assert condition.dropped(1.0, draws(0.2, 0.3, 0.1)) == condition == condition.to(torch.device("cpu"))
    with pytest.raises(ValueError, match="a condition without a null; allowed: with 'no class' or the empty prompt"):
        condition.with_null()


def test_prompts_are_the_rows_of_their_table(prompts):
    condition = prompts(torch.tensor([2, 0, 0]))
    assert len(condition) == 3 and lists(condition) == [[[5, 6], [1, 2], [1, 2]], [[30], [10], [10]]]
    assert [x.dtype for x in condition.given] == [torch.float32] * 2 and condition.given[0].shape == (3, 2, 1)


def test_a_prompt_is_dropped_with_its_pooled_one(prompts):
    dropped = prompts(torch.tensor([2, 0, 1])).dropped(0.1, draws(0.1, 0.05, 0.6))
    assert lists(dropped) == [[[5, 6], [0.5, 0.25], [3, 4]], [[30], [-1], [20]]]


def test_the_nulls_follow_the_conditions_in_a_batch_for_guidance(prompts):
    both = prompts(torch.tensor([2, 0])).with_null()
    assert len(both) == 4
    assert lists(both) == [[[5, 6], [1, 2], [0.5, 0.25], [0.5, 0.25]], [[30], [10], [-1], [-1]]]


def test_all_tensors_of_a_condition_move_to_a_device(prompts):
    moved = prompts(torch.tensor([1])).to(torch.device("meta"))
    assert all(x.device.type == "meta" for x in (*moved.given, *moved.null))


def of_prompts(x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """x t + the first token - the second + 2 pooled."""
    return x * t.view(-1, 1, 1, 1) + (prompt[:, 0] - prompt[:, 1] + 2 * pooled).view(-1, 1, 1, 1)


@pytest.mark.parametrize("scale, first, second", [(1.0, 60.0, 20.5), (0.0, -0.75, -0.25), (2.0, 120.75, 41.25)])
def test_guidance_by_a_prompt_starts_from_the_empty_prompt(scale, first, second, prompts):
    # Conditional: 1 + 5 - 6 + 60 and 1.5 + 1 - 2 + 20. Unconditional: 1 + 0.5 - 0.25 - 2 and 1.5 + 0.5 - 0.25 - 2.
    x, t = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1), torch.tensor([0.5, 0.5])
    assert guided(of_prompts, prompts(torch.tensor([2, 0])), scale)(x, t).flatten().tolist() == [first, second]


def test_a_network_without_a_null_is_not_guided(prompts):
    x, t, index = torch.ones(2, 1, 1, 1), torch.ones(2), torch.tensor([2, 0])
    assert guided(lambda x, t: 3 * x, Classes(0)(index), 1.0)(x, t).flatten().tolist() == [3, 3]
    for condition in (Classes(0)(index), Prompts(prompts.table, None)(index)):
        with pytest.raises(
            ValueError, match="scale of 1.5 for a network without classes or an empty prompt; allowed: 1"
        ):
            guided(of_prompts, condition, 1.5)


def test_guidance_is_limited_to_an_interval_of_times(prompts):
    """Inside it the values of the test above for scale 2, outside those of scale 1, from half as many rows."""
    rows = []

    def network(x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        rows.append(len(x))
        return of_prompts(x, t / 1000, *given)

    solver = Guidance(guidance_scale=2.0, guidance_interval=[0.25, 0.5])
    predict = guided_by(solver, network, prompts(torch.tensor([2, 0])), noise=1000)
    x = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    found = {t: predict(x, torch.tensor([t, t])).flatten().tolist() for t in (501, 500, 250, 249)}
    assert rows == [2, 4, 4, 2]
    assert found[500] == [120.75, 41.25] and found[250] == [120.25, 40.5]
    assert found[501] == pytest.approx([60.002, 20.503]) and found[249] == pytest.approx([59.498, 19.747])


def test_a_solver_predicts_in_single_precision(prompts):
    network = lambda x, t, *given: of_prompts(x, t, *given).bfloat16()  # noqa: E731
    x, t = torch.ones(2, 1, 1, 1), torch.ones(2)
    assert guided_by(Guidance(), network, prompts(torch.tensor([2, 0])))(x, t).dtype == torch.float32


@pytest.mark.parametrize("interval", [[0.5, 0.5], [0.8, 0.2], [0.0, 1.5], [0.2]])
def test_an_interval_is_two_times_that_grow(interval):
    with pytest.raises(ValidationError, match="guidance_interval"):
        Guidance(guidance_interval=interval)
