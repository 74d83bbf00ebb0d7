//! CPU-bound jobs that the built-in application runs on the CPU pool: Fibonacci numbers and repeated hashing.

use std::fmt::Write;
use std::hint::black_box;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use tokio_prefork::pool::{CancelFlag, PoolJob};

/// Largest `n` of `/fib/{n}`: takes about 30 seconds of CPU time.
pub(super) const MAX_FIB_INPUT: u64 = 50;
/// Maximum number of rounds of `/hash`: takes several seconds of CPU time.
pub(super) const MAX_HASH_ROUNDS: u64 = 100_000_000;

/// Largest Fibonacci number that is computed without checking for cancellation, as it takes only milliseconds.
const MAX_UNCANCELLABLE_FIB: u64 = 30;
/// Hashing rounds between two checks for cancellation.
const CANCEL_CHECK_ROUNDS: u64 = 4096;

/// Computes a Fibonacci number recursively, which is slow on purpose.
pub(crate) fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(black_box(n - 1)) + fib(black_box(n - 2)) }
}

/// Job that computes a Fibonacci number; returns `None` if cancelled.
pub(super) struct FibJob(pub(super) u64);

impl PoolJob for FibJob {
    type Output = Option<u64>;

    fn name() -> &'static str {
        "fib"
    }

    fn run(self, cancel: &CancelFlag<'_>) -> Option<u64> {
        fib_cancellable(self.0, cancel)
    }
}

fn fib_cancellable(n: u64, cancel: &CancelFlag<'_>) -> Option<u64> {
    match n {
        0..=MAX_UNCANCELLABLE_FIB => Some(fib(n)),
        _ if cancel.is_set() => None,
        _ => Some(fib_cancellable(n - 1, cancel)? + fib_cancellable(n - 2, cancel)?),
    }
}

/// Job that hashes a body with SHA-256, then the hash again for each further round; returns `None` if cancelled.
pub(super) struct HashJob {
    pub(super) pieces: Vec<Bytes>,
    pub(super) rounds: u64,
}

impl PoolJob for HashJob {
    type Output = Option<[u8; 32]>;

    fn name() -> &'static str {
        "hash"
    }

    fn run(self, cancel: &CancelFlag<'_>) -> Option<[u8; 32]> {
        let mut first = Sha256::new();
        for piece in self.pieces {
            first.update(&piece);
        }
        let mut hash: [u8; 32] = first.finalize().into();
        for round in 1..self.rounds {
            if round % CANCEL_CHECK_ROUNDS == 0 && cancel.is_set() {
                return None;
            }
            hash = Sha256::digest(hash).into();
        }
        Some(hash)
    }
}

/// Formats bytes as a line of hexadecimal digits.
pub(super) fn hex_line(bytes: &[u8]) -> String {
    let mut text = bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_prefork::pool::{Pool, PoolConfig};

    fn run_on_pool<T: PoolJob>(task: T) -> T::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(Pool::new(PoolConfig::default()).run(task)).expect("result")
    }

    #[test]
    fn fibonacci_numbers_are_correct() {
        assert_eq!((0..10).map(fib).collect::<Vec<_>>(), [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]);
        assert_eq!([31, 32].map(|n| run_on_pool(FibJob(n))), [Some(1_346_269), Some(2_178_309)]);
    }

    #[test]
    fn hash_does_not_depend_on_how_the_body_is_split() {
        let hash = |pieces: &[&'static str], rounds| {
            let pieces = pieces.iter().map(|piece| Bytes::from_static(piece.as_bytes())).collect();
            hex_line(&run_on_pool(HashJob { pieces, rounds }).expect("not cancelled"))
        };
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
        assert_eq!((hash(&["abc"], 1), hash(&["a", "", "bc"], 1)), (abc.into(), abc.into()));
        let twice = "4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358\n";
        assert_eq!(hash(&["abc"], 2), twice);
    }
}
