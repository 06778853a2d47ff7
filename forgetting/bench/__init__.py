"""`lethe bench forgetting`: compare all methods on the same tasks, by the same figures.

`run` computes the cells of the tables. `material` holds what all methods of a seed share; it uses
`backbones`, `recipes` and `setting`. `protocol` takes one method through the tasks; `figures` and
`leaks` measure the results. `tuning` chooses the methods' settings beforehand. `cell` and `claim`
handle the files. `summary` combines the cells for `table`, `bars` and `plots`, with `intervals`
over the seeds. `results` writes the results folder.
"""
