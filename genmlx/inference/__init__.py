"""Inference algorithms, one per file."""

from genmlx.inference.importance import importance_resampling as importance_resampling
from genmlx.inference.importance import importance_sampling as importance_sampling
from genmlx.inference.involutive import involutive_kernel as involutive_kernel
from genmlx.inference.involutive import involutive_mh as involutive_mh
from genmlx.inference.involutive import involutive_step as involutive_step
from genmlx.inference.loop import InferenceInterrupted as InferenceInterrupted
from genmlx.inference.loop import Progress as Progress
from genmlx.inference.mh import mh as mh
from genmlx.inference.moves import Translated as Translated
from genmlx.inference.particles import Particles as Particles
from genmlx.inference.posterior import Posterior as Posterior
from genmlx.inference.round_trip import RoundTripError as RoundTripError
from genmlx.inference.translators import DeterministicTranslator as DeterministicTranslator
from genmlx.inference.translators import GeneralTranslator as GeneralTranslator
from genmlx.inference.translators import SimpleExtendingTranslator as SimpleExtendingTranslator
from genmlx.inference.translators import SymmetricTranslator as SymmetricTranslator
