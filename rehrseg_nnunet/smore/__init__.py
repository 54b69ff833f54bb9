"""SMORE, the optional learnt interpolation that stage 1 can start from (paper section 4.4.1)."""
