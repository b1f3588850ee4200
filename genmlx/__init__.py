"""GenMLX: Gen's generative function interface on Apple's MLX."""

from genmlx.choicemap import ChoiceMap as ChoiceMap
from genmlx.choicemap import choicemap as choicemap
from genmlx.diff import NoChange as NoChange
from genmlx.diff import UnknownChange as UnknownChange
from genmlx.diff import VectorDiff as VectorDiff
from genmlx.dist import bernoulli as bernoulli
from genmlx.dist import flip as flip
from genmlx.dist import gaussian as gaussian
from genmlx.dist import normal as normal
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
