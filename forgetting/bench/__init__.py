"""`lethe bench forgetting`: every method, the same tasks, the same figures, honestly compared.

`run` goes through the cells; `material` is what all methods of a seed share (`backbones`,
`recipes`, `setting`), `protocol` takes one method through the tasks, `figures` and
`leaks` measure it, `tuning` chooses settings beforehand. `cell` and `claim` are the files.
`summary` puts cells together for `table`, `bars` and `plots`, with `intervals` over the seeds;
`results` writes the folder.
"""
