"""Every MLX work-around in one place: special functions, linear algebra, samplers."""
