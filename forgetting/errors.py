"""The errors of this package. Each message says what was expected, what was found, and where."""


class ForgettingError(Exception):
    """Base of every error that a caller should show to a person."""


class BackboneError(ForgettingError):
    """The backbone can't be loaded, is damaged, or isn't a ViT that can be adapted."""


class TargetError(ForgettingError):
    """What an adapter changes (FFN linears, the place of a feature edit) isn't in the model."""


class AdapterError(ForgettingError):
    """An adapter's files are incomplete, damaged, or made for another backbone."""


class DataError(ForgettingError):
    """Images or labels can't be used as they are."""


class TrainingError(ForgettingError):
    """Training gave no result that may be published (NaN loss, no group left, ...)."""
