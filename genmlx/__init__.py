"""GenMLX: Gen's generative function interface on Apple's MLX."""

from typing import TYPE_CHECKING, Any

from genmlx import dist as dist
from genmlx.backend.device import memory_report as memory_report
from genmlx.choicemap import ChoiceMap as ChoiceMap
from genmlx.choicemap import choicemap as choicemap
from genmlx.diff import NoChange as NoChange
from genmlx.diff import UnknownChange as UnknownChange
from genmlx.diff import VectorDiff as VectorDiff
from genmlx.edit import Propose as Propose
from genmlx.edit import Regenerate as Regenerate
from genmlx.edit import Update as Update
from genmlx.errors import GenError as GenError
from genmlx.gen import gen as gen
from genmlx.gen import param as param
from genmlx.gen import splice as splice
from genmlx.gen import trace as trace
from genmlx.gfi import GenerativeFunction as GenerativeFunction
from genmlx.random import seed as seed
from genmlx.selection import Selection as Selection
from genmlx.selection import select as select
from genmlx.trace import Trace as Trace
from genmlx.vectorized import VectorizedTrace as VectorizedTrace

if TYPE_CHECKING:
    from genmlx.combinators import contramap as contramap
    from genmlx.combinators import dimap as dimap
    from genmlx.combinators import map_over as map_over
    from genmlx.combinators import map_retval as map_retval
    from genmlx.combinators import mask as mask
    from genmlx.combinators import mix as mix
    from genmlx.combinators import recurse as recurse
    from genmlx.combinators import repeat as repeat
    from genmlx.combinators import scan as scan
    from genmlx.combinators import switch as switch
    from genmlx.combinators import unfold as unfold
    from genmlx.combinators import vmap as vmap
    from genmlx.dist import bernoulli as bernoulli
    from genmlx.dist import beta as beta
    from genmlx.dist import beta_uniform_mixture as beta_uniform_mixture
    from genmlx.dist import binomial as binomial
    from genmlx.dist import broadcasted_normal as broadcasted_normal
    from genmlx.dist import categorical as categorical
    from genmlx.dist import cauchy as cauchy
    from genmlx.dist import delta as delta
    from genmlx.dist import dirichlet as dirichlet
    from genmlx.dist import discrete_uniform as discrete_uniform
    from genmlx.dist import exponential as exponential
    from genmlx.dist import flip as flip
    from genmlx.dist import gamma as gamma
    from genmlx.dist import gaussian as gaussian
    from genmlx.dist import geometric as geometric
    from genmlx.dist import inv_gamma as inv_gamma
    from genmlx.dist import inv_wishart as inv_wishart
    from genmlx.dist import laplace as laplace
    from genmlx.dist import log_normal as log_normal
    from genmlx.dist import mixture as mixture
    from genmlx.dist import multivariate_normal as multivariate_normal
    from genmlx.dist import neg_binomial as neg_binomial
    from genmlx.dist import normal as normal
    from genmlx.dist import piecewise_uniform as piecewise_uniform
    from genmlx.dist import poisson as poisson
    from genmlx.dist import student_t as student_t
    from genmlx.dist import truncated_normal as truncated_normal
    from genmlx.dist import uniform as uniform
    from genmlx.dist import wishart as wishart
    from genmlx.dist.custom import distribution as distribution
    from genmlx.dist.transformed import dist_transform as dist_transform
    from genmlx.inference import DegenerateWeights as DegenerateWeights
    from genmlx.inference import DeterministicTranslator as DeterministicTranslator
    from genmlx.inference import Enumeration as Enumeration
    from genmlx.inference import GeneralTranslator as GeneralTranslator
    from genmlx.inference import InferenceInterrupted as InferenceInterrupted
    from genmlx.inference import Kernel as Kernel
    from genmlx.inference import LogDensity as LogDensity
    from genmlx.inference import Optimum as Optimum
    from genmlx.inference import ParticleFilter as ParticleFilter
    from genmlx.inference import Particles as Particles
    from genmlx.inference import Posterior as Posterior
    from genmlx.inference import SimpleExtendingTranslator as SimpleExtendingTranslator
    from genmlx.inference import Smcp3Step as Smcp3Step
    from genmlx.inference import StateSpace as StateSpace
    from genmlx.inference import SymmetricTranslator as SymmetricTranslator
    from genmlx.inference import Translated as Translated
    from genmlx.inference import Variational as Variational
    from genmlx.inference import chain as chain
    from genmlx.inference import csmc as csmc
    from genmlx.inference import csmc_kernel as csmc_kernel
    from genmlx.inference import cycle_kernels as cycle_kernels
    from genmlx.inference import elliptical_slice as elliptical_slice
    from genmlx.inference import elliptical_slice_kernel as elliptical_slice_kernel
    from genmlx.inference import enumerate_posterior as enumerate_posterior
    from genmlx.inference import expectation as expectation
    from genmlx.inference import extended_kalman_filter as extended_kalman_filter
    from genmlx.inference import gibbs as gibbs
    from genmlx.inference import gibbs_kernel as gibbs_kernel
    from genmlx.inference import growing_steps as growing_steps
    from genmlx.inference import hmc as hmc
    from genmlx.inference import hmc_gibbs as hmc_gibbs
    from genmlx.inference import hmc_kernel as hmc_kernel
    from genmlx.inference import hmm_forward as hmm_forward
    from genmlx.inference import hmm_sample as hmm_sample
    from genmlx.inference import hmm_smooth as hmm_smooth
    from genmlx.inference import hmm_viterbi as hmm_viterbi
    from genmlx.inference import importance_resampling as importance_resampling
    from genmlx.inference import importance_sampling as importance_sampling
    from genmlx.inference import involutive_mh as involutive_mh
    from genmlx.inference import kalman_filter as kalman_filter
    from genmlx.inference import kalman_sample as kalman_sample
    from genmlx.inference import kalman_smooth as kalman_smooth
    from genmlx.inference import log_likelihood as log_likelihood
    from genmlx.inference import mala as mala
    from genmlx.inference import mala_kernel as mala_kernel
    from genmlx.inference import map_optimize as map_optimize
    from genmlx.inference import mh as mh
    from genmlx.inference import mh_kernel as mh_kernel
    from genmlx.inference import mix_kernels as mix_kernels
    from genmlx.inference import nuts as nuts
    from genmlx.inference import particle_gibbs as particle_gibbs
    from genmlx.inference import pmmh as pmmh
    from genmlx.inference import predictive as predictive
    from genmlx.inference import programmable_vi as programmable_vi
    from genmlx.inference import random_walk as random_walk
    from genmlx.inference import random_walk_kernel as random_walk_kernel
    from genmlx.inference import renyi as renyi
    from genmlx.inference import repeat_kernel as repeat_kernel
    from genmlx.inference import reversal as reversal
    from genmlx.inference import run_kernel as run_kernel
    from genmlx.inference import seed_kernel as seed_kernel
    from genmlx.inference import smc as smc
    from genmlx.inference import smcp3 as smcp3
    from genmlx.inference import tempered_smc as tempered_smc
    from genmlx.inference import vi as vi
    from genmlx.inference import with_reversal as with_reversal
    from genmlx.learning import custom_gradient as custom_gradient
    from genmlx.learning import lecture as lecture
    from genmlx.learning import log_evidence as log_evidence
    from genmlx.learning import neural as neural
    from genmlx.learning import smc_log_evidence as smc_log_evidence
    from genmlx.learning import train as train
    from genmlx.learning import wake_sleep as wake_sleep
    from genmlx.storage import load_trace as load_trace
    from genmlx.storage import save_trace as save_trace
    from genmlx.taps import tap as tap

# Loaded when they are first asked for.
LAZY = dict.fromkeys(
    """
    DegenerateWeights DeterministicTranslator Enumeration GeneralTranslator InferenceInterrupted Kernel
    LogDensity Optimum ParticleFilter Particles Posterior SimpleExtendingTranslator Smcp3Step StateSpace
    SymmetricTranslator Translated Variational chain csmc csmc_kernel cycle_kernels elliptical_slice
    elliptical_slice_kernel enumerate_posterior expectation extended_kalman_filter gibbs gibbs_kernel
    growing_steps hmc hmc_gibbs hmc_kernel hmm_forward hmm_sample hmm_smooth hmm_viterbi importance_resampling
    importance_sampling involutive_mh kalman_filter kalman_sample kalman_smooth log_likelihood mala
    mala_kernel map_optimize mh mh_kernel mix_kernels nuts particle_gibbs pmmh predictive programmable_vi
    random_walk random_walk_kernel renyi repeat_kernel reversal run_kernel seed_kernel smc smcp3 tempered_smc
    vi with_reversal
    """.split(),
    "inference",
)
LAZY |= dict.fromkeys(
    """
    contramap dimap map_over map_retval mask mix recurse repeat scan switch unfold vmap
    """.split(),
    "combinators",
)
LAZY |= dict.fromkeys(
    "custom_gradient lecture log_evidence neural smc_log_evidence train wake_sleep".split(), "learning"
)
LAZY |= {"load_trace": "storage", "save_trace": "storage", "tap": "taps"}
LAZY |= dict.fromkeys(
    """
    bernoulli beta beta_uniform_mixture binomial broadcasted_normal categorical cauchy delta dirichlet
    discrete_uniform dist_transform distribution exponential flip gamma gaussian geometric inv_gamma
    inv_wishart laplace log_normal mixture multivariate_normal neg_binomial normal piecewise_uniform poisson
    student_t truncated_normal uniform wishart
    """.split(),
    "dist",
)

__all__ = [
    "gen",
    "trace",
    "splice",
    "param",
    "choicemap",
    "select",
    "seed",
    "dist",
    "Update",
    "Regenerate",
    "Propose",
    "NoChange",
    "UnknownChange",
    "VectorDiff",
    "GenError",
    "memory_report",
    "tap",
    "distribution",
    "dist_transform",
    "contramap",
    "dimap",
    "map_over",
    "map_retval",
    "mask",
    "mix",
    "recurse",
    "repeat",
    "scan",
    "switch",
    "unfold",
    "vmap",
    "gaussian",
    "normal",
    "uniform",
    "bernoulli",
    "flip",
    "beta",
    "gamma",
    "exponential",
    "categorical",
    "poisson",
    "laplace",
    "student_t",
    "log_normal",
    "multivariate_normal",
    "dirichlet",
    "delta",
    "cauchy",
    "inv_gamma",
    "geometric",
    "neg_binomial",
    "binomial",
    "discrete_uniform",
    "truncated_normal",
    "piecewise_uniform",
    "beta_uniform_mixture",
    "wishart",
    "inv_wishart",
    "broadcasted_normal",
    "mixture",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'genmlx' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"genmlx.{LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})


def load_ipython_extension(shell: Any) -> None:
    from magics import load_ipython_extension

    load_ipython_extension(shell)


def unload_ipython_extension(shell: Any) -> None:
    from magics import unload_ipython_extension

    unload_ipython_extension(shell)
