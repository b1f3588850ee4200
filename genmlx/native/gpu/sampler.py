"""The text of a kernel: transitions of a chain on each thread, or the density where it is placed.

A chain goes on from evaluation to evaluation of its density, as ``genmlx/native/drivers/hmc.py`` and ``walks.py`` have
it, until it has ended so many transitions, or a launch has used up what it may; its state is where it is, also in the
middle of a trajectory. Arrays are ``[row, chain]``, so that neighbouring threads read neighbouring numbers.

What a transition draws is a function of the key of its chain and of its number: Threefry-2x32 with 20 rounds (Salmon
et al. 2011), and normals by Box and Muller (1958). Noise and states are float32, energies sums with compensation.
"""

from __future__ import annotations

from string import Template

from genmlx.inference.hmc import DIVERGENT, JITTER
from genmlx.native.gpu.dialects import Dialect
from genmlx.native.gpu.text import Text

STATS = ("accept", "energy", "diverging", "n_leapfrog")
METHODS = {"hmc": 4, "mala": 2, "random_walk": 2}
"""The samplers, and how many of the statistics each has."""

INPUTS = ["settings", "state", "counts", "keys", "step_sizes", "lengths", "metric", "reals", "integers"]
OUTPUTS = ["new_state", "new_counts", "draws", "told", "scratch"]
_REGISTERS = 32  # numbers of a vector
COUNTS = 3
"""Rows of ``counts``: transitions, evaluations of the trajectory at hand, divergences."""


def rows(dim: int) -> dict[str, slice]:
    """Where each part of a chain is in the rows of its state."""
    sizes = {"position": dim, "gradient": dim, "log_prob": 1, "here": dim, "slope": dim, "momentum": dim}
    sizes |= {"energy": 1, "time": 1, "stats": len(STATS)}
    found, start = {}, 0
    for name, size in sizes.items():
        found[name] = slice(start, start + size)
        start += size
    return found


_NOISE = """
FUNCTION unsigned turned_(unsigned x, unsigned n) { return (x << n) | (x >> (32u - n)); }

FUNCTION void threefry_(unsigned first, unsigned second, PRIVATE unsigned* x, PRIVATE unsigned* y) {
  const unsigned turns[8] = {13u, 15u, 26u, 6u, 17u, 29u, 16u, 24u};
  const unsigned keys[3] = {first, second, first ^ second ^ 0x1BD11BDAu};
  unsigned a = *x + first, b = *y + second;
  UNROLL
  for (unsigned i = 0; i < 5u; ++i) {
    UNROLL
    for (unsigned j = 0; j < 4u; ++j) {
      a += b;
      b = a ^ turned_(b, turns[4u * (i % 2u) + j]);
    }
    a += keys[(i + 1u) % 3u];
    b += keys[(i + 2u) % 3u] + i + 1u;
  }
  *x = a;
  *y = b;
}

FUNCTION float unit_(unsigned word) { return multiply_(add_((float)word, 0.5f), 2.32830644e-10f); }

FUNCTION void two_units_(unsigned first, unsigned second, unsigned n, unsigned i, PRIVATE float* u, PRIVATE float* v) {
  unsigned x = n, y = i;
  threefry_(first, second, &x, &y);
  *u = unit_(x);
  *v = unit_(y);
}

FUNCTION void noise_(unsigned first, unsigned second, unsigned n, PRIVATE float* out) {
  $unroll
  for (int i = 0; i < $dim; i += 2) {
    float u, v;
    two_units_(first, second, n, 1u + (unsigned)i / 2u, &u, &v);
    const float radius = sqrt_(-2.0f * natural_log_(u));
    out[i] = radius * cospi_(2.0f * v);
    if (i + 1 < $dim) out[i + 1] = radius * sinpi_(2.0f * v);
  }
}

FUNCTION float dot_(const PRIVATE float* a, const PRIVATE float* b) {
  float total = 0.0f, lost = 0.0f;
  $unroll
  for (int i = 0; i < $dim; ++i) {
    const float value = multiply_(a[i], b[i]), after = add_(total, value), came = subtract_(after, total);
    lost = add_(lost, add_(subtract_(total, subtract_(after, came)), subtract_(value, came)));
    total = after;
  }
  return is_number_(lost) ? add_(total, lost) : total;
}

FUNCTION float acceptance_(float log_ratio) {
  return log_ratio >= 0.0f ? 1.0f : log_ratio < 0.0f ? natural_exp_(log_ratio) : 0.0f;
}
"""

_METRICS = {
    False: """
FUNCTION void momentum_(const GLOBAL float* metric, const PRIVATE float* noise, PRIVATE float* out) {
  $unroll
  for (int i = 0; i < $dim; ++i) out[i] = noise[i] * metric[$dim + i];
}

FUNCTION void velocity_(const GLOBAL float* metric, const PRIVATE float* momentum, PRIVATE float* out) {
  $unroll
  for (int i = 0; i < $dim; ++i) out[i] = momentum[i] * metric[i];
}
""",
    True: """
FUNCTION void momentum_(const GLOBAL float* metric, const PRIVATE float* noise, PRIVATE float* out) {
  for (int i = 0; i < $dim; ++i) out[i] = 0.0f;
  for (int i = 0; i < $dim; ++i)
    for (int j = 0; j < $dim; ++j) out[j] = fma_(noise[i], metric[$dim * ($dim + i) + j], out[j]);
}

FUNCTION void velocity_(const GLOBAL float* metric, const PRIVATE float* momentum, PRIVATE float* out) {
  for (int i = 0; i < $dim; ++i) out[i] = 0.0f;
  for (int j = 0; j < $dim; ++j)
    for (int i = 0; i < $dim; ++i) out[i] = fma_(momentum[j], metric[$dim * j + i], out[i]);
}
""",
}
"""Of a diagonal mass matrix, and of a dense one, which is symmetric."""

_KERNEL = """
const unsigned chain = $thread, chains = settings[0], until = settings[1], budget = settings[2], thin = settings[3];
if (chain >= chains) return;
const bool placing = settings[5] == 1u;
unsigned left = settings[4], kept = 0u;
float position[$dim], gradient[$dim], here[$dim], slope[$dim], momentum[$dim], velocity[$dim], noise[$dim], stats[4];
$unroll
for (int i = 0; i < $dim; ++i) {
  position[i] = state[(WIDE)i * chains + chain];
  gradient[i] = state[(WIDE)($dim + i) * chains + chain];
  here[i] = state[(WIDE)(2 * $dim + 1 + i) * chains + chain];
  slope[i] = state[(WIDE)(3 * $dim + 1 + i) * chains + chain];
  momentum[i] = state[(WIDE)(4 * $dim + 1 + i) * chains + chain];
}
float log_prob = state[(WIDE)(2 * $dim) * chains + chain];
float energy = state[(WIDE)(5 * $dim + 1) * chains + chain], time = state[(WIDE)(5 * $dim + 2) * chains + chain];
for (int i = 0; i < 4; ++i) stats[i] = state[(WIDE)(5 * $dim + 3 + i) * chains + chain];
unsigned taken = counts[chain], step = counts[chains + chain], divergences = counts[2 * chains + chain];
const unsigned first = keys[chain], second = keys[chains + chain], length = lengths[chain];
const float size = step_sizes[chain];

for (unsigned used = 0u; used < budget && taken < until; ++used) {
  float chance, other, value[1], joint[1];
$before
  if (placing) {
    for (int i = 0; i < $dim; ++i) here[i] = position[i];
  }
  $call
  const float there = is_number_(value[0]) ? value[0] : float_of_(0xff800000u);
  if (placing) {
    for (int i = 0; i < $dim; ++i) gradient[i] = slope[i];
    log_prob = there;
    energy = joint[0];
    break;
  }
$after
  if (ends) {
    two_units_(first, second, taken, 0u, &chance, &other);
    stats[0] = acceptance_(lost);
    if (natural_log_(chance) < lost) {
      for (int i = 0; i < $dim; ++i) {
        position[i] = here[i];
        gradient[i] = slope[i];
      }
      log_prob = there;
      stats[1] = energy_there;
    }
    divergences += stats[2] > 0.0f ? 1u : 0u;
    taken += 1u;
    step = 0u;
    left -= 1u;
    if (left == 0u) {
      left = thin;
      for (int i = 0; i < $dim; ++i) draws[((WIDE)kept * $dim + i) * chains + chain] = position[i];
      for (int i = 0; i < $names; ++i) told[((WIDE)kept * $names + i) * chains + chain] = stats[i];
      kept += 1u;
    }
  }
}
$unroll
for (int i = 0; i < $dim; ++i) {
  new_state[(WIDE)i * chains + chain] = position[i];
  new_state[(WIDE)($dim + i) * chains + chain] = gradient[i];
  new_state[(WIDE)(2 * $dim + 1 + i) * chains + chain] = here[i];
  new_state[(WIDE)(3 * $dim + 1 + i) * chains + chain] = slope[i];
  new_state[(WIDE)(4 * $dim + 1 + i) * chains + chain] = momentum[i];
}
new_state[(WIDE)(2 * $dim) * chains + chain] = log_prob;
new_state[(WIDE)(5 * $dim + 1) * chains + chain] = energy;
new_state[(WIDE)(5 * $dim + 2) * chains + chain] = time;
for (int i = 0; i < 4; ++i) new_state[(WIDE)(5 * $dim + 3 + i) * chains + chain] = stats[i];
new_counts[chain] = taken;
new_counts[chains + chain] = step;
new_counts[2 * chains + chain] = divergences;
"""

_STEPS = {
    "hmc": (
        """
  if (step == 0u) {
    two_units_(first, second, taken, 0u, &chance, &other);
    time = size * (1.0f + $jitter * (2.0f * other - 1.0f));
    noise_(first, second, taken, noise);
    momentum_(metric, noise, momentum);
    velocity_(metric, momentum, velocity);
    energy = 0.5f * dot_(momentum, velocity) - log_prob;
    for (int i = 0; i < $dim; ++i) {
      here[i] = position[i];
      slope[i] = gradient[i];
    }
  }
  for (int i = 0; i < $dim; ++i) momentum[i] = fma_(0.5f * time, slope[i], momentum[i]);
  velocity_(metric, momentum, velocity);
  for (int i = 0; i < $dim; ++i) here[i] = fma_(time, velocity[i], here[i]);
""",
        """
  for (int i = 0; i < $dim; ++i) momentum[i] = fma_(0.5f * time, slope[i], momentum[i]);
  velocity_(metric, momentum, velocity);
  const float energy_there = 0.5f * dot_(momentum, velocity) - there;
  float lost = energy - energy_there;
  const bool diverging = !(lost > -$divergent);
  step += 1u;
  const bool ends = diverging || step >= length;
  if (diverging) lost = float_of_(0xff800000u);
  stats[1] = energy;
  stats[2] = diverging ? 1.0f : 0.0f;
  stats[3] = (float)step;
""",
    ),
    "random_walk": (
        """
  noise_(first, second, taken, noise);
  momentum_(metric, noise, momentum);
  velocity_(metric, momentum, velocity);
  for (int i = 0; i < $dim; ++i) here[i] = fma_(size, velocity[i], position[i]);
""",
        """
  const float lost = there - log_prob, energy_there = -there;
  const bool ends = true;
  stats[1] = -log_prob;
""",
    ),
    "mala": (
        """
  const float half_square = 0.5f * size * size;
  noise_(first, second, taken, noise);
  momentum_(metric, noise, momentum);
  for (int i = 0; i < $dim; ++i) momentum[i] = fma_(half_square, gradient[i], size * momentum[i]);
  velocity_(metric, momentum, velocity);
  for (int i = 0; i < $dim; ++i) here[i] = position[i] + velocity[i];
""",
        """
  // log [p(y) q(x | y) / (p(x) q(y | x))] with log q(y | x) = -d C^-1 d / (2 e^2), d = y - x - e^2/2 C g(x).
  float lost = there - log_prob - 0.5f * (dot_(gradient, velocity) + dot_(slope, velocity));
  velocity_(metric, slope, noise);
  lost -= 0.5f * half_square * 0.5f * dot_(slope, noise);
  velocity_(metric, gradient, noise);
  lost += 0.5f * half_square * 0.5f * dot_(gradient, noise);
  const float energy_there = -there;
  const bool ends = true;
  stats[1] = -log_prob;
""",
    ),
}
"""What comes before an evaluation of the density at ``here``, and after it."""


def transitions(method: str, dim: int, gradients: bool, dialect: Dialect) -> str:
    """The body of the kernel."""
    before, after = _STEPS[method]
    fill = {"dim": dim, "thread": dialect.thread, "names": METHODS[method], "unroll": _unroll(dim)}
    fill["call"] = _call(gradients)
    fill |= {"jitter": f"{JITTER}f", "divergent": f"{DIVERGENT}f"}
    return Template(_KERNEL.replace("$before", before).replace("$after", after)).substitute(fill)


def header(text: Text, dim: int, dense: bool, dialect: Dialect) -> str:
    """The functions that the kernel calls."""
    mechanics = Template(_NOISE + _METRICS[dense]).substitute(dim=dim, unroll=_unroll(dim))
    return "\n".join([dialect.prelude, mechanics, text.source])


def _unroll(dim: int) -> str:
    """Asks for loops over a vector to be written out, which keeps it in registers; a long one does not fit them."""
    return "UNROLL" if dim <= _REGISTERS else ""


def _call(gradients: bool) -> str:
    slope = "slope, " if gradients else ""
    return f"density(value, {slope}joint, here, reals, integers, scratch + chain, chains);"
