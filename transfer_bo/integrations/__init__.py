"""Suggestions in the formats of training frameworks.

- `formats`: the formats by name, and `export`, which `Suggestion.export` calls.
- `plan`: what all formats are made from: groups of tensors with equal settings, batch, remarks.
- `hf`: Hugging Face transformers: optimizer, `TrainingArguments`, a callback.
- `torchtitan`, `megatron`: configurations of their optimizers.
- `trackers`: trials in TensorBoard, Weights & Biases, MLflow.
- `dashboard`: the suggestion as a note in optuna-dashboard.
"""

from transfer_bo.integrations.formats import FORMATS, Export, export

__all__ = ["FORMATS", "Export", "export"]
