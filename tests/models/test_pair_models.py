"""NeuMF, MMoE, Cross-Stitch, STAR and FOREC against their papers' formulas, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from shops import SMALL, batch
from torch import Tensor

from m3rec_spark.models.catalogue import build
from m3rec_spark.models.cross_stitch import CrossStitch
from m3rec_spark.models.forec import Forec
from m3rec_spark.models.mmoe import MMoE
from m3rec_spark.models.neumf import NeuMF
from m3rec_spark.models.pair_loss import cross_entropy
from m3rec_spark.models.star import Star
from m3rec_spark.models.tower import ListDropout

D, WIDTHS = 3, [5, 4]
SETTINGS = {"dimension": D, "widths": WIDTHS, "dropout": 0.5}
EXTRA = {"mmoe": {"experts": 2}, "forec": {"inner_rate": 0.1}}
NAMES = ("neumf", "mmoe", "cross_stitch", "star", "forec")
Pair = Callable[[torch.nn.Module, int, int, int], Tensor]


def made(name: str) -> torch.nn.Module:
    """With parameters far from their start, so that none of them can be left out unseen."""
    model = build(name, SMALL, SETTINGS | EXTRA.get(name, {}), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def of(model: torch.nn.Module, market: int, rows: Tensor, slots: Tensor) -> Tensor:
    return model(market, *model.factors(rows, slots))


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def joined(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """W [p; q] + b."""
    return torch.cat([layer.user.weight, layer.item.weight], dim=1) @ x + layer.user.bias


def inputs(model: torch.nn.Module, row: int, slot: int) -> tuple[Tensor, Tensor]:
    """(p_G * q_G, [p_M; q_M])."""
    item = int(SMALL.slot_items[slot])
    product = model.gmf.user.weight[row] * model.gmf.item.weight[item]
    return product, torch.cat([model.mlp.user.weight[row], model.mlp.item.weight[item]])


def perceptron(tower: torch.nn.Module, x: Tensor) -> Tensor:
    hidden = relu(joined(tower.first, x))
    for layer in tower.rest:
        hidden = relu(layer.weight @ hidden + layer.bias)
    return hidden


def neumf(model: NeuMF, market: int, row: int, slot: int) -> Tensor:
    product, x = inputs(model, row, slot)
    whole = torch.cat([product, perceptron(model.tower, x)])
    return torch.cat([model.product_weights, model.output.weight[0]]) @ whole + model.output.bias[0]


def mmoe(model: MMoE, market: int, row: int, slot: int) -> Tensor:
    product, x = inputs(model, row, slot)
    gates = torch.softmax(joined(model.gates[market], x), dim=0)
    mixed = sum(gate * perceptron(expert, x) for gate, expert in zip(gates, model.experts, strict=True))
    output = model.outputs[market]
    return model.product_weights[market] @ product + output.weight[0] @ mixed + output.bias[0]


def cross_stitch(model: CrossStitch, market: int, row: int, slot: int) -> Tensor:
    product, x = inputs(model, row, slot)
    hidden = [relu(joined(layer, x)) for layer in model.first]
    for number, layers in enumerate(model.rest):
        stitched = [sum(model.stitches[number][m][k] * hidden[k] for k in range(2)) for m in range(2)]
        hidden = [relu(layers[m].weight @ stitched[m] + layers[m].bias) for m in range(2)]
    last = sum(model.stitches[-1][market][k] * hidden[k] for k in range(2))
    output = model.outputs[market]
    return model.product_weights[market] @ product + output.weight[0] @ last + output.bias[0]


def star(model: Star, market: int, row: int, slot: int) -> Tensor:
    product, x = inputs(model, row, slot)
    parts = []
    for norm, part in zip(model.norms, x.chunk(2), strict=True):
        z = (part - norm.means[market]) / torch.sqrt(norm.variances[market] + 1e-5)
        parts.append(norm.scale * norm.scales[market] * z + norm.shift + norm.shifts[market])
    x = hidden = torch.cat(parts)
    for number, layer in enumerate([model.first, *model.rest]):
        inner = hidden if number == 0 else relu(hidden)
        hidden = (layer.shared.weight * layer.weights[market]) @ inner + layer.shared.bias + layer.biases[market]
    auxiliary = relu(joined(model.auxiliary, x) + model.auxiliary_market.weight @ model.market.weight[market])
    aside = model.auxiliary_output.weight[0] @ auxiliary + model.auxiliary_output.bias[0]
    return model.product_weights[market] @ product + hidden[0] + aside


def forec(model: Forec, market: int, row: int, slot: int) -> Tensor:
    if not model.forked:
        return neumf(model, market, row, slot)
    product, x = inputs(model, row, slot)
    shared = perceptron(model.tower, x)
    hidden = relu(model.heads[market].weight @ shared + model.heads[market].bias + shared)
    output = model.outputs[market]
    return model.market_products[market] @ product + output.weight[0] @ hidden + output.bias[0]


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_formula(name: str) -> None:
    model, slow = made(name), globals()[name]
    if name == "star":
        for norm in model.norms:  # statistics that training would have left
            norm.means.copy_(torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -2.0]]))
            norm.variances.copy_(torch.tensor([[4.0, 1.0, 0.25], [2.0, 3.0, 1.0]]))
    if name == "forec":
        model.forked.fill_(True)
    for market, rows, slots in ((0, [0, 1], [0, 1, 2]), (1, [4, 2], [5, 3, 4])):
        wanted = torch.stack([torch.stack([slow(model, market, row, slot) for slot in slots]) for row in rows])
        together = of(model, market, torch.tensor(rows), torch.tensor([slots]))  # users against the same items
        own = of(model, market, torch.tensor(rows), torch.tensor([slots, slots]))  # each with a list of his own
        assert torch.allclose(together, wanted, rtol=1e-4, atol=1e-4)
        assert torch.allclose(own, wanted, rtol=1e-4, atol=1e-4)
        assert torch.allclose(
            model.scorer()(market, torch.tensor(rows), torch.tensor(slots)), wanted, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_cross_entropy_of_all_pairs(name: str) -> None:
    model = made(name)
    if name == "forec":
        model.fork()
    pairs = batch([1, 3, 2], [2, 3, 3], [1, 2], [[[0, 1]], [[4, 5], [5, 4]]])
    expected = 0.0
    for market, row, positive, negatives in ((0, 1, 2, [0, 1]), (1, 3, 3, [4, 5]), (1, 2, 3, [5, 4])):
        scores = [globals()[name](model, market, row, slot).item() for slot in (positive, *negatives)]
        expected += math.log1p(math.exp(-scores[0])) + sum(math.log1p(math.exp(score)) for score in scores[1:])
    assert model.loss(pairs).item() == pytest.approx(expected / 3, rel=1e-4)


def test_dropout_takes_the_same_units_from_all_items_of_a_user() -> None:
    torch.manual_seed(0)
    dropout = ListDropout(0.25).train()
    kept = dropout(torch.full((400, 3, 50), 2.0))
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(2.0).div(0.75).item()}
    assert kept[:, 0].mean().item() == pytest.approx(2.0, abs=0.04)  # 20,000 draws: its deviation is 0.008
    assert not torch.equal(kept[0], kept[1])
    hidden = torch.randn(2, 3, 4)
    assert torch.equal(dropout.eval()(hidden), hidden)


def test_a_star_begins_as_the_shared_network_in_every_market() -> None:
    model = build("star", SMALL, SETTINGS, seed=1).eval()
    assert torch.equal(model.first.matrix(0), model.first.shared.weight)
    assert torch.equal(model.rest[0].bias(1), model.rest[0].shared.bias)


def test_statistics_of_a_market_are_its_own() -> None:
    model = build("star", SMALL, SETTINGS, seed=1).train()
    of(model, 0, torch.tensor([0, 1]), torch.tensor([[0, 1]]))
    assert not torch.equal(model.norms[1].means[0], torch.zeros(D))
    assert torch.equal(model.norms[1].means[1], torch.zeros(D))


def test_one_pair_of_a_market_has_no_statistics() -> None:
    model = build("star", SMALL, SETTINGS, seed=1).train()
    assert torch.isfinite(of(model, 0, torch.tensor([0]), torch.tensor([[0]]))).all()


def test_a_fork_begins_where_pre_training_ended() -> None:
    model = made("forec")
    before = of(model, 1, torch.tensor([2]), torch.tensor([[3, 4, 5]]))
    model.fork()
    assert torch.allclose(of(model, 1, torch.tensor([2]), torch.tensor([[3, 4, 5]])), before, atol=1e-5)
    trained = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"heads", "outputs", "market_products"}


def test_pre_training_takes_the_gradient_after_an_inner_step() -> None:
    """Of two pairs the second is the support, the first the query; the outer gradient is at the stepped weights."""
    model = made("forec")
    pairs = batch([0, 1], [0, 2], [2], [[[1], [0]]])
    model.loss(pairs).backward()
    found = model.output.weight.grad.clone()

    model.zero_grad()
    named = {
        name: p for name, p in model.named_parameters() if name.startswith(("tower.", "output.", "product_weights"))
    }
    cross_entropy(of(model, 0, torch.tensor([1]), torch.tensor([[2, 0]]))).backward()
    with torch.no_grad():
        for parameter in named.values():
            parameter -= model.inner_rate * parameter.grad
    model.zero_grad()
    cross_entropy(of(model, 0, torch.tensor([0]), torch.tensor([[0, 1]]))).backward()
    assert torch.allclose(found, model.output.weight.grad * 2 / 2, rtol=1e-4, atol=1e-6)
