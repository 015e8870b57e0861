"""What brings the student to its budget while it learns: three controls of the gates.

A control sees the gates before the first update (`prepare`), adds what it adds to the loss (`penalty`), and moves the
gates after each backward pass (`move`), unless the optimizer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..encoder import Encoder
from .budget import Budget
from .gates import MEAN_DECAY, SQUARE_DECAY, Gate, find_gates, keep_probability
from .importance import Importance, choose, value_for_cost
from .shrinking import closed_for_good, shrink
from .size import Number, Widths

ControlName = Literal["exact", "lagrangian", "one-shot"]

RATE = 0.02
"""How far an update may move log α, as published (arXiv 2305.17651)."""

SHARPNESS = 128.0
"""log α for each e-fold of importance for cost: the larger, the fewer gates are undecided at a time."""

FARTHEST = 5.0
"""Importance for cost counts within so many e-folds of its median."""

FARTHEST_SHIFT = 1e6
"""Bounds of a common shift of all log α: no gate is left on the other side."""

HIGHEST_PRICE = 1e9
"""Bounds of the price of size, and of its inverse."""

TINY = 1e-24

CERTAIN = 12.0
"""log α of a gate that is open whatever is drawn; with a minus closed."""


class Control(nn.Module):
    """Brings the size to the budget; what is learned or counted is in its state dict.

    Args:
        budget: what the student may cost.
        ramp_steps: updates over which the target sparsity rises, for the control that has such a ramp.
        steps: updates of the stage.
        rate: how far an update may move log α.

    Attributes:
        gates_learn: the optimizer moves the gates, and the control's own parameters against them.
        needs_importance: `prepare` has to be given it.
    """

    gates_learn = False
    needs_importance = False

    def __init__(self, budget: Budget, ramp_steps: int, steps: int = 0, rate: float = RATE) -> None:
        super().__init__()
        self.budget, self.ramp_steps, self.steps, self.full_rate = budget, ramp_steps, steps, rate

    def prepare(self, encoder: Encoder, importance: Importance | None = None) -> None:
        """Set the gates up, before the first update.

        Args:
            encoder: gated.
            importance: of every unit, for the controls that need it.
        """

    def penalty(self, encoder: Encoder, step: int) -> tuple[Tensor | None, dict[str, Tensor]]:
        """What is added to the loss (0-d) at a step, and what to log."""
        raise NotImplementedError

    def move(self, encoder: Encoder, step: int) -> None:
        """Move the gates by their gradient, after the backward pass of a step."""


class Lagrangian(Control):
    """λ1·(s - t) + λ2·(s - t)² with learned multipliers (arXiv 2305.17651, eq. 5–6; Wang, Wohlwend & Lei 2020).

    The student descends and the multipliers ascend. t rises linearly from 0 to its final value over the ramp. This is
    the published control: it meets the target at the published length, not in a short run.
    """

    gates_learn = True

    def __init__(self, budget: Budget, ramp_steps: int, steps: int = 0, rate: float = RATE) -> None:
        super().__init__(budget, ramp_steps, steps, rate)
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))

    def penalty(self, encoder: Encoder, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty (0-d) at a training step, and what to log.

        With two budgets the one that is furthest from its target counts.
        """
        share = min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0
        pairs = self.budget.sparsities(encoder, Widths.expected(encoder))
        gaps = torch.stack([sparsity - share * target for sparsity, target in pairs])
        worst = int(gaps.argmin())
        gap = gaps[worst]
        penalty = self.lambda1 * gap + self.lambda2 * gap.square()
        return penalty.float(), {
            "sparsity_expected": pairs[worst][0].detach().float(),
            "sparsity_target": torch.tensor(share * pairs[worst][1]),
            "lambda1": self.lambda1.detach().clone(),
            "lambda2": self.lambda2.detach().clone(),
        }

    forward = penalty


class Exact(Control):
    """Gates that start from the importance of their units, at the target size, and exchange units at that size.

    They start at log α_i = κ log(importance_i / cost_i) + constant (κ is `SHARPNESS`): open for units of much
    importance for their cost, closed for those of little, undecided for the few at the border. Heads and channels are
    decided as `OneShot` decides: one drawn at random is as much noise as many units. Units that cannot open within the
    stage any more are removed at once. An update is two moves:

    1. Exchange. With m_i the running mean of the gradient of log α_i and s_i² its running variance (Adam's moments,
       arXiv 1412.6980), and c_i what the expected size changes by with log α_i,

           log α_i += -rate · (m_i + λ c_i) / sqrt(s_i² + (m_i + λ c_i)²).

       λ is the price of size at which the expected size stays what it is: units that the loss asks for more loudly
       than their price open, others close.
    2. Shift. The constant is taken from all log α that makes the expected size the target, to the digit.

    Both are solved for by bisection, since the size falls as either number grows; nothing is left to a multiplier that
    has to find its value in time. How far gates can move grows with the length of the stage: in a short one the
    importance decides, in a long one what is learned does. Of several limited quantities, the tightest one counts.
    """

    needs_importance = True
    price: Tensor
    moves: Tensor

    def __init__(self, budget: Budget, ramp_steps: int, steps: int, rate: float = RATE) -> None:
        super().__init__(budget, ramp_steps, steps, rate)
        # A warm start for the search, and how many moves there were.
        self.register_buffer("price", torch.ones((), dtype=torch.float64))
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def prepare(self, encoder: Encoder, importance: Importance | None = None) -> None:
        """Set log α by importance for cost, if it is given, and remove what would stay closed."""
        if importance is not None:
            gates, values = find_gates(encoder), value_for_cost(encoder, self.budget, importance)
            sizes = _ExpectedSizes(encoder, gates, self.budget)
            logs_N = torch.cat([values[gate.name].clamp(min=TINY).log() for gate in gates])
            alpha_N = self._at_target(sizes, SHARPNESS * (logs_N - logs_N.median()).clamp(-FARTHEST, FARTHEST))
            chosen, units_N = choose(encoder, self.budget, importance), torch.zeros_like(alpha_N)
            for gate, alpha_U, is_unit_U in zip(gates, _split(gates, alpha_N), _split(gates, units_N), strict=True):
                if gate.kind == "units":
                    is_unit_U.fill_(1.0)
                else:
                    kept_U = torch.zeros(len(alpha_U), dtype=torch.bool).index_fill(0, chosen[gate.name], True)
                    alpha_U.copy_(torch.where(kept_U, alpha_U.clamp(min=CERTAIN), alpha_U.clamp(max=-CERTAIN)))
            # Small units first: a channel at the border is more than surgery can even out.
            _put(gates, self._at_target(sizes, self._at_target(sizes, alpha_N, units_N)))
            # A closed gate and the border move by half of this towards each other, at most.
            reach = self.full_rate * self.steps
            never = float(keep_probability(torch.tensor(-CERTAIN - reach, dtype=torch.float64)))
            # What surgery may need to use the budget up stays.
            shrink(encoder, closed_for_good(encoder, never, self.budget))
        for gate in find_gates(encoder):
            gate.module.remember_gradients()

    def rate(self, step: int) -> float:
        """How far an exchange may move log α at a step: it falls linearly to zero."""
        return self.full_rate * max(0.0, 1 - step / max(1, self.steps))

    def penalty(self, encoder: Encoder, step: int) -> tuple[None, dict[str, Tensor]]:
        """No penalty; what to log."""
        pairs = self.budget.sparsities(encoder, Widths.expected(encoder))
        found, target = min(pairs, key=lambda pair: float(pair[0].detach()) - pair[1])
        return None, {
            "sparsity_expected": found.detach().float(),
            "sparsity_target": torch.tensor(target),
            "price": self.price.float(),
        }

    @torch.no_grad()
    def move(self, encoder: Encoder, step: int) -> None:
        """Exchange units by the gradient at hand, then shift all gates to the target size."""
        gates = find_gates(encoder)
        self.moves += 1
        moments = [gate.module.update_moments() for gate in gates]
        mean_N, square_N = (torch.cat(list(parts)).double().cpu() for parts in zip(*moments, strict=True))
        mean_N /= 1 - MEAN_DECAY ** int(self.moves)
        square_N /= 1 - SQUARE_DECAY ** int(self.moves)
        variance_N = (square_N - mean_N.square()).clamp(min=TINY)
        sizes = _ExpectedSizes(encoder, gates, self.budget)
        alpha_N = torch.cat([gate.module.log_alpha for gate in gates]).double().cpu()
        tightest, before, cost_N = sizes.tightest(alpha_N)
        rate = self.rate(step)

        def exchanged(price: float) -> Tensor:
            push_N = mean_N + price * cost_N
            return alpha_N - rate * push_N / (variance_N + push_N.square()).sqrt()

        price = _positive_root(lambda x: before - sizes.sparsities(exchanged(x))[tightest], float(self.price))
        self.price.fill_(price)
        _put(gates, self._at_target(sizes, exchanged(price)))

    def _at_target(self, sizes: _ExpectedSizes, alpha_N: Tensor, which_N: Tensor | float = 1.0) -> Tensor:
        """All log α, or those of which there is a 1, shifted to the target size."""
        return alpha_N - which_N * _root(lambda shift: -min(sizes.gaps(alpha_N - which_N * shift)))


class OneShot(Control):
    """The units of the best value for their cost stay, the others are removed before the first update.

    What a user would do without learned gates: a baseline for the other controls.
    """

    needs_importance = True

    def prepare(self, encoder: Encoder, importance: Importance | None = None) -> None:
        """Remove what does not fit the budget."""
        assert importance is not None
        shrink(encoder, choose(encoder, self.budget, importance))
        for gate in find_gates(encoder):
            nn.init.constant_(gate.module.log_alpha, CERTAIN)

    def penalty(self, encoder: Encoder, step: int) -> tuple[None, dict[str, Tensor]]:
        """No penalty; the size is what it is."""
        sparsity, target = self.budget.sparsities(encoder, Widths.expected(encoder))[0]
        return None, {"sparsity_expected": sparsity.detach().float(), "sparsity_target": torch.tensor(target)}


CONTROLS: dict[ControlName, type[Control]] = {"exact": Exact, "lagrangian": Lagrangian, "one-shot": OneShot}


class _ExpectedSizes:
    """Expected sparsities of an encoder as a function of all its log α in one vector (N,), float64 on the CPU."""

    def __init__(self, encoder: Encoder, gates: list[Gate], budget: Budget) -> None:
        self.encoder, self.gates, self.budget, self.limits = encoder, gates, budget, budget.limits
        lengths = torch.tensor([len(gate.module.log_alpha) for gate in gates])
        self.vector_N = torch.arange(len(gates)).repeat_interleave(lengths)

    def _widths(self, alpha_N: Tensor) -> tuple[Tensor, Tensor]:
        """Expected numbers of open gates (V,), and the probabilities that none is (V,)."""
        keep_N = keep_probability(alpha_N)
        zeros_V = torch.zeros(len(self.gates), dtype=torch.float64)
        sums_V = zeros_V.index_add(0, self.vector_N, keep_N)
        none_V = zeros_V.index_add(0, self.vector_N, torch.log1p(-keep_N.clamp(max=1 - 1e-12))).exp()
        return sums_V, none_V

    def _sparsities(self, sums: Sequence[Number], none: Sequence[Number]) -> list[Tensor]:
        widths = Widths.of(self.encoder.config)
        for number, gate in enumerate(self.gates):
            getattr(widths, gate.kind)[gate.layer] = sums[number]
            if gate.kind == "heads":
                widths.attends[gate.layer] = 1 - none[number]
        return [sparsity for sparsity, _ in self.budget.sparsities(self.encoder, widths)]

    def sparsities(self, alpha_N: Tensor) -> list[float]:
        """One for each limited quantity."""
        sums_V, none_V = self._widths(alpha_N)
        return [float(value) for value in self._sparsities(sums_V.tolist(), none_V.tolist())]

    def gaps(self, alpha_N: Tensor) -> list[float]:
        """Sparsities beyond their targets."""
        return [found - (1 - limit.share) for found, limit in zip(self.sparsities(alpha_N), self.limits, strict=True)]

    def tightest(self, alpha_N: Tensor) -> tuple[int, float, Tensor]:
        """The quantity furthest from its target: its number, its sparsity, and what its size gains with log α (N,)."""
        gaps = self.gaps(alpha_N)
        number = gaps.index(min(gaps))
        with torch.enable_grad():
            alpha_N = alpha_N.clone().requires_grad_()
            found = self._sparsities(*(vector_V.unbind() for vector_V in self._widths(alpha_N)))
            (gain_N,) = torch.autograd.grad(-found[number], alpha_N)
        return number, float(found[number].detach()), gain_N


def _split(gates: list[Gate], alpha_N: Tensor) -> tuple[Tensor, ...]:
    """What belongs to each vector (U,); views."""
    return alpha_N.split([len(gate.module.log_alpha) for gate in gates])


def _put(gates: list[Gate], alpha_N: Tensor) -> None:
    for gate, log_alpha in zip(gates, _split(gates, alpha_N), strict=True):
        gate.module.log_alpha.copy_(log_alpha)
        gate.module.log_alpha.grad = None


def _root(excess: Callable[[float], float]) -> float:
    """The shift without an excess, which falls with the shift; the farthest one tried if there is none."""
    low, high = -1.0, 1.0
    while excess(low) <= 0:
        low, high = 4 * low, low
        if low < -FARTHEST_SHIFT:
            return low
    while excess(high) > 0:
        low, high = high, 4 * high
        if high > FARTHEST_SHIFT:
            return high
    return _root_between(excess, low, high)


def _positive_root(excess: Callable[[float], float], guess: float) -> float:
    """The price without an excess, which falls with the price; the lowest or highest one tried if there is none."""
    low = high = guess
    while excess(high) > 0:
        low, high = high, 4 * high
        if high > HIGHEST_PRICE:
            return HIGHEST_PRICE
    while excess(low) <= 0:
        high, low = low, low / 4
        if low < 1 / HIGHEST_PRICE:
            return 1 / HIGHEST_PRICE
    if low == high:
        return low
    return math.exp(_root_between(lambda x: excess(math.exp(x)), math.log(low), math.log(high)))


def _root_between(excess: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq  # slow to import, and loading a model needs none of it

    return float(brentq(excess, low, high, xtol=1e-9))
