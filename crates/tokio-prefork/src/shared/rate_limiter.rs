//! Rate limits for the whole cluster.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::gcra::TokenRate;
use super::memory::{self, PieceLayout};
use super::shared_hasher::{HASH_KEY_WORDS, SharedHasher};
use super::{SharedCounter, registry};
use crate::error::{Error, Result};

/// A token bucket for the whole cluster.
///
/// In any time span `t`, all workers together are admitted at most `burst + rate * t` times. Tokens are not divided among the
/// workers. The state is one atomic word, so a worker that is killed has taken its token or has not. Admissions and refusals are
/// counted as `NAME_admitted` and `NAME_refused`. Time is the monotonic clock, so changes of the date have no effect.
///
/// ```
/// use std::time::Duration;
/// use tokio_prefork::RateLimiter;
///
/// let mails = RateLimiter::new("mails", 100, Duration::from_secs(60), 2)?;
/// assert!(mails.try_acquire(2).is_ok());
/// let refused = mails.try_acquire(1).unwrap_err();
/// assert!(refused.retry_after().expect("soon") <= Duration::from_millis(600));
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct RateLimiter(&'static TokenBuckets);

/// A [`RateLimiter`] per key, such as a client address, in memory of a fixed size.
///
/// The hash of a key selects its bucket. Keys with the same bucket share its rate, so a key may get less than its rate but never
/// more, and no client can fill a table. Use several times as many buckets as there are active keys: with 16 times as many, about 6
/// of 100 keys share a bucket. The hash is randomly keyed, the same in all workers, so clients cannot provoke collisions.
///
/// ```
/// use std::time::Duration;
/// use tokio_prefork::KeyedRateLimiter;
///
/// let clients = KeyedRateLimiter::new("clients", 10, Duration::from_secs(1), 1, 65_536)?;
/// assert!(clients.try_acquire("192.0.2.1", 1).is_ok());
/// assert!(clients.try_acquire("192.0.2.1", 1).is_err());
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct KeyedRateLimiter(&'static TokenBuckets);

/// Not enough tokens were available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rate limit is reached")]
pub struct RateLimited {
    retry_after: Option<Duration>,
}

/// The buckets of one limiter.
struct TokenBuckets {
    token_rate: TokenRate,
    hasher: SharedHasher,
    /// The theoretical arrival time of each bucket, in monotonic nanoseconds.
    words: &'static [AtomicU64],
    admitted: SharedCounter,
    refused: SharedCounter,
}

impl RateLimiter {
    /// Declares a limiter of `rate` tokens per `per`, with up to `burst` at once. Call it before the cluster serves.
    ///
    /// The bucket is full at first. The time per token is rounded up to whole nanoseconds.
    ///
    /// # Errors
    /// A number is zero, or an empty bucket would take more than a hundred years to refill; the name is taken or not a valid metric
    /// name, this is a worker process, or memory is short.
    pub fn new(name: &str, rate: u32, per: Duration, burst: u32) -> Result<RateLimiter> {
        TokenBuckets::new(name, rate, per, burst, 1).map(RateLimiter)
    }

    /// Takes `n` tokens, all or none. Never waits.
    ///
    /// # Errors
    /// The tokens are not available now.
    pub fn try_acquire(&self, n: u32) -> Result<(), RateLimited> {
        self.0.try_take(0, n)
    }
}

impl KeyedRateLimiter {
    /// Declares a limiter as [`RateLimiter::new`] does, with `buckets` buckets of 8 bytes.
    ///
    /// # Errors
    /// As [`RateLimiter::new`]; or `buckets` is zero or more than 2^27.
    pub fn new(
        name: &str,
        rate: u32,
        per: Duration,
        burst: u32,
        buckets: usize,
    ) -> Result<KeyedRateLimiter> {
        TokenBuckets::new(name, rate, per, burst, buckets).map(KeyedRateLimiter)
    }

    /// Takes `n` tokens of `key`, all or none. Never waits.
    ///
    /// # Errors
    /// The tokens are not available now.
    pub fn try_acquire<K: Hash + ?Sized>(&self, key: &K, n: u32) -> Result<(), RateLimited> {
        let buckets = self.0.words.len() as u64;
        self.0.try_take((self.0.hasher.hash_one(key) % buckets) as usize, n)
    }
}

impl RateLimited {
    /// Returns how long to wait until the tokens are available if no others are taken, for a `Retry-After` header.
    ///
    /// `None` if they never will be, because the bucket holds fewer.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl TokenBuckets {
    fn new(
        name: &str,
        rate: u32,
        per: Duration,
        burst: u32,
        buckets: usize,
    ) -> Result<&'static TokenBuckets> {
        let name = registry::validate_name(name)?;
        let token_rate = TokenRate::new(rate, per, burst).ok_or_else(|| {
            Error::config(format!(
                "cannot declare the rate limiter {name:?} of {rate} in {per:?} with a burst of {burst}: no number may be 0, and \
                 an empty bucket must refill within a hundred years"
            ))
        })?;
        if buckets == 0 || buckets > 1 << 27 {
            return Err(Error::config(format!(
                "cannot declare the rate limiter {name:?} with {buckets} buckets: use 1 to {}",
                1 << 27
            )));
        }
        // Another rate is no other layout: under any rate, the state says when the bucket is full again.
        let words = HASH_KEY_WORDS + buckets;
        let piece =
            memory::allocate(name, PieceLayout { kind: "rate limiter", layout: "1", words })?;
        let buckets = TokenBuckets {
            token_rate,
            hasher: SharedHasher::new(piece)?,
            words: &piece.words[HASH_KEY_WORDS..],
            admitted: SharedCounter::new(&format!("{name}_admitted"))?,
            refused: SharedCounter::new(&format!("{name}_refused"))?,
        };
        Ok(Box::leak(Box::new(buckets)))
    }

    fn try_take(&self, bucket: usize, n: u32) -> Result<(), RateLimited> {
        let word = &self.words[bucket];
        // Relaxed: the word is the whole state, and no other memory is read because of it. A failed swap means that another
        // worker took tokens, so the cluster as a whole makes progress.
        let mut state = word.load(Relaxed);
        let retry_after = loop {
            // Read the clock after the state, in each iteration: see `TokenRate::try_take`.
            match self.token_rate.try_take(state, prefork_os::system::monotonic_ns(), n) {
                Some(Ok(after)) => match word.compare_exchange_weak(state, after, Relaxed, Relaxed)
                {
                    Ok(_) => {
                        self.admitted.add(n.into());
                        return Ok(());
                    }
                    Err(current) => state = current,
                },
                Some(Err(wait)) => break Some(wait),
                None => break None,
            }
        };
        self.refused.add(n.into());
        Err(RateLimited { retry_after })
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RateLimiter({:?})", self.0.token_rate)
    }
}

impl fmt::Debug for KeyedRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedRateLimiter({:?}, {} buckets)", self.0.token_rate, self.0.words.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn threads_together_get_exactly_the_burst() {
        let limiter = RateLimiter::new("limiter_threads", 1, DAY, 1000).expect("limiter");
        let take = || (0..2000).filter(|_| limiter.try_acquire(1).is_ok()).count();
        let taken = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|t| t.join().expect("thread")).sum::<usize>()
        });
        assert_eq!(taken, 1000);
        assert_eq!((limiter.0.admitted.value(), limiter.0.refused.value()), (1000, 7000));
    }

    #[test]
    fn tokens_are_taken_all_or_none() {
        let limiter = RateLimiter::new("limiter_all", 1, DAY, 5).expect("limiter");
        assert!(limiter.try_acquire(3).is_ok());
        assert!(limiter.try_acquire(3).expect_err("2 are left").retry_after().is_some());
        assert_eq!(limiter.try_acquire(6).expect_err("too many").retry_after(), None);
        assert!(limiter.try_acquire(2).is_ok());
    }

    #[test]
    fn keys_have_separate_buckets_unless_their_hashes_collide() {
        let many = KeyedRateLimiter::new("limiter_many", 1, DAY, 1, 1 << 20).expect("limiter");
        // The hash is random per process, so the test selects 100 keys without collisions.
        let mut buckets = HashSet::new();
        let mut is_alone = |key: &u32| buckets.insert(many.0.hasher.hash_one(key) % (1 << 20));
        let keys: Vec<u32> = (0..u32::MAX).filter(|key| is_alone(key)).take(100).collect();
        assert!(keys.iter().all(|key| many.try_acquire(key, 1).is_ok()));
        assert!(keys.iter().all(|key| many.try_acquire(key, 1).is_err()));
        let one = KeyedRateLimiter::new("limiter_one", 1, DAY, 1, 1).expect("limiter");
        assert!(one.try_acquire("a", 1).is_ok() && one.try_acquire("b", 1).is_err());
    }

    #[test]
    fn zero_and_excessive_numbers_are_rejected() {
        for (rate, burst, buckets) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, (1 << 27) + 1)] {
            let error = KeyedRateLimiter::new("limiter_bad", rate, DAY, burst, buckets);
            let error = error.expect_err("refused").to_string();
            assert!(error.contains("\"limiter_bad\""), "{error}");
        }
    }
}
