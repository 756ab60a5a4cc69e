"""Full-size runs at the target with the suggestion and its controls, and what they say about the prediction.

jobs         the runs that a verification needs, planned and found again
running      running them: `verify` in this process, `run_job` for workers
verdict      measured beside predicted: `Verification`
predicted_curve, early_verdict  the learning curve that is predicted, and a run under way compared with it
monitor      stop a diverging run; verdicts and time left for the display
safer        what to run after the suggestion has diverged
paired_test  two settings compared over several seeds
dry_run      what the runs need, before anything is started (not loaded here: it takes half a second)
step_memory  memory of a training step at its peak, found on fake tensors
gpus         speed and memory of GPUs by name
"""

from transfer_bo.attributes import CONTROL_ATTR, PREDICTION_ATTR, REPLICA_ATTR
from transfer_bo.verification.jobs import Job, plan, replicas, verified_suggestion
from transfer_bo.verification.paired_test import Comparison, compare_paired
from transfer_bo.verification.running import run_job, verify
from transfer_bo.verification.verdict import Verification, judge

__all__ = [
    "CONTROL_ATTR",
    "PREDICTION_ATTR",
    "REPLICA_ATTR",
    "Comparison",
    "Job",
    "Verification",
    "compare_paired",
    "judge",
    "plan",
    "replicas",
    "run_job",
    "verified_suggestion",
    "verify",
]
