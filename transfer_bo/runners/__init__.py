"""Where trials run: worker processes of this machine, Ray tasks, torchrun, programs of the user's own.

What a trial does:
    objective         the decorator that gives every ending of a trial its type
    task              a study file made ready to train: the reference trainer, or a program
    external_program  any training program as a trial
    torchrun_entry    one of several processes that train a trial together

Who runs it:
    worker_loop       take a trial, run it, store its result, until the study is over
    worker_spec       what a worker process is given
    worker            one worker, as a process or a Ray task
    forkserver        worker processes that start at once
    ray_tasks         workers as Ray tasks

What starts them:
    study_search      a study file's sampler, first trial, budget and end
    warm_start        the source studies of a study file
    worker_pool       workers that are started, watched and replaced
    study_runner      search, join a search, verify
"""
