"""The maths of the surrogate: from runs to what is known at every scale. Knows tensors, not Optuna.

In the order of the data:

- `coordinates`: HPs and scales as users write them, to rows of numbers and back.
- `outcome_transform`: the metric, to y, which is smaller the better.
- `training_data`: records of runs, to rows and y.
- `priors`: every prior, with its source.
- `loss_law`: the loss at the optimum as a function of scale.
- `landscape`: the loss as a function of HPs and scale, with parameters θ: a loss law and a bowl that drifts.
- `kernel`: the covariance of the linearised landscape and of what it leaves over; its hyperparameters.
- `gp`: `LandscapeGP`, the Gaussian process as a BoTorch model.
- `fitting`: MAP estimates of θ and of the hyperparameters.
- `posterior`: the normal posterior of landscape and optimum at a scale.
- `posterior_sampling`: draws of θ by MCMC, where the linearised landscape is too sure.
- `shrinkage`: the rate at which multipliers lose their worth with scale.
- `feasibility`: how likely a run diverges, or lacks memory.
- `surrogate`: all of it together: `fit_surrogate(runs, dimensions, settings) -> Surrogate`.
- `recommendation`: the setting with the least expected loss at a scale.

Nothing changes after it was made; another fit is another object. Tensors are of double precision, and their
shapes stand in the annotations:

    n         runs                             m, j      rows, points or draws that a function is given
    row       columns of a row                 count     draws
    d         numeric HPs                      p         parameters of the landscape, θ
    k         choices of all categorical HPs   latent    entries of ξ, see `posterior`
    a         axes that vary                   h         hyperparameters of the kernel
    q         source studies                   hps       all HPs: d and the categorical ones
    g         seeds that runs of a scale share c         1 if there are any, else 0
    column    columns of the residual: d + k   groups    groups of Markov chains
    *b        any number of batch dimensions
"""
