"""Exact posteriors: by enumeration, of hidden Markov models, and of linear Gaussian state-space models."""

from genmlx.inference.exact.enumeration import Enumeration as Enumeration
from genmlx.inference.exact.enumeration import enumerate_posterior as enumerate_posterior
from genmlx.inference.exact.hmm import hmm_forward as hmm_forward
from genmlx.inference.exact.hmm import hmm_sample as hmm_sample
from genmlx.inference.exact.hmm import hmm_smooth as hmm_smooth
from genmlx.inference.exact.hmm import hmm_viterbi as hmm_viterbi
from genmlx.inference.exact.kalman import StateSpace as StateSpace
from genmlx.inference.exact.kalman import extended_kalman_filter as extended_kalman_filter
from genmlx.inference.exact.kalman import kalman_filter as kalman_filter
from genmlx.inference.exact.kalman import kalman_sample as kalman_sample
from genmlx.inference.exact.kalman import kalman_smooth as kalman_smooth
