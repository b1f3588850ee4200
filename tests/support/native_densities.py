"""Log densities in restricted Python, for the samplers that are machine code."""

import ctypes
import math

import numpy as np
from posteriors import COVARIANCE, ERRORS, MEAN, SCHOOLS

from genmlx.native import llvm
from genmlx.native.chains import Density
from genmlx.native.restricted import Address, Single, translate


def gaussian(
    inputs: list[list[float]], outputs: list[list[float]], constants: list[list[float]], scratch: Address
) -> None:
    """Of a mean and a precision [3, 3], its constants."""
    u, gradient, mean, precision = inputs[0], outputs[1], constants[0], constants[1]
    value = 0.0
    for i in range(3):
        gradient[i] = 0.0
        for j in range(3):
            gradient[i] -= precision[3 * i + j] * (u[j] - mean[j])
        value += 0.5 * (u[i] - mean[i]) * gradient[i]
    outputs[0][0] = value


def gaussian_value(
    inputs: list[list[float]], outputs: list[list[float]], constants: list[list[float]], scratch: Address
) -> None:
    """That, without its gradient; summed in the same order."""
    u, mean, precision = inputs[0], constants[0], constants[1]
    value = 0.0
    for i in range(3):
        slope = 0.0
        for j in range(3):
            slope -= precision[3 * i + j] * (u[j] - mean[j])
        value += 0.5 * (u[i] - mean[i]) * slope
    outputs[0][0] = value


def schools(
    inputs: list[list[float]], outputs: list[list[float]], constants: list[list[float]], scratch: Address
) -> None:
    """mu, log tau and z [8]: ``posteriors.eight_schools`` without what does not depend on them."""
    u, gradient, y, sigma = inputs[0], outputs[1], constants[0], constants[1]
    mu, tau = u[0], math.exp(u[1])
    squared = tau * tau / 25.0
    value = -mu * mu / 50.0 - math.log(1.0 + squared) + u[1]
    by_mu, by_tau = -mu / 25.0, 1.0 - 2.0 * squared / (1.0 + squared)
    for i in range(8):
        z = u[i + 2]
        off = (y[i] - mu - tau * z) / sigma[i]
        pull = off / sigma[i]
        value -= 0.5 * (z * z + off * off)
        by_mu += pull
        by_tau += pull * tau * z
        gradient[i + 2] = pull * tau - z
    gradient[0] = by_mu
    gradient[1] = by_tau
    outputs[0][0] = value


def schools32(
    inputs: list[list[Single]], outputs: list[list[Single]], constants: list[list[float]], scratch: Address
) -> None:
    """That of 32 bits at its ends."""
    u, gradient, y, sigma = inputs[0], outputs[1], constants[0], constants[1]
    mu, tau = u[0], math.exp(u[1])
    squared = tau * tau / 25.0
    value = -mu * mu / 50.0 - math.log(1.0 + squared) + u[1]
    by_mu, by_tau = -mu / 25.0, 1.0 - 2.0 * squared / (1.0 + squared)
    for i in range(8):
        z = u[i + 2]
        off = (y[i] - mu - tau * z) / sigma[i]
        pull = off / sigma[i]
        value -= 0.5 * (z * z + off * off)
        by_mu += pull
        by_tau += pull * tau * z
        gradient[i + 2] = pull * tau - z
    gradient[0] = by_mu
    gradient[1] = by_tau
    outputs[0][0] = value


def cliff(inputs: list[list[float]], outputs: list[list[float]], constants: Address, scratch: Address) -> None:
    """Flat up to 1 from 0, and not a number beyond."""
    inside = abs(inputs[0][0]) < 1.0
    outputs[0][0] = 0.0 if inside else math.nan
    outputs[1][0] = 0.0 if inside else math.nan


def funnel(inputs: list[list[float]], outputs: list[list[float]], constants: Address, scratch: Address) -> None:
    u, gradient = inputs[0], outputs[1]
    v, precision = u[0], math.exp(-u[0])
    squares = u[1] * u[1] + u[2] * u[2]
    outputs[0][0] = -0.5 * (v * v / 9.0 + squares * precision) - v
    gradient[0] = -v / 9.0 + 0.5 * squares * precision - 1.0
    gradient[1] = -u[1] * precision
    gradient[2] = -u[2] * precision


def native(function, dim, *constants, dtype=np.float64, gradients=True):
    """A density as machine code, with constants of float64."""
    code, arrays = llvm.load(translate(function)), [np.array(c, dtype=float) for c in constants]
    table = (ctypes.c_void_p * max(1, len(arrays)))(*[a.ctypes.data for a in arrays])
    owner = (code, arrays, table)
    return Density(
        code.address(function.__name__),
        dim,
        dtype,
        gradients,
        constants=ctypes.addressof(table),
        owner=owner,
    )


def native_gaussian(gradients=True):
    return native(gaussian, 3, MEAN, np.linalg.inv(COVARIANCE), gradients=gradients)


def native_schools(dtype):
    return native(schools32 if dtype == np.float32 else schools, 10, SCHOOLS, ERRORS, dtype=dtype)
