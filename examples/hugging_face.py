"""A Llama of Hugging Face trained with its Trainer: a search on small models, and one run at the target.

Run it: .venv/bin/python examples/hugging_face.py (half a minute on one core; needs the extra "hf").
"""

import tempfile

import optuna
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import transfer_bo as tb
from transfer_bo.integrations import hf

CONTEXT, VOCAB = 32, 64  # tokens per sequence, kinds of tokens


def build_model(scale: tb.Scale) -> LlamaForCausalLM:
    """Heads grow in number with the width, not in size."""
    width, heads = int(scale.width), int(scale.width) // 8
    counts = {"num_attention_heads": heads, "num_key_value_heads": heads, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width, **counts)
    return LlamaForCausalLM(config)


base = tb.Scale(width=16, batch=8, tokens=8e3)
ladder = tb.Ladder([base, base.replace(width=32), base.replace(tokens=16e3)])
target = tb.Scale(width=64, batch=8, tokens=32e3)
p = tb.parametrize(build_model, base=base)
moves = torch.randint(3, 5, (4096, CONTEXT), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row} for row in moves.cumsum(1) % VOCAB]  # 3 or 4 ahead: ln 2 at best


@tb.objective
def objective(trial: optuna.Trial) -> float:
    """The evaluation loss of one run."""
    scale, hps = ladder.suggest(trial), {"lr": trial.suggest_float("lr", 2**-11, 2**-3, log=True)}
    settings, model = p.at(scale), build_model(scale)
    settings.initialize(model, hps, seed=trial.number)
    with tempfile.TemporaryDirectory() as out:
        steps = {"per_device_train_batch_size": 8, "max_steps": int(scale.tokens / 8 / CONTEXT)}
        options = {"max_grad_norm": 0.0, "report_to": "none", "use_cpu": True, "save_strategy": "no"}
        trainer = Trainer(
            model=model,
            args=TrainingArguments(out, **options, **steps),
            train_dataset=rows[64:],
            eval_dataset=rows[:64],
            optimizers=(hf.create_optimizer(settings, model, hps), None),
            callbacks=[hf.Callback(settings, trial)],
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"]


sampler = tb.TransferSampler(ladder=ladder, target=target, seed=0)
study = optuna.create_study(sampler=sampler, pruner=tb.RungPruner())
study.optimize(objective, n_trials=10)
print(suggestion := tb.suggest(study))
print(tb.verify(study, objective, suggestion).text)
