"""How far draws can be trusted: convergence, effective sizes, Monte Carlo errors, tails, tables.

Everything here is numpy in float64. `genmlx` does not import this package; whoever needs it does.
"""

from .convergence import bfmi as bfmi
from .convergence import rhat as rhat
from .effective_size import ess as ess
from .effective_size import ess_mean as ess_mean
from .effective_size import ess_tail as ess_tail
from .intervals import hdi as hdi
from .intervals import sample_quantiles as sample_quantiles
from .pareto import psis as psis
from .standard_error import mcse as mcse
from .summary import Row as Row
from .summary import Summary as Summary
from .summary import summarize as summarize
