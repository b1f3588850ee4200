"""Learning parameters, and functions whose parameters are learnt: networks, and gradients that users give."""

from genmlx.learning.batches import Batches as Batches
from genmlx.learning.custom_gradient import CustomGradient as CustomGradient
from genmlx.learning.custom_gradient import custom_gradient as custom_gradient
from genmlx.learning.elbo import elbo as elbo
from genmlx.learning.evidence import log_evidence as log_evidence
from genmlx.learning.evidence import smc_log_evidence as smc_log_evidence
from genmlx.learning.neural import Neural as Neural
from genmlx.learning.neural import neural as neural
from genmlx.learning.objective import gradient as gradient
from genmlx.learning.rows import over_rows as over_rows
from genmlx.learning.train import Trained as Trained
from genmlx.learning.train import train as train
from genmlx.learning.wake_sleep import lecture as lecture
from genmlx.learning.wake_sleep import wake as wake
from genmlx.learning.wake_sleep import wake_sleep as wake_sleep
