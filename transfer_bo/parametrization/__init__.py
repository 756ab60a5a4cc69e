"""The settings of each tensor at a scale: roles of tensors, rules, and their use on a torch model.

What a rule is:

- `rules`: roles, exponents, factors, and the symmetries that move multipliers.
- `tables`: the rules of the literature.

What a model is made of:

- `model_file`: the function that builds the user's model, imported from a file.
- `builds`: builds of the user's model, and the names of its tensors whatever wraps it.
- `base_model`: what is found out about the base model once, for all targets.
- `structure`: stacks of blocks, and which tensors of base and target correspond.
- `example_inputs`, `trace`: a call of the base model, and how its tensors are used in it.
- `role_inference`: the role of each tensor.
- `anatomy`: all of this for each tensor of the target.
- `residual`: the residual branches of a block.

What is set on a model:

- `apply`: `parametrize` and `Parametrization`.
- `scaled_settings`: every tensor's settings at one scale, by name.
- `initial_values`: sizes of initial values, buffers.
- `hp_values`: the value of an HP for each tensor.
- `forward_multipliers`: where multipliers of the forward pass live.
- `optimizers`: what makes each optimizer, and its options.
- `hyperball`, `shampoo`: AdamH and MuonH, Shampoo.
- `sharding`: tensors that are sharded over processes.

Whether it is active, and transfers:

- `check`: the differences between a live model and optimizer and the settings.
- `coordcheck`, `activation_changes`: the coordinate check.
"""

from transfer_bo.parametrization.apply import Parametrization, parametrize
from transfer_bo.parametrization.rules import Power, Ratios, Role, RoleExponents, Rule, ScalingFactors
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
    "ScalingFactors",
    "parametrize",
]
