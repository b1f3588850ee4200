"""The magics: what each is called, what follows it, and its options. Parsing, help and completion read this table."""

from __future__ import annotations

from magics.grammar import OUT, QUIET, Option, Spec

LIVE = ("auto", "text", "html", "mpl", "off")
PLOTS = (
    "trace", "rank", "pair", "energy", "forest", "autocorr", "ess", "ppc", "elbo",
    "weights", "filter", "evidence", "genealogy",
)  # fmt: skip
FAMILIES = ("meanfield", "fullrank", "lowrank")
RESAMPLING = ("systematic", "stratified", "residual", "multinomial")

GEN = Spec(
    "gen",
    "[NAME(PARAMS)]",
    "Define generative functions: of each top-level def of the cell, or with NAME(PARAMS) of the cell as a body.",
    (
        Option(
            ("--check",),
            "check the laws of the last one with these arguments, as (xs, ys), or of a call, as line(xs)",
            "ARGS",
            "text",
            optional=True,
        ),
        Option(("--show",), "show the sites, or the source", "WHAT", "word", ("sites", "src")),
        Option(("--new",), "a new function, also where one of this name exists"),
        QUIET,
    ),
    kind="cell",
    examples=("%%gen", "%%gen --check (xs,)", "%%gen line(xs)", "slope ~ normal(0, 10)   # in the cell"),
)
INFER = Spec(
    "infer",
    "METHOD MODEL(ARGS) | STEPS",
    "A posterior. Methods of series take steps, or a call that grows to its length, one step at a time. "
    "Without arguments the last line again; with ! and options the last line with those options changed.",
    (
        Option(("-n", "--draws"), "draws of each chain", "E"),
        Option(("-w", "--warmup"), "steps of warm-up of each chain", "E"),
        Option(("-c", "--chains"), "chains", "E"),
        Option(("-s", "--seed"), "seed of the run", "E"),
        Option(("--sel",), "the addresses that the method moves", "ADDRS", "addresses"),
        Option(("--live",), "show the run as it goes", "MODE", "word", LIVE, optional=True),
        Option(("--every",), "seconds between two pictures of the run", "SEC"),
        Option(("--time",), "stop after so many seconds", "SEC"),
        Option(("--until",), "stop when this holds, as 'rhat<1.01, ess>400'", "TEXT", "text"),
        Option(("--target-accept",), "acceptance that warm-up aims at", "E"),
        Option(("--step",), "step size", "E"),
        Option(("--L",), "leapfrog steps of a trajectory", "E"),
        Option(("--max-depth",), "a trajectory of nuts has fewer than 2^E steps", "E"),
        Option(("--particles",), "particles", "E"),
        Option(("--threshold",), "resample below this share of the particles' effective size", "E"),
        Option(("--resampling",), "how to resample", "SCHEME", "word", RESAMPLING),
        Option(("--rejuvenate",), "a kernel that moves resampled particles, or addresses to draw anew", "EXPR"),
        Option(("--proposal",), "a call, or a function of the trace to one, that proposes", "EXPR"),
        Option(("--retained",), "the trace that csmc keeps", "TRACE"),
        Option(("--parameters",), "the addresses of pmmh and pgibbs that belong to no step", "ADDRS", "addresses"),
        Option(("--kernel",), "what moves the parameters of pgibbs, or the particles of tempered", "EXPR"),
        Option(("--record",), "keep what is known of these at each step: x for (t, 'x')", "ADDRS", "addresses"),
        Option(("--thin",), "keep every so many-th draw", "E"),
        Option(("--family",), "the Gaussians of vi", "FAMILY", "word", FAMILIES),
        Option(("--rank",), "dimensions of the family lowrank beside its diagonal", "E"),
        Option(("--iterations",), "iterations at most", "E"),
        Option(("--samples",), "draws for each step", "E"),
        Option(("--tolerance",), "converged where the objective rises by less; 0 makes all iterations", "E"),
        Option(("--carry",), "start from the draws of a posterior of an earlier version", "POST"),
        Option(("--save",), "save the posterior to this file", "PATH", "text"),
        Option(("--name",), "a label for the run", "TEXT", "text"),
        Option(("--dry-run",), "say what would run"),
        OUT,
        QUIET,
    ),
    given=True,
    kind="line_cell",
    examples=(
        "%infer nuts line(xs) | given y=ys -n 1000 -c 4 -o post",
        "%infer mh line(xs) | given y=ys --sel slope, intercept",
        "%infer smc walk(len(ys), 0.0) | given y=ys --particles 1000 -o pf",
        "%infer vi line(xs) | given y=ys --family fullrank -o fit",
        "%infer ! -n 5000",
    ),
)
TRACE = Spec(
    "trace",
    "MODEL(ARGS) | TRACE [ADDRESS]",
    "A run of a model, or a trace, as a tree; and what becomes of a trace when choices change.",
    (
        Option(("--set",), "update these choices", "ADDRESS=VALUE, ...", "text"),
        Option(("--redo",), "draw these choices again", "ADDRS", "addresses"),
        Option(("--diff",), "the differences of two traces, choice maps or posteriors"),
        Option(("--rebase",), "its choices under the current version of the model"),
        Option(("--lp",), "every log density: nothing folded, arrays by element"),
        Option(("--max",), "rows to show, in place of 40; nothing is folded", "N"),
        Option(("--depth",), "levels to show, in place of 4", "D"),
        Option(("--stats",), "mean, deviation and range of arrays"),
        Option(("--src",), "the source of the model as well"),
        Option(("-s", "--seed"), "seed of the run", "E"),
        OUT,
        QUIET,
    ),
    given=True,
    examples=(
        "%trace line(xs) | given y=ys",
        "%trace _tr --set slope=2.5",
        "%trace --diff a b",
        "%trace _tr y --max 50",
        "%trace old --rebase -o new",
    ),
)
GFI = Spec(
    "gfi",
    "MODEL(ARGS)",
    "Check the laws of the generative function interface on a model: law, largest error, verdict.",
    (
        Option(("--n",), "traces to try", "N"),
        Option(("--laws",), "only these laws", "NAMES", "text"),
        Option(("-s", "--seed"), "seed", "E"),
    ),
    given=True,
    examples=("%gfi line(xs) --n 20",),
)
SITES = Spec("sites", "MODEL(ARGS)", "The addresses of a model: distribution, shape, support.", (), given=True)
DIAG = Spec(
    "diag",
    "[POST] [ADDRESSES]",
    "What a posterior is worth: a table, and what to do where something is wrong.",
    (
        Option(("--worst",), "so many addresses, worst first", "N"),
        Option(("--all",), "every address"),
    ),
    examples=("%diag post", "%diag post tau, mu"),
)
PLOT = Spec(
    "plot",
    "[POST] [ADDRESSES]",
    "A figure of a posterior.",
    (
        Option(("--kind",), "what to draw", "KIND", "word", PLOTS),
        Option(("--save",), "write the figure to this file", "PATH", "text"),
        Option(("--max",), "addresses at most", "N"),
        OUT,
    ),
    examples=("%plot post", "%plot post tau, mu --kind pair", "%plot post --kind forest --save forest.png"),
)
MEM = Spec(
    "mem",
    "[on | off | line | auto | toolbar]",
    "The memory of MLX, what holds it, and the line after each cell.",
    (
        Option(("--top",), "the largest so many values", "N"),
        Option(("--clear",), "empty MLX's cache, and collect garbage"),
        Option(("--limit",), "limit of MLX's cache, as 4GB", "SIZE", "text"),
        Option(("--reset",), "begin the peak anew"),
    ),
    examples=("%mem", "%mem --top 10", "%mem off"),
)
RELOAD = Spec(
    "reload",
    "[MODULE ...]",
    "Run changed files again, those that import them included.",
    (
        Option(("--all",), "every watched module, changed or not"),
        Option(("--dry",), "say what would be run"),
        Option(("-v", "--verbose"), "show how the sites have changed"),
    ),
)
WATCH = Spec(
    "watch",
    "[MODULE | PATH | EXPRESSION ...]",
    "Look at more files before each cell; without arguments, list them.",
    (Option(("--off",), "look at these no longer, or at none"), Option(("--list",), "list what is looked at")),
    examples=("%watch models.py", "%watch path", "%watch (folder / 'models.py')", "%watch --off"),
)
MODELS = Spec("models", "", "The models of the session: version, where it was defined, sites, whether it is stale.")
TAPS = Spec(
    "taps",
    "[LABEL]",
    "The values that tap(value, label) has seen, the latest last.",
    (Option(("--live",), "print each as it comes; once more ends that"), Option(("--clear",), "forget them")),
)
SEED = Spec("seed", "[N]", "Set the seed of the session's random numbers; without a number, show it.")
BENCH = Spec(
    "bench",
    "[STATEMENT]",
    "Time a cell with its arrays evaluated: first run, best, median, and memory.",
    (
        Option(("-n", "--runs"), "runs; by default as many as fit in a second", "N"),
        Option(("--setup",), "run this first, untimed", "CODE", "text"),
        OUT,
    ),
    kind="line_cell",
)

SPECS = {
    spec.name: spec
    for spec in (
        GEN, INFER, TRACE, GFI, SITES, DIAG, PLOT, MEM, RELOAD, WATCH, MODELS, TAPS, SEED, BENCH,
    )
}  # fmt: skip

WHERE = {
    "gen": "magics.define:DefineMagics",
    "gfi": "magics.define:DefineMagics",
    "sites": "magics.define:DefineMagics",
    "models": "magics.define:DefineMagics",
    "infer": "magics.infer:InferMagics",
    "trace": "magics.look:LookMagics",
    "diag": "magics.diagnose:DiagnoseMagics",
    "plot": "magics.diagnose:DiagnoseMagics",
    "mem": "magics.memory:MemoryMagics",
    "reload": "magics.reloading:ReloadMagics",
    "watch": "magics.reloading:ReloadMagics",
    "taps": "magics.tools:ToolMagics",
    "seed": "magics.tools:ToolMagics",
    "bench": "magics.tools:ToolMagics",
}
"""The class that implements each magic, imported when it is first used."""
