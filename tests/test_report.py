"""The report: complete, self-contained, safe, and there at any moment of a study."""

import dataclasses
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from fake_fit import LADDER, TARGET, FakeFit, make_runs, make_study

import transfer_bo as tb
from transfer_bo.diagnostics.importance import METHODS, Importance
from transfer_bo.display.landscape_figure import draw_landscape
from transfer_bo.display.text import interval_text, number_text
from transfer_bo.errors import StudyError
from transfer_bo.parametrization import parametrize
from transfer_bo.records import Outcome, Run
from transfer_bo.report import fitted_landscape, results, tensor_settings, write_report
from transfer_bo.scale import Scale
from transfer_bo.training import build_transformer

URL = "postgresql://me:secret@db.example/x"
STUDY_FILE = f'name = "x"\nseed = 3\nstorage = "{URL}"\n'
SECTIONS = [
    "settings",
    "prediction",
    "landscape",
    "drift",
    "importance",
    "divergence",
    "compute",
    "provenance",
]


class _Parsed(HTMLParser):
    """Every tag with its attributes, the text outside of figures, and the texts of their marks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.tips: list[str] = []
        self.path: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.path.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "svg" not in self.path:
            self.words += data + " "
        elif self.path[-1] == "title":
            self.tips.append(data)

    def all(self, tag: str, attribute: str) -> list[str | None]:
        """The attribute's value of every such tag that has it."""
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]


def _write(tmp_path: Path, runs: list[Run], fit: FakeFit | None = None, **options: Any) -> str:
    fit = fit or FakeFit(runs, hps=["lr", "lr.embedding"])
    study = options.pop("study", None) or make_study(runs, fit.settings)
    path = write_report(
        study, tmp_path / "report.html", title=options.pop("title", "A study"), fit=fit, **options
    )  # type: ignore[arg-type]
    return path.read_text()


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a study that has run to its end."""
    runs = make_runs()
    table = pd.DataFrame({"name": ["embed", "layers.0.q"], "lr": [1.0, 0.25]})
    return _write(
        tmp_path_factory.mktemp("report"),
        runs,
        FakeFit(runs),
        tensor_table=lambda hps: table.assign(set_lr=hps["lr"]),
        provenance={"seed": 3, "study file": STUDY_FILE, "storage": URL},
    )


def test_a_verified_study_shows_everything(verified: str) -> None:
    """Verdict, each HP with value and interval, each section, five figures, the tensors, all runs."""
    page = _Parsed(verified)
    fit = FakeFit([])

    assert [*SECTIONS[:-1], "tensors", SECTIONS[-1]] == page.all("section", "id")
    assert 5 == len(page.all("svg", "aria-label"))
    assert "The measured value lies inside the interval." in page.words
    assert "better than the control run with the documented defaults" in page.words
    for hp, (best, low, high) in fit.optimum(TARGET).items():
        assert hp in page.words
        assert f"{best:.4g}" in page.words
        assert f"{low:.3g} to {high:.3g}" in page.words
    assert "layers.0.q" in page.words
    assert "All 42 runs" in page.words
    assert "lr.embedding: the interval spans most of its range." in page.words


def test_the_suggestion_is_compared_with_other_settings(verified: str) -> None:
    """With the best run copied, at least."""
    settings = verified.partition('id="settings"')[2].partition("</section>")[0]

    assert "best run" in settings.partition("<details")[0]


def test_the_file_needs_nothing_else(verified: str) -> None:
    """No script, no link out, no style sheet, no picture from elsewhere."""
    page = _Parsed(verified)

    ids = page.all("svg", "id") + [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    hrefs = {str(attrs["href"]) for _, attrs in page.tags if "href" in attrs}

    assert all(href.startswith(("#", "data:image/png;base64,")) for href in hrefs)
    assert {href[1:] for href in hrefs if href.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert 1 == len([tag for tag, _ in page.tags if tag == "style"])
    assert not re.search(r"url\((?!#)|@import|https?://", verified)


def test_marks_show_their_values_on_hover(verified: str) -> None:
    """Runs, optima, drifts and measured losses, each with its text."""
    tips = _Parsed(verified).tips
    run = next(run for run in make_runs() if run.loss is not None)
    best, low, high = FakeFit([]).optimum(TARGET)["lr"]

    assert f"trial 0: lr = {number_text(run.params['lr'])}, loss {number_text(run.loss, 5)}" in tips
    assert any(f"{number_text(best)} ({interval_text(low, high)})" in tip for tip in tips)
    assert any(tip.startswith("lr per doubling of width: +0.10") for tip in tips)
    assert any(tip.startswith("documented defaults: ") for tip in tips)


@pytest.mark.parametrize("kind", ["title", "hp"])
def test_passwords_in_figures_are_masked(kind: str, tmp_path: Path) -> None:
    """Text in a figure is text of the page: a study or an HP named by an address, with or without a slash."""
    address = "postgresql://me:pa/ss@db/x"
    runs = make_runs(6, verified=False)
    if kind == "hp":
        runs = [dataclasses.replace(run, params={address: run.params["lr"]}) for run in runs]
    fit = FakeFit(runs, hps=[address] if kind == "hp" else ["lr"])
    study = make_study(runs, fit.settings, name=address if kind == "title" else "x")

    assert "pa/ss" not in _write(tmp_path, runs, fit, study=study, title=address)


@pytest.mark.filterwarnings("error")
def test_names_are_text_and_never_code(tmp_path: Path) -> None:
    """A study, an HP or an error with HTML, a formula or an unusual letter in its name is shown as it is."""
    attack = "<script>alert('1')</script><img src=x onerror=alert(1)> & $\\frac$ 学"
    runs = [
        dataclasses.replace(run, params={attack if hp == "lr" else hp: v for hp, v in run.params.items()})
        for run in make_runs()
    ]
    fit = FakeFit(runs, hps=[attack, "lr.embedding"])
    study = make_study(runs, fit.settings, name=attack)
    page = _Parsed(_write(tmp_path, runs, fit, study=study, title=attack, provenance={attack: attack + "\n"}))

    assert "script" not in {tag for tag, _ in page.tags}
    assert [] == page.all("img", "onerror")
    assert page.words.count(attack) >= 6


def test_passwords_are_left_out_everywhere(verified: str) -> None:
    """A storage URL may stand in the provenance, in the study file and in an error's text."""
    assert "secret" not in verified
    assert verified.count("postgresql://me:***@db") >= 3


def test_where_it_comes_from(verified: str) -> None:
    """The study file is shown with the hash of what was given; versions and seed are there."""
    page = _Parsed(verified)

    assert hashlib.sha256(STUDY_FILE.encode()).hexdigest() in page.words
    assert STUDY_FILE.replace("secret", "***") in page.words
    for name in ("torch", "optuna", "commit of transfer_bo", "sampler's seed", "Python"):
        assert name in page.words


def test_the_prediction_is_the_one_made_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surrogate learns from the verification, so its present prediction would be no test of it."""
    runs = make_runs()
    fit = FakeFit(runs)
    study = make_study(runs, fit.settings)
    fit.law = lambda scale: 9.0  # type: ignore[method-assign]  # what the fit says by now
    before = FakeFit([]).law(TARGET)
    drawn = []
    draw = results.draw_prediction
    monkeypatch.setattr(results, "draw_prediction", lambda *a, **k: drawn.append(a) or draw(*a, **k))
    page = _Parsed(_write(tmp_path, runs, fit, study=study))

    assert (
        "{}  [{}, {}]".format(*(number_text(loss, 5) for loss in (before, before - 0.04, before + 0.04)))
        in page.words
    )
    assert [(before, before - 0.04, before + 0.04)] == [predicted for _, predicted, _ in drawn]


def test_a_miss_is_called_a_miss(tmp_path: Path) -> None:
    """A measured loss outside the interval is said in words and in the table."""
    runs = [dataclasses.replace(r, loss=3.0) if r.purpose == "verify" else r for r in make_runs()]
    page = _Parsed(_write(tmp_path, runs))

    assert "outside the interval" in page.words
    assert " outside " in page.words.replace("outside the interval", "")
    assert "verdict bad" in page.all("div", "class")


def test_a_control_that_did_better_is_no_success(tmp_path: Path) -> None:
    """Inside the interval but worse than the defaults: the verdict is not coloured as good."""
    runs = [dataclasses.replace(r, loss=2.0) if r.purpose == "control" else r for r in make_runs()]
    page = _Parsed(_write(tmp_path, runs))

    assert "worse than the control run" in page.words
    assert "verdict mixed" in page.all("div", "class")


def test_a_verification_that_diverged_is_told(tmp_path: Path) -> None:
    """No measured loss is a result too."""
    runs = [
        dataclasses.replace(r, loss=None, outcome=Outcome.DIVERGED) if r.purpose == "verify" else r
        for r in make_runs()
    ]

    assert "did not give a loss" in _Parsed(_write(tmp_path, runs)).words


def test_no_verification_yet(tmp_path: Path) -> None:
    """The projection is shown, and that nobody has checked it."""
    page = _Parsed(_write(tmp_path, make_runs(verified=False)))

    assert "has not been verified" in page.words
    assert "No run at the target has been made yet" in page.words
    assert "verified at the target" not in page.words
    assert 5 == len(page.all("svg", "aria-label"))


def test_one_rung_and_one_run_are_enough(tmp_path: Path) -> None:
    """Everything can be drawn from the first finished run on."""
    runs = make_runs(1, verified=False, rungs=1)
    page = _Parsed(_write(tmp_path, runs, FakeFit(runs, rungs=1)))

    assert 4 == len(page.all("svg", "aria-label"))
    assert "1 / 1" in page.words


@pytest.mark.parametrize("with_settings", [False, True])
@pytest.mark.parametrize(
    "outcomes", [[], [Outcome.DIVERGED], [Outcome.ERROR, Outcome.PRUNED]], ids=["none", "diverged", "mixed"]
)
def test_nothing_finished_is_said_in_words(
    tmp_path: Path, outcomes: list[Outcome], with_settings: bool
) -> None:
    """Without a finished run there is no fit, but there is a report; here the real `fit_study` says why."""
    runs = [
        Run(number, {"lr": 0.1}, LADDER[0], outcome, None, seconds=1.0)
        for number, outcome in enumerate(outcomes)
    ]
    study = make_study(runs, FakeFit(runs).settings if with_settings else None)
    page = _Parsed(write_report(study, tmp_path / "report.html", title="Early").read_text())

    assert SECTIONS == page.all("section", "id")
    assert "There is no projection yet." in page.words
    assert f"0 / {len(runs)}" in page.words
    assert (Outcome.DIVERGED in outcomes) == bool(page.all("svg", "aria-label"))


def test_a_trial_without_a_scale_is_listed(tmp_path: Path) -> None:
    """A trial that never asked for its rung must not break the report."""
    runs = make_runs(5, verified=False)
    runs.append(Run(5, {}, None, Outcome.ERROR, None))

    assert "no scale stored" in _Parsed(_write(tmp_path, runs)).words


def test_compute_counts_stopped_runs_as_far_as_they_got(tmp_path: Path) -> None:
    """Two runs at one rung, one stopped at a quarter: 1.25 runs, in runs at the target."""
    done, stopped = Outcome.FINISHED, Outcome.PRUNED
    runs = [
        Run(0, {"lr": 0.01}, LADDER[3], done, 2.5, {1.0: 2.5}, 7000.0),
        Run(1, {"lr": 0.02}, LADDER[3], stopped, None, {0.25: 2.9}, 200.0),
    ]
    fit = FakeFit(runs, hps=["lr"])
    share = 1.25 * fit.settings.cost(LADDER[3]) / fit.settings.cost(TARGET)
    page = _Parsed(_write(tmp_path, runs, fit))

    assert f" {round(share, 3):.4g} " in page.words
    assert "2 h 00 min" in page.words


def test_many_hps_keep_the_most_important_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report says what is not drawn, and the table holds every HP."""
    monkeypatch.setattr(fitted_landscape, "MAX_PANELS", 2)
    runs = make_runs(4, verified=False)
    fit = FakeFit(runs)
    page = _Parsed(_write(tmp_path, runs, fit))

    assert "The 2 most important HPs; 3 more are in the tables." in page.words
    assert all(hp in page.words for hp in fit.hps)
    assert 4 == len(draw_landscape(fit, max_panels=2).axes)


def test_larger_may_be_better(tmp_path: Path) -> None:
    """For a metric that is maximised the best of a rung is its largest."""
    study = optuna.create_study(direction="maximize")
    runs = make_runs(8, verified=False)
    fit = FakeFit(runs)
    study.set_user_attr("transfer_bo:settings", fit.settings.to_json())
    study.add_trials(make_study(runs).trials)
    best = max(run.loss for run in runs if run.loss is not None)

    page = _Parsed(_write(tmp_path, runs, fit, study=study))

    assert 2 == page.words.count(f" {best:.4g} ")  # as the best of its rung, and in the list of all runs


def test_the_same_study_gives_the_same_file(tmp_path: Path) -> None:
    """Two reports of one study are equal, byte by byte, and the second replaces the first."""
    runs = make_runs()
    study = make_study(runs, FakeFit(runs).settings)
    first = _write(tmp_path, runs, study=study)

    assert first == _write(tmp_path, runs, study=study)
    assert ["report.html"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.filterwarnings("error")
def test_the_report_of_a_study_in_one_call(tmp_path: Path) -> None:
    """`tb.report(study, path)`, before and after the package of this name is imported."""
    code = (
        "import sys, optuna, transfer_bo as tb\n"
        "optuna.logging.set_verbosity(optuna.logging.ERROR)\n"
        "study = optuna.create_study(study_name='my study')\n"
        "tb.report(study, sys.argv[1]); tb.report(study, path=sys.argv[1]); import transfer_bo.report\n"
        "assert transfer_bo.report.write_report(study, sys.argv[1]).exists()\n"
    )
    path = tmp_path / "r.html"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)

    assert "<title>my study</title>" in path.read_text()


def test_what_is_no_study_or_no_file_is_named(tmp_path: Path) -> None:
    """A storage's address in the place of a study; a folder in the place of a file."""
    (tmp_path / "r.html").mkdir()
    with pytest.raises(StudyError) as no_study:
        tb.report("sqlite:///study.db", tmp_path / "x.html")
    with pytest.raises(tb.TransferError) as no_file:
        tb.report(make_study([]), tmp_path / "r.html")

    assert "sqlite:///study.db" in str(no_study.value)
    assert "r.html" in str(no_file.value)


def test_the_folder_is_made(tmp_path: Path) -> None:
    """`runs/<name>/` need not exist yet."""
    path = write_report(make_study([]), tmp_path / "a" / "b" / "r.html", title="x")

    assert path == tmp_path / "a" / "b" / "r.html"
    assert path.is_file()


def test_every_tensor_gets_the_optimizers_own_numbers() -> None:
    """The table's settings are the parameter groups', the rule's factors those of the parametrization."""
    base, target = (Scale(width=width, depth=1, batch=4, tokens=1024) for width in (16, 64))

    def build(scale: Scale) -> torch.nn.Module:
        return build_transformer(scale, vocab_size=32, head_size=16)

    p = parametrize(build, base=base, target=target)
    hps = {"lr": 0.01, "lr.embedding": 4.0, "weight_decay": 0.2, "init_std.unembedding": 0.5}
    model = build(target)
    table = tensor_settings(p, model, hps).set_index("name")
    group_of = {id(t): group for group in p.param_groups(model, hps) for t in group["params"]}

    assert set(dict(model.named_parameters())) == set(table.index)
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert group["lr"] == table.loc[name, "lr"]
        assert group["betas"] == (table.loc[name, "beta1"], table.loc[name, "beta2"])
        assert group["weight_decay"] == table.loc[name, "weight_decay"]
        assert float(parameter.detach().std(correction=0)) == table.loc[name, "init_std"]
    embedding = table[table["module_type"] == "embedding"].iloc[0]
    assert 0.04 == embedding["lr"]
    assert list(p.table()["lr"]) == list(table["rule: lr"])


def test_unimportant_hps_are_named_and_the_cliff_is_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both sentences and the picture are there when there is something to say, and say so when not."""
    shares = {method: np.array([[0.75, 0.25]]) for method in METHODS}

    def judged(verdict: str) -> Importance:
        verdicts = {"lr": "important", "lr.embedding": verdict}
        return Importance((TARGET,), tuple(verdicts), shares, {}, verdicts, ())

    monkeypatch.setattr(fitted_landscape, "hp_importance", lambda *args, **options: judged("unimportant"))
    named = _Parsed(_write(tmp_path, make_runs())).words
    monkeypatch.setattr(fitted_landscape, "hp_importance", lambda *args, **options: judged("minor"))
    unnamed = _Parsed(_write(tmp_path, [run for run in make_runs(12) if run.loss is not None])).words

    assert "Unimportant, and so not worth searching further: lr.embedding." in named
    for words in (*METHODS, "75%", "unimportant"):
        assert words in named
    assert "crosses runs that diverged" in named
    assert "Probability that a run with the suggestion diverges:" in named
    assert "No HP is found to be unimportant." in unnamed
    assert "No run has diverged." in unnamed
