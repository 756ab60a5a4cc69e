"""The loss law: how the loss at the optimum falls with scale.

    L(s) = l0 + ln( e + (1-e) R(s) )
    R(s) = ( ω_0 + Σ_a ω_a 2^(-α_a s_a / ζ) )^ζ · 2^(-α_b s_b)

The sum goes over the axes that make a model or its data larger; s_b is the batch size, of which more at the
same number of tokens only multiplies what is reducible. ζ says how far more of one axis makes up for less of
another: with 1 each axis has a loss of its own (Hoffmann et al., 2203.15556, eq. 2), below 1 the axis that is
short holds the others back (Kaplan et al., 2001.08361, eq. 1.5). ω_0 stands for what is short and does not
vary: it is there unless both the model and the data grow.

Symbols: s, a as in `coordinates`; l0 = ln loss at the base; e = share of the loss that no scale removes; ω =
share of each term in the rest, summing to 1; α = exponents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from transfer_bo.surrogate import priors

__all__ = ["LossLaw"]

Parameters = Mapping[str, Tensor]
"""l0, logit of e and ln ζ (... x 1), logits of ω (... x (a + 1), ω_0 last), α (... x a), by the names of
`LossLaw.names`."""


class LossLaw:
    """L(s) and its derivatives.

    Args:
        kinds: of the axes, see `synonyms.axis_kind`.

    Attributes:
        names: of the parameters.
        in_sum: whether the sum has the term of each axis, and ω_0 (a + 1).
    """

    names = ("l0", "e", "omega", "alpha", "lnzeta")

    def __init__(self, kinds: Sequence[str]) -> None:
        grows = [kind not in priors.LAW_FACTORS for kind in kinds]
        more_of = {priors.LAW_GROUP.get(kind, kind) for kind, one in zip(kinds, grows, strict=True) if one}
        self.in_sum = torch.tensor([*grows, len(more_of) < 2], dtype=torch.bool)

    def values(self, p: Parameters, s: Float[Tensor, "*#b a"]) -> Float[Tensor, "*b"]:
        """L(s), ln loss."""
        stays, reducible, _ = self._terms(p, s)
        return p["l0"].squeeze(-1) + torch.logaddexp(stays, reducible)

    def slopes(self, p: Parameters, s: Float[Tensor, "*b a"]) -> dict[str, Tensor]:
        """∂L/∂ each parameter (... x its size)."""
        stays, reducible, terms = self._terms(p, s)
        reducible = torch.sigmoid(reducible - stays).unsqueeze(-1)  # its share in the loss
        e, zeta = torch.sigmoid(p["e"]), p["lnzeta"].exp()

        # ∂ ln R
        shares = torch.softmax(terms, -1)
        by_alpha = -math.log(2) * s * torch.where(self.in_sum[:-1], shares[..., :-1], 1.0)
        by_omega = zeta * (shares - torch.softmax(self._omega(p), -1))
        of_sum = (by_alpha * p["alpha"] * self.in_sum[:-1]).sum(-1, keepdim=True)
        by_lnzeta = zeta * torch.logsumexp(terms, -1, keepdim=True) - of_sum
        return {
            "l0": torch.ones_like(reducible),
            "e": (1 - reducible) * (1 - e) - reducible * e,
            "omega": by_omega * reducible,
            "alpha": by_alpha * reducible,
            "lnzeta": by_lnzeta * reducible,
        }

    def _terms(self, p: Parameters, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of e, of (1-e) R, and of the terms of the sum (... x (a + 1))."""
        e, zeta = p["e"].squeeze(-1), p["lnzeta"].exp()
        falls = math.log(2) * p["alpha"] * s
        of_sum = torch.where(self.in_sum[:-1], falls / zeta, 0.0)
        terms = torch.log_softmax(self._omega(p), -1) - pad(of_sum, (0, 1))
        log_r = zeta.squeeze(-1) * torch.logsumexp(terms, -1) - falls[..., ~self.in_sum[:-1]].sum(-1)
        return logsigmoid(e), logsigmoid(-e) + log_r, terms

    def _omega(self, p: Parameters) -> Tensor:
        """Logits of ω; -inf of terms that the sum does not have."""
        return p["omega"].masked_fill(~self.in_sum, -math.inf)
