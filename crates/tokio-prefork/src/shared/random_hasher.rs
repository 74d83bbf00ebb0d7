//! Creates randomly keyed hashers before the fork, without the side effect on hash maps.

use std::hash::RandomState;

use crate::error::{Error, Result};

/// Creates a hasher with random keys, which forked workers share.
///
/// In a thread of its own, which has ended when this returns: a thread derives the keys of all its hash maps from its first
/// ones, so keys drawn here would give every worker the same hash maps.
pub(super) fn create_random_hasher() -> Result<RandomState> {
    let thread = std::thread::Builder::new()
        .name("hash keys".to_string())
        .spawn(RandomState::new)
        .map_err(|e| Error::system("start a thread that draws hash keys", e))?;
    thread.join().map_err(|_| Error::internal("the thread that draws hash keys panicked"))
}
