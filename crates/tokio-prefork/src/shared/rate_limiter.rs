//! So many a second, over the whole cluster.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::gcra::Rule;
use super::{SharedCounter, registry};
use crate::error::{Error, Result};

/// A token bucket for the whole cluster. Of the calls that begin and return within any span `t` it never
/// admits more than `burst + rate * t`, however many workers ask, and it admits all that it may: nothing is
/// divided among the workers.
///
/// Its state is one atomic word, changed by one instruction, so a worker that is killed has taken its token or
/// has not. What was admitted and refused is counted as `NAME_admitted` and `NAME_refused`. The time is the
/// monotonic clock: setting the date changes nothing.
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
pub struct RateLimiter(&'static Buckets);

/// A [`RateLimiter`] for each key, such as a client's address, in memory of a fixed size.
///
/// A key has its bucket by its hash. Two keys may meet in the same one and then share its rate, so a key may
/// get less than its rate but never more, and nobody can fill a table. Choose several times as many buckets as
/// there are keys at the same time: with 16 times as many, a key shares its bucket in about 6 of 100 cases. The
/// hash is keyed at random, the same in all workers, so that nobody can choose whom to meet.
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
pub struct KeyedRateLimiter(&'static Buckets);

/// No token was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rate limit is reached")]
pub struct RateLimited {
    retry_after: Option<Duration>,
}

struct Buckets {
    rule: Rule,
    hasher: RandomState,
    /// The theoretical arrival time of each bucket, in monotonic nanoseconds.
    words: &'static [AtomicU64],
    admitted: SharedCounter,
    refused: SharedCounter,
}

impl RateLimiter {
    /// Declares a limiter of `rate` in each `per`, with up to `burst` at once, before the cluster serves. It
    /// begins with a full bucket. The time between two tokens is rounded up to whole nanoseconds.
    ///
    /// # Errors
    /// A number is zero or a full bucket would take more than a hundred years; the name is taken or no name
    /// for a metric, this is a worker, or there is no memory.
    pub fn new(name: &str, rate: u32, per: Duration, burst: u32) -> Result<RateLimiter> {
        Buckets::new(name, rate, per, burst, 1).map(RateLimiter)
    }

    /// Takes `n` tokens, all or none.
    ///
    /// # Errors
    /// They are not there now.
    pub fn try_acquire(&self, n: u32) -> Result<(), RateLimited> {
        self.0.take(0, n)
    }
}

impl KeyedRateLimiter {
    /// Declares a limiter as [`RateLimiter::new`] does, with `buckets` buckets of 8 bytes.
    ///
    /// # Errors
    /// As [`RateLimiter::new`]; `buckets` is zero or more than 2^27.
    pub fn new(
        name: &str,
        rate: u32,
        per: Duration,
        burst: u32,
        buckets: usize,
    ) -> Result<KeyedRateLimiter> {
        Buckets::new(name, rate, per, burst, buckets).map(KeyedRateLimiter)
    }

    /// Takes `n` tokens of this key, all or none.
    ///
    /// # Errors
    /// They are not there now.
    pub fn try_acquire<K: Hash + ?Sized>(&self, key: &K, n: u32) -> Result<(), RateLimited> {
        let buckets = self.0.words.len() as u64;
        self.0.take((self.0.hasher.hash_one(key) % buckets) as usize, n)
    }
}

impl RateLimited {
    /// How long to wait until the tokens would be there if nobody else took them meanwhile: for a `Retry-After`
    /// header. `None` if they never will, because more were asked for than the bucket holds.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl Buckets {
    fn new(
        name: &str,
        rate: u32,
        per: Duration,
        burst: u32,
        buckets: usize,
    ) -> Result<&'static Buckets> {
        let name = registry::name(name)?;
        let rule = Rule::new(rate, per, burst).ok_or_else(|| {
            Error::config(format!(
                "the rate limiter {name:?} of {rate} in {per:?} with a burst of {burst} makes no sense: none \
                 may be 0, and an empty bucket must be full again within a hundred years"
            ))
        })?;
        if buckets == 0 || buckets > 1 << 27 {
            return Err(Error::config(format!(
                "the rate limiter {name:?} must have 1 to {} buckets, not {buckets}",
                1 << 27
            )));
        }
        let words = prefork_os::shared_memory::create_shared_words(buckets)
            .map_err(|e| Error::system(format!("get memory for the rate limiter {name:?}"), e))?;
        let buckets = Buckets {
            rule,
            hasher: RandomState::new(),
            words,
            admitted: SharedCounter::new(&format!("{name}_admitted"))?,
            refused: SharedCounter::new(&format!("{name}_refused"))?,
        };
        Ok(Box::leak(Box::new(buckets)))
    }

    fn take(&self, bucket: usize, n: u32) -> Result<(), RateLimited> {
        let word = &self.words[bucket];
        // Relaxed: the word is the whole state, no other memory is read because of it. Each turn of the loop
        // means that another worker got its tokens, so the cluster moves on in any case.
        let mut state = word.load(Relaxed);
        let retry_after = loop {
            // Read the clock after the state, in each turn: see `Rule::take`.
            match self.rule.take(state, prefork_os::system::monotonic_ns(), n) {
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
        write!(f, "RateLimiter({:?})", self.0.rule)
    }
}

impl fmt::Debug for KeyedRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedRateLimiter({:?}, {} buckets)", self.0.rule, self.0.words.len())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn threads_together_get_the_burst_and_no_more() {
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
    fn keys_have_buckets_of_their_own_unless_they_meet() {
        let many = KeyedRateLimiter::new("limiter_many", 1, DAY, 1, 1 << 20).expect("limiter");
        // Which bucket a key falls into is random in each process: 100 keys of which no two meet are chosen by it.
        let mut buckets = HashSet::new();
        let mut is_alone = |key: &u32| buckets.insert(many.0.hasher.hash_one(key) % (1 << 20));
        let keys: Vec<u32> = (0..u32::MAX).filter(|key| is_alone(key)).take(100).collect();
        assert!(keys.iter().all(|key| many.try_acquire(key, 1).is_ok()));
        assert!(keys.iter().all(|key| many.try_acquire(key, 1).is_err()));
        let one = KeyedRateLimiter::new("limiter_one", 1, DAY, 1, 1).expect("limiter");
        assert!(one.try_acquire("a", 1).is_ok() && one.try_acquire("b", 1).is_err());
    }

    #[test]
    fn numbers_without_sense_are_refused() {
        for (rate, burst, buckets) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, (1 << 27) + 1)] {
            let error = KeyedRateLimiter::new("limiter_bad", rate, DAY, burst, buckets);
            let error = error.expect_err("refused").to_string();
            assert!(error.contains("\"limiter_bad\""), "{error}");
        }
    }
}
