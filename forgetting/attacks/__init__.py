"""What an attacker who holds the model can win back of a forgotten class.

Features of identities generalise, so even a model that never saw a class scores well above zero.
Read every figure as the excess over such a model (`leak.excess`).
"""
