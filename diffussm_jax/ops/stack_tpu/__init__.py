"""A stack of blocks as fused TPU kernels on channel-major activations [L b rows j].

`dense` calls the kernels of the dense layers with the sizes of `dense_tiling`, `ssm` those of the
SSM with the sizes of `ssm_tiling` and what `ssm_tables` prepares. `layout` is the order of a
chunk's lanes, which all kernels of the SSM keep.
"""
