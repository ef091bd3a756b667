"""The checker: whether a running chat keeps what it promises, whatever is done to it meanwhile."""
