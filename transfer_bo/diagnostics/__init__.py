"""How well hyperparameters transfer: rates, metrics, importance, trajectory decomposition.

    diagnose        rates, metrics and importance of a whole study or table of runs, in one answer
    rates           fast or slow transfer: how the optimum settles compared with the loss
    metrics         E, κ and R(∞): how well one law describes all sizes
    importance      which HPs matter at each scale, and which are unimportant
    curves          the loss against one HP at several sizes, as smooth curves with an error bar
    laws            power laws with a limit, fitted to many draws at once
    relief          N-RReliefF, from nearest neighbours in the space of HPs
    trajectory      which directions of the updates reduce the loss, recorded in training
    widths          such decompositions compared over widths: what is alike, and how far an optimum can move
    truncation      width-stable directions against width-sensitive ones
    intervals       a number with its 90% interval

`trajectory` watches a model in training; everything else takes plain tables of runs.
"""
