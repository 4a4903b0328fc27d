"""What ends a run, apart from being done."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient stopped being a number; nothing of the step was applied on any rank."""


class UnsavedError(RuntimeError):
    """The run ends here, and its last checkpoint could not be written."""
