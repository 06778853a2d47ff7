"""The control actor: it carries out operators' commands, runs forget jobs and reports on them."""
