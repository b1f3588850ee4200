"""Combinators: generative functions made from others, one per file."""

from genmlx.combinators.map_over import map_over as map_over
from genmlx.combinators.mask import mask as mask
from genmlx.combinators.mix import mix as mix
from genmlx.combinators.scan import scan as scan
from genmlx.combinators.switch import switch as switch
from genmlx.combinators.unfold import unfold as unfold
from genmlx.combinators.vmap import repeat as repeat
from genmlx.combinators.vmap import vmap as vmap
from genmlx.combinators.wrapped import contramap as contramap
from genmlx.combinators.wrapped import dimap as dimap
from genmlx.combinators.wrapped import map_retval as map_retval
from genmlx.combinators.wrapped import recurse as recurse
