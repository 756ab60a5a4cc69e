"""The Trainer of transformers with a tiny Llama: optimizer, check, clipping, reports, pruning, divergence."""

import optuna
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra `hf`")
pytest.importorskip("accelerate", reason="needs the extra `hf`")

from llama import BASE, CONTEXT, TARGET, Counting, build_llama
from transformers import Trainer, TrainingArguments

import transfer_bo as tb
from transfer_bo.attributes import PROGRESS_STEPS
from transfer_bo.errors import Diverged, ParametrizationError
from transfer_bo.integrations import hf
from transfer_bo.parametrization import parametrize

HPS = {"lr": 0.01, "lr.embed_tokens": 4.0, "weight_decay": 0.05}
STEPS = 6


@pytest.fixture(scope="module")
def p():
    """Of the Llama, at the target."""
    return parametrize(build_llama, BASE, TARGET)


@pytest.fixture
def make_trainer(p, tmp_path):
    """Makes a Trainer on a fresh model: `make(callback, hps, **arguments)`."""

    def make(callback, hps=HPS, optimizer=None, **arguments):
        model = build_llama(TARGET)
        p.initialize(model, hps, seed=1)
        options = {"max_grad_norm": 0.0, "per_device_train_batch_size": 8, "max_steps": STEPS} | arguments
        return Trainer(
            model=model,
            args=TrainingArguments(
                str(tmp_path),
                report_to="none",
                use_cpu=True,
                save_strategy="no",
                logging_steps=1,
                eval_strategy="steps",
                eval_steps=2,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=2,
                disable_tqdm=True,
                **options,
            ),
            train_dataset=Counting(),
            eval_dataset=Counting(),
            optimizers=(optimizer or hf.create_optimizer(p, model, hps), None),
            callbacks=[callback],
        )

    return make


class Recorder:
    """A trial that keeps what is reported to it, and prunes from a step on."""

    def __init__(self, prune_at=10**9):
        self.reports = {}
        self.prune_at = prune_at

    def report(self, value, step):
        """Keep it."""
        self.reports[step] = value

    def should_prune(self):
        """Whether the last step is late enough."""
        return max(self.reports) >= self.prune_at


def test_training_reports_to_the_trial(p, make_trainer):
    """A run trains with the parametrization's groups and reports each evaluation at its progress."""
    trial = Recorder()
    trainer = make_trainer(hf.Callback(p, trial))
    trainer.train()

    assert [round(PROGRESS_STEPS * i / STEPS) for i in (2, 4, 6)] == list(trial.reports)
    assert min(trial.reports.values()) < max(trial.reports.values())
    assert p.check(trainer.model, trainer.optimizer.optimizer).is_active


def test_gradients_are_clipped_as_the_parametrization_counts_them(p, make_trainer):
    """Before each step the norm is at most `max_norm`, in the parametrization's count."""
    norms = []
    original = p.clip_grad_norm_

    def record(model, max_norm):
        norms.append((float(original(model, max_norm)), float(original(model, 1e9))))

    callback = hf.Callback(p, max_norm=0.01)
    trainer = make_trainer(callback)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p, "clip_grad_norm_", record)
        trainer.train()

    assert STEPS == len(norms)
    assert all(before > 0.01 for before, _ in norms)
    assert all(after == pytest.approx(0.01, rel=1e-3) for _, after in norms)


def test_an_optimizer_that_is_not_the_parametrizations(p, make_trainer):
    """The check at step 0 refuses plain AdamW, and names tensors."""
    trainer = make_trainer(hf.Callback(p))
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=0.01)
    with pytest.raises(ParametrizationError) as error:
        trainer.train()

    assert "model.embed_tokens.weight" in str(error.value)


@pytest.mark.parametrize(("option", "value"), [("max_grad_norm", 1.0), ("max_grad_norm", 0.5)])
def test_the_trainers_own_clipping_is_refused(p, make_trainer, option, value):
    """Two norms cannot both be clipped: the argument is named with its value."""
    trainer = make_trainer(hf.Callback(p), **{option: value})
    with pytest.raises(ParametrizationError) as error:
        trainer.train()

    assert f"{option}={value!r}" in str(error.value)


def test_a_pruned_run_stops(p, make_trainer):
    """When the study's pruner says so, the run ends with Optuna's own exception."""
    trial = Recorder(prune_at=600)
    trainer = make_trainer(hf.Callback(p, trial))
    with pytest.raises(optuna.TrialPruned):
        trainer.train()

    assert 4 == trainer.state.global_step


def test_a_diverging_run_is_typed(p, make_trainer):
    """A loss that is not finite ends the run as Diverged, before its end."""
    hps = {"lr": 1e30}
    trainer = make_trainer(hf.Callback(p), hps)
    with pytest.raises(Diverged):
        trainer.train()

    assert trainer.state.global_step < STEPS


def test_an_objective_with_a_trainer(p, make_trainer):
    """Under `tb.objective`, pruned and diverged runs are typed outcomes of a study."""

    @tb.objective
    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1e30, log=True)
        trainer = make_trainer(hf.Callback(p, trial), {"lr": lr})
        trainer.train()
        return trainer.evaluate()["eval_loss"]

    study = optuna.create_study()
    study.enqueue_trial({"lr": 1e-2})
    study.enqueue_trial({"lr": 1e30})
    study.optimize(objective, n_trials=2)

    states = [trial.state.name for trial in study.trials]
    assert "COMPLETE" == states[0]
    assert "COMPLETE" != states[1]
    assert 3 == len(study.trials[0].intermediate_values)
    assert "diverged" in str(study.trials[1].user_attrs)


def test_two_optimizers_do_not_fit_a_trainer(p):
    """A rule with Muon and AdamW is refused by name."""
    muon = parametrize(build_llama, BASE, TARGET, "muon")
    with pytest.raises(ParametrizationError) as error:
        hf.create_optimizer(muon, build_llama(TARGET))

    assert "'muon'" in str(error.value)


def test_arguments_for_a_suggestion(p, tmp_path):
    """`training_arguments` are arguments of the class, with the batch in whole sequences."""
    suggestion = SuggestionStub({**HPS, "batch_tokens": 100.0})
    arguments = hf.training_arguments(suggestion, p, context=CONTEXT)
    parsed = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **arguments)

    assert 6 == parsed.per_device_train_batch_size
    assert 0 == parsed.max_grad_norm


class SuggestionStub:
    """HPs at the target."""

    target = TARGET

    def __init__(self, params):
        self.params = params
