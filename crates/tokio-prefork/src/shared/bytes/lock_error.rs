//! Why a lock on shared bytes was not simply granted.

use std::fmt;

use crate::error::Error;

/// Why a range of [`SharedBytes`](super::SharedBytes) is not locked, or is locked and may be damaged.
///
/// Converts to [`Error`] with `?`, which releases the lock and leaves the bytes poisoned.
#[non_exhaustive]
pub enum LockError<G> {
    /// The range is locked by this guard, but a process has died or panicked while it held an exclusive lock on a part of it.
    Poisoned(G),
    /// The range is not locked.
    Failed(Error),
}

impl<G> LockError<G> {
    /// Returns the guard, if the range is locked.
    pub fn into_guard(self) -> Option<G> {
        match self {
            LockError::Poisoned(guard) => Some(guard),
            LockError::Failed(_) => None,
        }
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Poisoned(_) => f.write_str(
                "the locked range of shared bytes is poisoned: a process died or panicked while it changed them; repair them and \
                 call clear_poison",
            ),
            LockError::Failed(error) => error.fmt(f),
        }
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Poisoned(_) => f.write_str("Poisoned(..)"),
            LockError::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

impl<G> std::error::Error for LockError<G> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LockError::Poisoned(_) => None,
            LockError::Failed(error) => error.source(),
        }
    }
}

impl<G> From<Error> for LockError<G> {
    fn from(error: Error) -> LockError<G> {
        LockError::Failed(error)
    }
}

impl<G> From<LockError<G>> for Error {
    fn from(error: LockError<G>) -> Error {
        match error {
            LockError::Poisoned(_) => {
                Error::application("lock a range of shared bytes", error.to_string())
            }
            LockError::Failed(error) => error,
        }
    }
}
