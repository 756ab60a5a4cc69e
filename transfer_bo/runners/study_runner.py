"""The commands that work on a study file: search, join a search, verify.

On Ctrl-C the workers write checkpoints and put their trials back into the queue; the same command continues
from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from rich.console import Console

from transfer_bo.attributes import ERROR_ATTR, PREDICTION_ATTR
from transfer_bo.display.progress import Progress
from transfer_bo.records import Outcome, Run, read_run, read_runs
from transfer_bo.runners.gpu_sharing import usable_workers
from transfer_bo.runners.memory_check import check_memory
from transfer_bo.runners.study_lock import study_lock
from transfer_bo.runners.study_search import search_is_over
from transfer_bo.runners.subset_check import subset_caveats
from transfer_bo.runners.task import StudyTask, Task, make_task
from transfer_bo.runners.warm_start import read_missing_source_runs, refuse_missing_source_runs
from transfer_bo.runners.worker_pool import Pool
from transfer_bo.scale import Scale
from transfer_bo.space import is_multiplier
from transfer_bo.store.heartbeat import Heartbeat, requeue_dead
from transfer_bo.store.open_study import check_storage, create_study, find_study, keep_definition, open_study
from transfer_bo.study_file import StudyFile
from transfer_bo.verification.jobs import plan, replicas, verified_suggestion
from transfer_bo.verification.monitor import Watch
from transfer_bo.verification.running import curve_of_target, next_setting
from transfer_bo.verification.verdict import Verification, judge

if TYPE_CHECKING:
    from transfer_bo.projection import Suggestion

__all__ = ["error_of_all_runs", "join_search", "run_search", "run_verification"]


def run_search(study_file: StudyFile, console: Console) -> bool:
    """Search until the budget is spent; continues where an earlier run stopped.

    Args:
        study_file: The checked study file.
        console: Where progress is shown.

    Returns:
        Whether there was anything to do.

    Raises:
        TransferError: For bad input (nothing is written then), runs that do not fit into memory, or workers
            that keep failing.
        KeyboardInterrupt: On Ctrl-C, when the workers have stopped, or if all of them were asked to stop.
    """
    check_storage(study_file)
    study = find_study(study_file)
    task = make_task(study_file)
    sources = read_missing_source_runs(task, study)
    unchecked = subset_caveats(task) if isinstance(task, StudyTask) else []
    for sentence in [*task.caveats(), *unchecked]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    study = _start(task, study)
    with study_lock(study_file) as lock:
        for source in sources:
            console.print(source.words, highlight=False, markup=False, soft_wrap=True)
            source.store(study)
        return _search(task, study, console, lock)


def error_of_all_runs(study_file: StudyFile) -> str | None:
    """The last error of a study whose runs all ended with one; None if any ended otherwise, or none ended.

    Args:
        study_file: The checked study file of a study that exists.

    Raises:
        StorageError: If the storage cannot be read.
    """
    study = open_study(study_file)
    ended = [run for run in read_runs(study) if run.purpose == "search" and run.outcome.has_ended]
    if not ended or any(run.outcome is not Outcome.ERROR for run in ended):
        return None
    last = study.get_trials(deepcopy=False)[max(run.number for run in ended)]
    return str(last.user_attrs.get(ERROR_ATTR, "unknown; see workers.log"))


def join_search(study_file: StudyFile, console: Console) -> bool:
    """Work on a study together with other commands, on this or any other machine.

    Args:
        study_file: The checked study file.
        console: Where progress is shown.

    Returns:
        Whether there was anything to do.

    Raises:
        TransferError: For bad input, or if the study was started with another study file.
        KeyboardInterrupt: On Ctrl-C, when the workers have stopped.
    """
    check_storage(study_file)
    study = find_study(study_file)
    refuse_missing_source_runs(study_file, study)
    task = make_task(study_file)
    return _search(task, _start(task, study), console, None)


def _start(task: Task, study: optuna.Study | None) -> optuna.Study:
    """The task's study, created if there is none, with what identifies it."""
    if study is None:
        return create_study(task.file, task.definition())
    keep_definition(task.file, study, task.definition())
    return study


def _search(task: Task, study: optuna.Study, console: Console, lock: int | None) -> bool:
    requeue_dead(study)
    runs = read_runs(study)
    # A trial that runs elsewhere may have lost its owner: the workers wait for it, and run it if it did.
    is_running = any(run.outcome is Outcome.RUNNING and run.purpose == "search" for run in runs)
    if search_is_over(task, study, runs) and not is_running:
        return False

    workers = usable_workers(task, task.ladder.proxies, task.file.run.workers)
    check_memory(task, task.ladder.proxies, workers)
    progress = Progress(
        study,
        budget=task.budget,
        target_cost=task.cost(task.file.target),
        project=functools.partial(_suggest, task.file, study),
        console=console,
    )
    pool = _make_pool(task.file, study, lock)

    def start() -> None:
        for slot in range(workers):
            pool.start(slot)

    _run_pool(pool, study, start, progress)
    if not search_is_over(task, study, read_runs(study)):
        raise KeyboardInterrupt  # every worker was asked to stop
    return True


def _suggest(study_file: StudyFile, study: optuna.Study) -> Suggestion:
    from transfer_bo.projection import suggest  # takes seconds to import

    return suggest(study, target=study_file.target)


def _make_pool(study_file: StudyFile, study: optuna.Study, lock: int | None) -> Pool:
    return Pool(study_file, study, study_file.out / "workers.log", lock)


def _run_pool(pool: Pool, study: optuna.Study, start: Callable[[], None], progress: Progress) -> None:
    with Heartbeat(study, pool.owners).beating(), progress:
        try:
            start()
            pool.wait(progress.update, progress.note)
        finally:
            pool.stop()


def run_verification(
    study_file: StudyFile,
    console: Console,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
    replicate: int = 0,
) -> Verification:
    """Run the suggestion and, if the study file says so, its controls at the target.

    Runs that were made before are not repeated: a new suggestion is made only if the search has gone on since
    the last one was verified.

    Args:
        study_file: The checked study file.
        console: Where progress is shown.
        controls: Name -> HPs of the runs to compare with; by default the documented defaults, if the study
            file asks for a control, and the best setting without multipliers, if it has [per_module].
        replicate: How often suggestion and controls are run again with new seeds.

    Raises:
        TransferError: For bad input, runs that do not fit into memory, or workers that keep failing.
        KeyboardInterrupt: On Ctrl-C, when the workers have stopped.
    """
    check_storage(study_file)
    task = make_task(study_file)
    study = open_study(study_file)
    keep_definition(study_file, study, task.definition())

    with study_lock(study_file) as lock:
        requeue_dead(study)
        if controls is None:
            controls = _default_controls(task, study) if study_file.verify.control else {}

        n_search = sum(run.outcome.has_ended and run.purpose == "search" for run in read_runs(study))
        suggestion = (
            verified_suggestion(study, study_file.target, n_search)
            or _suggest_after_divergence(study, study_file.target, n_search)
            or _suggest(study_file, study)
        )
        curve = curve_of_target(study, suggestion)
        jobs = plan(suggestion, controls, n_search=n_search, curve=curve)
        missing = [job for job in [*jobs, *replicas(jobs, replicate)] if job.find(study) is None]

        workers = usable_workers(task, [study_file.target], min(study_file.run.workers, len(missing)))
        if missing:
            check_memory(task, [study_file.target], workers)

        progress = Progress(
            study,
            budget=None,
            target_cost=task.cost(study_file.target),
            console=console,
            watch=Watch(study),
        )
        pool = _make_pool(study_file, study, lock)
        if missing:

            def start() -> None:
                for slot in range(workers):
                    pool.start(slot, missing[slot::workers])

            _run_pool(pool, study, start, progress)
        return judge(study, jobs, replicate, next_setting(study, jobs[0]))


def _suggest_after_divergence(study: optuna.Study, target: Scale, n_search: int) -> Suggestion | None:
    """The next safest setting, if the suggestion that was verified last diverged at the target."""
    for trial in reversed(study.get_trials(deepcopy=False)):
        prediction = trial.user_attrs.get(PREDICTION_ATTR)
        run = read_run(trial)
        if prediction and prediction["n_search"] == n_search and run.scale == target:
            if run.outcome is not Outcome.DIVERGED:
                return None
            from transfer_bo.verification.safer import safer_suggestion  # takes seconds to import

            return safer_suggestion(study, target, prediction["params"])
    return None


def _default_controls(task: Task, study: optuna.Study) -> dict[str, dict[str, float]]:
    """What a suggestion is compared with: name -> HPs."""
    defaults = task.space.defaults
    controls = {"documented defaults": defaults}
    if task.file.per_module is None:
        return controls

    def is_global(run: Run) -> bool:
        return all(run.params.get(n, v) == v for n, v in defaults.items() if is_multiplier(n))

    runs = [run for run in read_runs(study) if run.purpose == "search" and is_global(run)]
    finished = [run for run in runs if run.loss is not None and run.scale in task.ladder.proxies]
    if finished:
        largest = max((run.scale for run in finished if run.scale), key=task.cost)
        best = min((run for run in finished if run.scale == largest), key=lambda run: run.loss or 0.0)
        controls["best global setting"] = {**defaults, **best.params}
    return controls
