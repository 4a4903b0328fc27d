"""What ends a run, apart from being done."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient stopped being a number; nothing of the step was applied on any rank."""
