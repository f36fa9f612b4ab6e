"""C2FNAS: coarse to fine, topology first and operators second (Yu et al., CVPR 2020)."""
