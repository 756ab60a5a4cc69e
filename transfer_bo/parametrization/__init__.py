"""Which settings each tensor gets at a scale: roles, rules, and their use on a real torch model."""

from transfer_bo.parametrization.apply import Parametrization, parametrize
from transfer_bo.parametrization.rules import Power, Ratios, Role, RoleExponents, Rule
from transfer_bo.parametrization.tables import COMPLETE_D_P, RULES

__all__ = [
    "COMPLETE_D_P",
    "RULES",
    "Parametrization",
    "Power",
    "Ratios",
    "Role",
    "RoleExponents",
    "Rule",
    "parametrize",
]
