//! Work that computes: the tasks that the built-in application gives to the pool.

use std::fmt::Write;
use std::hint::black_box;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use tokio_prefork::pool::{CancelFlag, PoolJob};

/// The largest `/fib`: half a minute of one core.
pub(super) const LARGEST_FIB: u64 = 50;
/// The most rounds of `/hash`: some seconds of one core.
pub(super) const MOST_ROUNDS: u64 = 100_000_000;

/// Below this a Fibonacci number takes milliseconds, and nobody needs to ask whether it is still wanted.
const SMALL_FIB: u64 = 30;
/// Rounds of hashing between two such questions.
const ROUNDS: u64 = 4096;

/// The slow way, on purpose.
pub(crate) fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(black_box(n - 1)) + fib(black_box(n - 2)) }
}

/// A Fibonacci number; `None` if nobody wanted it any more.
pub(super) struct Fib(pub(super) u64);

impl PoolJob for Fib {
    type Output = Option<u64>;

    fn name() -> &'static str {
        "fib"
    }

    fn run(self, cancel: &CancelFlag<'_>) -> Option<u64> {
        fib_while(self.0, cancel)
    }
}

fn fib_while(n: u64, cancel: &CancelFlag<'_>) -> Option<u64> {
    match n {
        0..=SMALL_FIB => Some(fib(n)),
        _ if cancel.is_set() => None,
        _ => Some(fib_while(n - 1, cancel)? + fib_while(n - 2, cancel)?),
    }
}

/// SHA-256 of a body in pieces, and then of that, and so on; `None` if nobody wanted it any more.
pub(super) struct Hash {
    pub(super) pieces: Vec<Bytes>,
    pub(super) rounds: u64,
}

impl PoolJob for Hash {
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
            if round % ROUNDS == 0 && cancel.is_set() {
                return None;
            }
            hash = Sha256::digest(hash).into();
        }
        Some(hash)
    }
}

/// A line of hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
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

    fn on_pool<T: PoolJob>(task: T) -> T::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(Pool::new(PoolConfig::default()).run(task)).expect("result")
    }

    #[test]
    fn fibonacci_is_right() {
        assert_eq!((0..10).map(fib).collect::<Vec<_>>(), [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]);
        assert_eq!([31, 32].map(|n| on_pool(Fib(n))), [Some(1_346_269), Some(2_178_309)]);
    }

    #[test]
    fn hashes_are_right_however_the_body_came() {
        let hash = |pieces: &[&'static str], rounds| {
            let pieces = pieces.iter().map(|piece| Bytes::from_static(piece.as_bytes())).collect();
            hex(&on_pool(Hash { pieces, rounds }).expect("wanted"))
        };
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
        assert_eq!((hash(&["abc"], 1), hash(&["a", "", "bc"], 1)), (abc.into(), abc.into()));
        let twice = "4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358\n";
        assert_eq!(hash(&["abc"], 2), twice);
    }
}
