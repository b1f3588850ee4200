"""All distributions, each loaded when it is first asked for."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genmlx.dist.bernoulli import bernoulli as bernoulli
    from genmlx.dist.bernoulli import bernoulli_logits as bernoulli_logits
    from genmlx.dist.bernoulli import flip as flip
    from genmlx.dist.beta import beta as beta
    from genmlx.dist.beta_binomial import beta_binomial as beta_binomial
    from genmlx.dist.beta_uniform_mixture import beta_uniform_mixture as beta_uniform_mixture
    from genmlx.dist.binomial import binomial as binomial
    from genmlx.dist.broadcasted_normal import broadcasted_normal as broadcasted_normal
    from genmlx.dist.categorical import categorical as categorical
    from genmlx.dist.cauchy import cauchy as cauchy
    from genmlx.dist.chi2 import chi2 as chi2
    from genmlx.dist.circle import circle as circle
    from genmlx.dist.custom import distribution as distribution
    from genmlx.dist.delta import delta as delta
    from genmlx.dist.dirichlet import dirichlet as dirichlet
    from genmlx.dist.dirichlet_multinomial import dirichlet_multinomial as dirichlet_multinomial
    from genmlx.dist.discrete_uniform import discrete_uniform as discrete_uniform
    from genmlx.dist.distribution import DistCall as DistCall
    from genmlx.dist.distribution import Distribution as Distribution
    from genmlx.dist.exponential import exponential as exponential
    from genmlx.dist.gamma import gamma as gamma
    from genmlx.dist.geometric import geometric as geometric
    from genmlx.dist.gumbel import gumbel as gumbel
    from genmlx.dist.half_cauchy import half_cauchy as half_cauchy
    from genmlx.dist.half_normal import half_normal as half_normal
    from genmlx.dist.iid import iid as iid
    from genmlx.dist.inv_gamma import inv_gamma as inv_gamma
    from genmlx.dist.inv_wishart import inv_wishart as inv_wishart
    from genmlx.dist.laplace import laplace as laplace
    from genmlx.dist.lkj_cholesky import lkj_cholesky as lkj_cholesky
    from genmlx.dist.log_normal import log_normal as log_normal
    from genmlx.dist.logistic import logistic as logistic
    from genmlx.dist.mixture import mixture as mixture
    from genmlx.dist.multinomial import multinomial as multinomial
    from genmlx.dist.multivariate_normal import multivariate_normal as multivariate_normal
    from genmlx.dist.neg_binomial import neg_binomial as neg_binomial
    from genmlx.dist.normal import gaussian as gaussian
    from genmlx.dist.normal import normal as normal
    from genmlx.dist.ordered_logistic import ordered_logistic as ordered_logistic
    from genmlx.dist.pareto import pareto as pareto
    from genmlx.dist.piecewise_uniform import piecewise_uniform as piecewise_uniform
    from genmlx.dist.poisson import poisson as poisson
    from genmlx.dist.product import product as product
    from genmlx.dist.student_t import student_t as student_t
    from genmlx.dist.transformed import dist_transform as dist_transform
    from genmlx.dist.transformed import transformed as transformed
    from genmlx.dist.truncated import truncated as truncated
    from genmlx.dist.truncated_normal import truncated_normal as truncated_normal
    from genmlx.dist.uniform import uniform as uniform
    from genmlx.dist.von_mises import von_mises as von_mises
    from genmlx.dist.weibull import weibull as weibull
    from genmlx.dist.wishart import wishart as wishart
    from genmlx.dist.wrapped_cauchy import wrapped_cauchy as wrapped_cauchy
    from genmlx.dist.wrapped_normal import wrapped_normal as wrapped_normal
    from genmlx.dist.zero_inflated_poisson import zero_inflated_poisson as zero_inflated_poisson

__all__ = [
    "bernoulli",
    "bernoulli_logits",
    "flip",
    "beta",
    "beta_binomial",
    "beta_uniform_mixture",
    "binomial",
    "broadcasted_normal",
    "categorical",
    "cauchy",
    "chi2",
    "circle",
    "distribution",
    "delta",
    "dirichlet",
    "dirichlet_multinomial",
    "discrete_uniform",
    "DistCall",
    "Distribution",
    "exponential",
    "gamma",
    "geometric",
    "gumbel",
    "half_cauchy",
    "half_normal",
    "iid",
    "inv_gamma",
    "inv_wishart",
    "laplace",
    "lkj_cholesky",
    "log_normal",
    "logistic",
    "mixture",
    "multinomial",
    "multivariate_normal",
    "neg_binomial",
    "gaussian",
    "normal",
    "ordered_logistic",
    "pareto",
    "piecewise_uniform",
    "poisson",
    "product",
    "student_t",
    "dist_transform",
    "transformed",
    "truncated",
    "truncated_normal",
    "uniform",
    "von_mises",
    "weibull",
    "wishart",
    "wrapped_cauchy",
    "wrapped_normal",
    "zero_inflated_poisson",
]

# Where a name lives when it is not in the module of its own name.
_ELSEWHERE = {
    "DistCall": "distribution",
    "Distribution": "distribution",
    "dist_transform": "transformed",
    "distribution": "custom",
    "bernoulli_logits": "bernoulli",
    "flip": "bernoulli",
    "gaussian": "normal",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    home = _ELSEWHERE.get(name, name)
    try:
        module = import_module(f"genmlx.dist.{home}")
    except ModuleNotFoundError as error:
        if error.name != f"genmlx.dist.{home}":
            raise
        raise AttributeError(f"no distribution {name!r}") from None
    value = getattr(module, name, module)
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Families(ModuleType):
    """Loading the module ``gamma`` makes Python name it ``gamma`` here: that name is the family's."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            if _ELSEWHERE.get(name, name) != name:
                return
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Families
