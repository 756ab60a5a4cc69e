"""A training program that knows nothing of transfer_bo: arguments in, lines of JSON out."""

import argparse
import json
import math
import random
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--width", type=int)
parser.add_argument("--tokens", type=int)
parser.add_argument("--seed", type=int)
parser.add_argument("--report", type=Path)
args = parser.parse_args()

# The place of a training run: the best learning rate falls with the width, and too large a one diverges.
best_lr = 0.5 / args.width
noise = random.Random(args.seed).gauss(0, 0.01)
final = 2 + 10 / args.width + 300 / args.tokens**0.7 + 0.05 * math.log2(args.lr / best_lr) ** 2 + noise

with args.report.open("a") as report:
    for progress in (0.25, 0.5, 0.75, 1.0):
        if args.lr > 20 * best_lr:
            report.write(json.dumps({"outcome": "diverged"}) + "\n")
            break
        report.write(json.dumps({"progress": progress, "loss": final + 1 - progress}) + "\n")
        report.flush()
    else:
        report.write(json.dumps({"loss": final}) + "\n")
