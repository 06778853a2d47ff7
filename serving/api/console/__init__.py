"""The console: one page for operators, made of the static files in this folder.

`readings` turns the metrics page into its numbers, `erasures` the ledger's fold into its rows;
`serving.api.routes.console` serves all of it.
"""
