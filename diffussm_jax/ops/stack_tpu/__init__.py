"""A stack of blocks as TPU kernels on channel-major activations.

`layout` is the order of a chunk's lanes, which all kernels of the SSM keep; `ssm` calls
`ssm_kernels` with the sizes of `ssm_tiling` and what `ssm_tables` prepares; `gelu` is for them all.
"""
