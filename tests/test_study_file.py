"""The study file: what a good one says, and what is said about a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from transfer_bo import Scale
from transfer_bo.errors import StudyFileError
from transfer_bo.study_file import StudyFile, load_study_file

WriteStudy = Callable[..., Path]
TARGET = "[ladder.target]\nwidth = 32\ndepth = 2\nbatch = 2\ntokens = 1024\n"

BAD = {  # what is replaced by what, and what the sentence must name beside the file
    "unknown key": (("trials = 4", "trails = 4"), "budget.trails = 4", "'trials'"),
    "unknown section": (("[budget]", "[budgets]"), "budgets = ", "'budget'"),
    "unknown key of a rung": (("width = 16", "widht = 16"), "ladder.rungs[0].widht = 16", "'width'"),
    "unknown bound": (("low = 0.001", "lo = 0.001"), "space.lr.lo = 0.001", "'low'"),
    "missing target": ((TARGET, ""), "ladder.target is missing", "add it"),
    "missing name": (('name = "tiny"', ""), "name is missing", "add it"),
    "no cheaper rung": ((TARGET, TARGET.replace("1024", "64")), "ladder.target = ", "no rung is cheaper"),
    "low >= high": (("low = 0.001", "low = 0.2"), "space: HP 'lr': low = 0.2, high = 0.1", "low < high"),
    "default outside": (("default = 0.01", "default = 1.0"), "space: HP 'lr': default = 1.0", "move it"),
    "unknown kind": (('"lr.embedding"', '"larning_rate"'), "space: HP 'larning_rate'", "lr, weight_decay"),
    "zero scale": (("width = 16", "width = 0"), "ladder.rungs[0].width = 0", "greater than 0"),
    "negative scale": (("tokens = 512", "tokens = -512"), "ladder.rungs[0].tokens = -512", "greater than 0"),
    "fractional scale": (("depth = 1", "depth = 1.5"), "ladder.rungs[0].depth = 1.5", "integer"),
    "text as a number": (("context = 16", 'context = "16"'), "data.context = '16'", "integer"),
    "true as a number": (("context = 16", "context = true"), "data.context = True", "integer"),
    "infinite budget": (("target_runs = 100", "target_runs = inf"), "budget.target_runs = inf", "finite"),
    "repeated rung": (("width = 32", "width = 16"), "ladder.rungs: ", "twice"),
    "width no multiple": (("width = 16", "width = 24"), "ladder.rungs[0].width = 24", "head_size = 16"),
    "less than a step": (("tokens = 512", "tokens = 31"), "ladder.rungs[0].tokens = 31", "32"),
    "name for a path": (('"tiny"', '"../tiny"'), "name = '../tiny'", "letters"),
    "own path": (("[data]", 'path = "x"\n[data]'), "path = 'x'", "unknown key"),
    "unknown kind of multiplier": (
        ("[budget]", '[per_module]\ndepth = ["larning_rate"]\n[budget]'),
        "per_module.depth = ['larning_rate']",
        "lr, weight_decay",
    ),
    "profile of places": (
        ("[budget]", '[per_module]\ndepth = ["forward"]\n[budget]'),
        "per_module.depth = ['forward']",
        "no depth",
    ),
    "one knot": (
        ("[budget]", '[per_module]\ndepth = ["lr"]\ndepth_knots = 1\n[budget]'),
        "per_module.depth_knots = 1",
        "greater than or equal to 2",
    ),
    "unknown key of multipliers": (
        ("[budget]", '[per_module]\ntype = ["lr"]\n[budget]'),
        "per_module.type = ['lr']",
        "'types'",
    ),
    "past runs nowhere": (("[budget]", "[[past]]\n[budget]"), "past[0]", "give either runs"),
    "past runs twice": (
        ("[budget]", '[[past]]\nruns = "a.csv"\n[[past]]\nruns = "b/a.csv"\n[budget]'),
        "past: two source studies are called 'a'",
        "give each a name",
    ),
    "a study in a table": (
        ("[budget]", '[[past]]\nruns = "a.csv"\nstudy = "x"\n[budget]'),
        "past[0].study = 'x'",
        "leave this key out",
    ),
    "unknown key of a source study": (
        ("[budget]", '[[past]]\nrun = "a.csv"\n[budget]'),
        "past[0].run = 'a.csv'",
        "'runs'",
    ),
    "unknown kind of a past HP": (
        ("[budget]", '[[past]]\nruns = "a.csv"\nhps = { lr = "lg" }\n[budget]'),
        "past[0].hps.lr = 'lg'",
        "'linear'",
    ),
    "a model and a program": (
        ("[budget]", '[model]\nbuild = "m.py:f"\n[command]\nrun = ["true"]\n[budget]'),
        "model.build = 'm.py:f'",
        "leave one of the two out",
    ),
    "a key of the model that is replaced": (
        ("[budget]", '[model]\nbuild = "m.py:f"\nmlp_ratio = 4\n[budget]'),
        "model.mlp_ratio = 4",
        "leave it out",
    ),
    "experts that top_k exceeds": (
        ("[budget]", "[model]\nexperts = 2\ntop_k = 3\n[budget]"),
        "ladder.rungs[0]: top_k = 3",
        "experts = 2",
    ),
    "a size of experts without experts": (
        ("[budget]", "[model]\ntop_k = 3\n[budget]"),
        "ladder.rungs[0]",
        "set model.experts",
    ),
    "experts in one rung": (("width = 16", "width = 16\nexperts = 2"), "ladder.rungs: ", "other axes"),
    "a rank above the width": (
        ("[budget]", '[adapter]\nmethod = "lora"\nweights = "w.pt"\nrank = 17\n[budget]'),
        "ladder.rungs[0]: rank = 17",
        "width = 16",
    ),
    "an unknown adapter": (
        ("[budget]", '[adapter]\nmethod = "lorra"\nweights = "w.pt"\n[budget]'),
        "adapter.method = 'lorra'",
        "'smoa'",
    ),
    "adapters for a model of the user's own": (
        ("[budget]", '[adapter]\nmethod = "ether"\nweights = "w.pt"\n[model]\nbuild = "m.py:f"\n[budget]'),
        "[adapter]",
        "leave one of the two out",
    ),
    "no TOML": (("[data]", "[data"), "not valid TOML", "line"),
}


def test_a_good_file_is_read(write_study: WriteStudy) -> None:
    """Scales, HPs and defaults of sections that are left out come out as written."""
    path = write_study(("tokens = 512", "tokens = 5.12e2"))

    study = load_study_file(path)

    assert [
        Scale(width=16, depth=1, batch=2, tokens=512),
        Scale(width=32, depth=1, batch=2, tokens=512),
    ] == study.proxies
    assert Scale(width=32, depth=2, batch=2, tokens=1024) == study.target
    assert study.proxies[0] == study.base
    assert {"lr": 0.01, "lr.embedding": 1.0} == study.hp_space.defaults
    assert "complete_d_p_token_half_life" == study.parametrization.rule


def test_axes_of_experts(write_study: WriteStudy) -> None:
    """A ladder of a mixture of experts has their number, those per token and their width as axes."""
    sizes = "\nexperts = 4\ntop_k = 2\nexpert_width = 8"
    axes = [(TARGET, f"{TARGET}{sizes[1:]}\n"), *((f"width = {w}", f"width = {w}{sizes}") for w in (16, 32))]

    study = load_study_file(write_study(*axes))

    expected = Scale(width=16, depth=1, batch=2, tokens=512, experts=4, top_k=2, expert_width=8)
    assert expected == study.base
    with pytest.raises(StudyFileError, match="gives it too"):
        load_study_file(write_study(*axes, ("[budget]", "[model]\nexperts = 4\n[budget]")))
    with pytest.raises(StudyFileError, match=r"ladder.target: .* other axes"):
        load_study_file(write_study(*axes[1:]))


def test_rank_as_an_axis(write_study: WriteStudy) -> None:
    """It needs a section on adapters that have a rank, and is given once."""
    adapter = '[adapter]\nmethod = "{}"\nweights = "w.pt"\n{}[budget]'
    ranks = [(TARGET, f"{TARGET}rank = 4\n"), *((f"width = {w}", f"width = {w}\nrank = 4") for w in (16, 32))]

    study = load_study_file(write_study(*ranks, ("[budget]", adapter.format("lora", ""))))

    assert {4} == {scale.rank for scale in [*study.proxies, study.target]}
    for sections, said in (
        ("[budget]", "there is no"),
        (adapter.format("ether", ""), "has no rank"),
        (adapter.format("smoa", "rank = 2\n"), "gives it too"),
    ):
        with pytest.raises(StudyFileError, match=said):
            load_study_file(write_study(*ranks, ("[budget]", sections)))


def test_paths_are_relative_to_the_study_file(
    write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same file means the same folders from any current directory."""
    path = write_study()
    monkeypatch.chdir(tmp_path)
    relative = load_study_file("tiny.toml")
    monkeypatch.chdir("/")

    absolute = load_study_file(path)

    assert relative == absolute
    assert tmp_path / "runs" / "tiny" == absolute.out
    assert str(tmp_path / "text") == absolute.data_source
    assert f"sqlite:///{tmp_path}/runs/tiny/study.db" == absolute.storage_url


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_sentence(case: str, write_study: WriteStudy) -> None:
    """The sentence names file, key and value, and what to do."""
    replacement, key_and_value, hint = BAD[case]
    path = write_study(replacement)

    with pytest.raises(StudyFileError) as caught:
        load_study_file(path)

    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ")
    assert key_and_value in sentence
    assert hint in sentence
    assert "\n" not in sentence
    assert "pydantic" not in sentence


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not text"])
def test_a_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """A path that leads nowhere, or to something else, is named."""
    path = tmp_path / "other.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(StudyFileError, match=r"other\.toml: this study file"):
        load_study_file(path)


def test_the_definition_holds_what_must_not_change(write_study: WriteStudy) -> None:
    """Budget, workers, ranges and target are no part of it; seed, data, model, rule and HPs are."""
    study = load_study_file(write_study())
    changes = (
        ("trials = 4", "trials = 9\n[run]\nworkers = 3"),
        ("high = 0.1", "high = 0.2"),
        ("tokens = 1024", "tokens = 2048"),
    )
    free = load_study_file(write_study(*changes))
    bound = load_study_file(write_study(("context = 16", "context = 8"), ('"lr.embedding"', '"lr.norm"')))

    assert study.definition() == free.definition()
    assert {"data.context", "space"} == {
        key for key, value in study.definition().items() if bound.definition()[key] != value
    }


def test_the_model_of_a_study_must_not_change(write_study: WriteStudy) -> None:
    """Neither may a model of the user's own take the place of the reference transformer, nor another one."""
    definitions = [
        load_study_file(write_study(("[budget]", f"{section}[budget]"))).definition()
        for section in ("", '[model]\nbuild = "m.py:f"\n', '[model]\nbuild = "m.py:g"\n')
    ]

    assert [None, "m.py:f", "m.py:g"] == [definition["model.build"] for definition in definitions]


def test_a_study_file_survives_json(write_study: WriteStudy) -> None:
    """A worker process gets exactly what its parent checked."""
    study = load_study_file(write_study())

    assert study == StudyFile.model_validate_json(study.model_dump_json())


def test_how_a_study_trains_must_not_change(write_study: WriteStudy) -> None:
    """Schedule and clipping are part of the definition; memory and speed are not."""
    default = load_study_file(write_study()).definition()
    same, other = (
        load_study_file(write_study(("[budget]", f"[training]\n{lines}\n[budget]"))).definition()
        for lines in ("accumulate = 2\nactivation_checkpointing = true", 'schedule = "wsd"\nmax_norm = 0.5')
    )

    assert default == same
    assert {"training.schedule", "training.max_norm"} == {
        key for key in default if other[key] != default[key]
    }
