"""Every MLX work-around in one place: special functions, linear algebra, samplers, transformations, the device.

MLX multiplies float32 matrices in TF32 on CUDA, and on the newest Apple GPUs: ten bits of mantissa, errors of 1e-3,
where densities are held to 1e-5. It reads ``MLX_ENABLE_TF32`` at the first product; here the default is 0. Set it
to 1 before the import to have the speed instead.
"""

import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")
