"""The models that are taught: plain modules `forward(x, with_embedding=False)`, without training code.

None of them changes a tensor in place or branches on values, so that `torch.func`, double backward and forward-mode
differentiation go through them.
"""
