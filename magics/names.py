"""Names of the language that are loaded when a cell first mentions them, so that the prompt comes at once.

Distributions, combinators and algorithms are some eighty modules. A cell that speaks of one gets it before it runs, the
distributions that ``from genmlx import *`` leaves out included; completion offers them all from the start. A name that
the user has given a value is the user's.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

import genmlx

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext
    from IPython.core.interactiveshell import InteractiveShell


def eager_names() -> dict[str, Any]:
    """`mx`, `genmlx`, and what `import genmlx` has loaded of its names."""
    import mlx.core as mx

    eager = {name: getattr(genmlx, name) for name in genmlx.__all__ if name not in genmlx.LAZY}
    return {"mx": mx, "genmlx": genmlx, **eager}


# The distributions that `from genmlx import *` leaves out.
_MORE = frozenset(
    """
    bernoulli_logits beta_binomial chi2 dirichlet_multinomial gumbel half_cauchy half_normal iid lkj_cholesky
    logistic multinomial ordered_logistic pareto product transformed truncated von_mises weibull wrapped_cauchy
    wrapped_normal zero_inflated_poisson
    """.split()
)


class LazyNames(ast.NodeTransformer):
    """Gives the namespace what a cell mentions; changes nothing in the cell."""

    def __init__(self, ip: InteractiveShell):
        self.ip = ip
        self.given: dict[str, Any] = {}

    def install(self) -> None:
        from IPython.core.completer import context_matcher

        self.matcher = context_matcher()(lambda context: self.complete(context))
        self.ip.ast_transformers.append(self)
        self.ip.Completer.custom_matchers.append(self.matcher)

    def remove(self) -> None:
        self.ip.ast_transformers.remove(self)
        self.ip.Completer.custom_matchers.remove(self.matcher)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if isinstance(node.ctx, ast.Load):
            self.give(node.id)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A magic's arguments, and the name in `normal?`, are words in a string."""
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("run_line_magic", "run_cell_magic"):
            for text in [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]:
                for word in re.findall(r"\w+", text):
                    self.give(word)
        return self.generic_visit(node)

    def give(self, name: str) -> None:
        if name not in self.ip.user_ns and (name in genmlx.LAZY or name in _MORE):
            value = getattr(genmlx if name in genmlx.LAZY else genmlx.dist, name)
            self.given[name] = self.ip.user_ns[name] = self.ip.user_ns_hidden[name] = value

    def complete(self, context: CompletionContext) -> Any:
        """Names that are not loaded yet, for a bare word."""
        from IPython.core.completer import SimpleCompletion

        word = context.token
        known = [] if not word or "." in word else [n for n in {*genmlx.LAZY, *_MORE} if n.startswith(word)]
        names = [SimpleCompletion(text=name, type="function") for name in sorted(known) if name not in self.ip.user_ns]
        return {"completions": names, "suppress": False}
