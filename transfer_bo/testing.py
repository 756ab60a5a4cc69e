"""Tests that a user's own model or rule should pass, to be subclassed.

In a test file, for pytest:

    from transfer_bo.testing import ParametrizationSuite

    class TestMyModel(ParametrizationSuite):
        base = Scale(width=64, depth=4)
        target = Scale(width=128, depth=8)

        def build_model(self, scale):
            return MyModel(scale.width, scale.depth)

Everything else has a default: the rule, HPs, inputs (guessed), which growth is accepted.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from transfer_bo.parametrization import Parametrization, Rule, parametrize
from transfer_bo.parametrization.builds import build_real, parameters_of
from transfer_bo.parametrization.coordcheck import TOLERANCE, coordinate_check, random_classes
from transfer_bo.parametrization.example_inputs import call_with_example_inputs
from transfer_bo.parametrization.optimizers import OPTIMIZERS, optimizer_of
from transfer_bo.scale import Scale
from transfer_bo.space import DEFAULT_RULE

__all__ = ["ParametrizationSuite"]

_RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Tolerance on losses by precision."""


class ParametrizationSuite:
    """Roles, groups, base, forms and the coordinate check of a model under a rule.

    Subclass it, name the class `Test...`, set `base` and `target` and define `build_model`.
    """

    base: Scale
    """Small: the model is trained for a few steps at up to `factors` times the size. Four blocks or more, so
    that the coordinate check over depth means something."""
    target: Scale
    """Larger, with the same axes."""
    rule: str | Rule = DEFAULT_RULE
    alpha: float = 1.0
    roles: Mapping[str, str] | None = None
    """Role by name pattern, as for `parametrize`."""
    expected_roles: Mapping[str, str] = {}
    """Role by name pattern that must be inferred."""
    inputs: tuple[torch.Tensor, ...] | None = None
    """What the model is called with; guessed if not given."""
    loss: Callable[[nn.Module, tuple[torch.Tensor, ...]], torch.Tensor] | None = None
    """`loss(model, inputs)`; cross-entropy against random classes if not given."""
    hps: Mapping[str, float] = {}
    dtype: torch.dtype = torch.float64
    """Precision in which forms are compared; torch.float32 only for a model that has no other."""
    factors: Sequence[float] = (1, 2, 4)
    """Sizes of the coordinate check, in units of the base's."""
    tolerance: float = TOLERANCE
    """Largest exponent of the coordinate check, in absolute value, that passes."""
    accepted: frozenset[tuple[str, str, str]] = frozenset()
    """(axis, module, measure) of the coordinate check that grow or vanish for a known reason."""

    def build_model(self, scale: Scale) -> nn.Module:
        """The model at a scale; to be defined.

        Raises:
            NotImplementedError: if it is not.
        """
        raise NotImplementedError("define build_model(self, scale) in your subclass")

    def parametrize(self, target: Scale | None = None, **options: Any) -> Parametrization:
        """What is tested: the model under the rule."""
        build = options.pop("build_model", self.build_model)
        return parametrize(
            build,
            self.base,
            target or self.target,
            self.rule,
            self.alpha,
            roles=self.roles,
            inputs=self.inputs,
            **options,
        )

    # ------------------------------------------------------------------------------------ the tests

    def test_every_tensor_has_a_role(self) -> None:
        """Every trainable tensor has a role that the rule has a row for, and those expected are right."""
        p = self.parametrize()

        assert {name for name, t in p.tensors.items() if t.role in p.rule.rows} == set(
            parameters_of(self.build_model(self.target))
        )
        for pattern, role in self.expected_roles.items():
            found = {n: str(t.role) for n, t in p.tensors.items() if fnmatch.fnmatchcase(n, pattern)}
            assert set(found.values()) == {role}, f"{pattern} is to be {role}: {found}"

    def test_the_base_changes_nothing(self) -> None:
        """At the base, initial values are the model's own bit by bit, and every factor is exactly 1."""
        p = self.parametrize(self.base)
        own, ours = (build_real(self.build_model, self.base, seed) for seed in (3, 4))
        p.initialize(ours, seed=3)

        values = parameters_of(ours)
        assert all(torch.equal(value, values[name]) for name, value in parameters_of(own).items())
        factors = p.table()[["init_std", "lr", "eps", "weight_decay", "one_minus_beta", "forward"]]
        assert (factors == 1).all(axis=None), p.table().to_string()
        assert self._has_no_optimizer(p) or all(
            len(optimizer.param_groups) == 1 for optimizer in p.optimizers(ours)
        )

    def test_groups_partition_the_parameters(self) -> None:
        """Every trainable tensor is in exactly one group of one optimizer."""
        p = self.parametrize()
        model = self.build_model(self.target)
        if self._has_no_optimizer(p):
            return
        grouped = [
            id(q) for o in p.optimizers(model, self.hps) for group in o.param_groups for q in group["params"]
        ]

        assert len(grouped) == len(set(grouped))
        assert set(grouped) == {
            id(q) for name, q in parameters_of(model).items() if name in p.settings(self.hps)
        }

    def test_folded_trains_as_multiplied(self) -> None:
        """Multipliers folded into tensors train as in the forward pass, clipped gradients included."""

        def build(scale: Scale) -> nn.Module:
            return self.build_model(scale).to(self.dtype)

        results = []
        for fold in (True, False):
            p = self.parametrize(build_model=build, fold=fold)
            if self._has_no_optimizer(p):
                return
            results.append(self._train(p, build_real(build, self.target, 0)))

        folded, multiplied = results

        assert folded[-1] != folded[0], "nothing was learnt"
        for one, other in zip(folded, multiplied, strict=True):
            assert abs(one - other) <= _RELATIVE[self.dtype] * abs(one), (folded, multiplied)

    def test_copies_give_the_same_settings(self) -> None:
        """Through deepcopy, through pickle if the build function allows, and for a copy of the model."""
        p = self.parametrize()
        model = self.build_model(self.target)
        copies = [copy.deepcopy(p)]
        # A build function that is defined inside another one cannot be pickled.
        with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
            copies.append(pickle.loads(pickle.dumps(p)))
        if self._has_no_optimizer(p):
            return
        expected = self._settings(p, model)

        for other in copies:
            assert expected == self._settings(other, copy.deepcopy(model))

    def test_coordinate_check(self) -> None:
        """Layers learn alike at every width and depth."""
        if self._has_no_optimizer(self.parametrize()):
            return
        check = coordinate_check(
            self.build_model,
            self.base,
            self.rule,
            self.alpha,
            hps=self.hps,
            axes=[axis for axis in ("width", "depth") if axis in self.base],
            factors=self.factors,
            inputs=self.inputs,
            loss=self.loss,
            roles=self.roles,
            tolerance=self.tolerance,
        )

        failures = [g for g in check.failures if (g.axis, g.module, g.measure) not in self.accepted]
        assert not failures, check.table().to_string()

    # ------------------------------------------------------------------------------------ help

    def _has_no_optimizer(self, p: Parametrization) -> bool:
        """Whether the rule is for an optimizer that torch does not have; then nothing can be trained."""
        return any(optimizer_of(p.rule, tensor) not in OPTIMIZERS for tensor in p.tensors.values())

    def _train(self, p: Parametrization, model: nn.Module, steps: int = 4) -> list[float]:
        """Losses of a few steps on one batch, clipped to half of the first gradient norm."""
        p.initialize(model, self.hps, seed=1)
        model.eval()
        optimizers = p.optimizers(model, self.hps)
        call = call_with_example_inputs(build_real(self.build_model, self.base, 0), self.inputs)
        assert call.arguments is not None, call.reason
        inputs = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in call.arguments)

        loss_of = self.loss or random_classes(0)
        losses: list[float] = []
        max_norm = float("inf")

        for _ in range(steps):
            model.zero_grad()
            loss = loss_of(model, inputs)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(p.clip_grad_norm_(model, max_norm))
            if not losses:
                max_norm = norm / 2
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
        return losses

    def _settings(self, p: Parametrization, model: nn.Module) -> list[dict[str, Any]]:
        """Groups of all optimizers, with the names of their tensors in place of these."""
        names = {id(q): name for name, q in parameters_of(model).items()}
        return [
            {**group, "params": [names[id(q)] for q in group["params"]]}
            for optimizer in p.optimizers(model, self.hps)
            for group in optimizer.param_groups
        ]
