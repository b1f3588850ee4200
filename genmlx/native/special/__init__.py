"""Operations that have loops of their own: ``SPECIAL[op](emitter, node)`` writes the code that fills its buffer."""

from genmlx.native.special import assembled, factorised, normalised, products, scattered, sorting, threefry

SPECIAL = {
    **assembled.RULES,
    **factorised.RULES,
    **normalised.RULES,
    **products.RULES,
    **scattered.RULES,
    **sorting.RULES,
    **threefry.RULES,
}
