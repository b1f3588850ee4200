"""All distributions."""

from genmlx.dist.bernoulli import bernoulli as bernoulli
from genmlx.dist.bernoulli import flip as flip
from genmlx.dist.distribution import DistCall as DistCall
from genmlx.dist.distribution import Distribution as Distribution
from genmlx.dist.normal import gaussian as gaussian
from genmlx.dist.normal import normal as normal
