"""Where a study is kept, and which process runs which of its trials.

    backends          Optuna's storage at an address, checked before anything is written
    retrying_storage  a storage whose calls are repeated until the database answers
    open_study        the Optuna study of a study file, refused if it was started with another one
    owner             the process that runs a trial, by name, machine and process id
    heartbeat         signs of life of owners; trials of dead owners return to the queue
    trial_queue       taking a trial from the queue, or adding one that runs at once
    owned_trial       a trial in the hands of one owner, run to its end

Everything here works on studies and trials; what a trial trains and which HPs it gets is decided elsewhere.
Optuna's private members are used in this package only.
"""
