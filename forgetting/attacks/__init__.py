"""What an attacker who holds the model can win back of a forgotten class.

Features of identities generalise: a model that never saw a class scores well above zero. Every
figure is to be read as excess over such a model (`leak.excess`).
"""
