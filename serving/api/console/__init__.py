"""The console: one page for operators, made of the static files in this folder.

`readings` makes its numbers from the metrics page, `erasures` its rows from the ledger's fold.
`serving.api.routes.console` serves all of it.
"""
