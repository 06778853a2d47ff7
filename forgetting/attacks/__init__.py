"""What an attacker who holds the model can win back of a forgotten class.

The figures are upper bounds of nothing: identity features generalise, and a model that never saw
a class scores well above zero. Read them as excess over such a model (`leak.excess`).
"""
