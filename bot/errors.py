"""Every exception of frontdesk, in one tree. A docstring says what happened; the message says where and what to do."""

from __future__ import annotations


class FrontdeskError(Exception):
    """Something a person can read: one sentence that says what was wrong, where, and what to do."""


# -- set-up: shown to the owner, the command ends --------------------------------------------------


class ConfigError(FrontdeskError):
    """A setting is missing, unknown or out of range."""


class ModelUnavailable(FrontdeskError):
    """The model is neither on this disk nor reachable, or what is there cannot be loaded."""


class DataError(FrontdeskError):
    """A file of the owner's that is to be read is not what it should be."""


class DatabaseUnavailable(FrontdeskError):
    """The database cannot be opened, is of another version, or is owned by another process."""


class DatabaseInUse(DatabaseUnavailable):
    """Another process writes to the database."""


class Stopping(DatabaseUnavailable):
    """The front desk closes: it accepts nothing more, and the platform will deliver again later."""


# -- the engine ------------------------------------------------------------------------------------


class EngineError(FrontdeskError):
    """The model failed on one request: it raised, or produced numbers that are not numbers."""


class DeadlineExceeded(EngineError):
    """The model had not produced anything when the deadline of the request passed."""


class EngineClosed(EngineError):
    """The engine was asked after it had been closed."""


# -- the queue -------------------------------------------------------------------------------------


class LeaseLost(FrontdeskError):
    """Another worker holds the job now: whatever this one produced must not be stored."""


# -- delivery: what an adapter raises from send() --------------------------------------------------


class DeliveryError(FrontdeskError):
    """A message did not verifiably arrive at its platform."""


class RetryLater(DeliveryError):
    """The platform took nothing and may take it later: a flood limit, a refused connection.

    `after` is the platform's own delay in seconds, or None when it named none.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class ChatMoved(DeliveryError):
    """The platform took nothing, because the chat has a new id, which is `chat`."""

    def __init__(self, message: str, chat: str) -> None:
        super().__init__(message)
        self.chat = chat


class OutcomeUnknown(DeliveryError):
    """The request left, the answer did not come: the platform may or may not have the message."""


class Undeliverable(DeliveryError):
    """The platform refused for good: blocked, deleted, archived, revoked, malformed."""
