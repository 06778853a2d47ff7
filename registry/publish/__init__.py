"""Every act that is recorded, one function each: nothing else appends to the ledger.

Each builds its record from the current state, signs it with `signer`, and returns what the fold
made of it. `actor`, `reason` and `request_id` say who did it, why, and on which request. None of
them may contain a class name, because the log can't be edited.

All raise ConflictError when the state doesn't allow the act, NotFoundError for a job or release
that doesn't exist, FormatError for an over-long or unprintable text, TrustError when `signer` may
not do this, and StoreError when the storage fails.
"""
