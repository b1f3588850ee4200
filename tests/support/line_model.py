"""A line through five points as cells of a shell: the model that the magics are tried on, and its data."""

LINE = """
@gen
def line(xs):
    slope = trace("slope", normal(0, 10))
    intercept = trace("intercept", normal(0, 10))
    trace("y", normal(slope * xs + intercept, 1))
    return slope
xs = mx.array([1.0, 2.0, 3.0, 4.0, 5.0])
ys = [2.1, 3.9, 6.2, 7.8, 10.1]
"""
