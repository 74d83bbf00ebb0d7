use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::shared::live_processes::ProcessIdentity;

const DEAD_PROCESS: u64 = 5 * 1024 + 1023;

fn nanoseconds(ns: u64) -> Option<Duration> {
    Some(Duration::from_nanos(ns))
}

#[test]
fn a_value_can_be_read_until_it_expires() {
    let cache = SharedCache::new("cache_expiry", 8, 64).expect("cache");
    assert_eq!(cache.get_at(b"k", 100), None);
    cache.insert_at(b"k", b"value", nanoseconds(50), 100).expect("stored");
    assert_eq!(cache.get_at(b"k", 149).as_deref(), Some(&b"value"[..]));
    assert_eq!(cache.get_at(b"k", 150), None);
    cache.insert_at(b"k", b"", None, 150).expect("stored");
    assert_eq!(cache.get_at(b"k", u64::MAX - 1).as_deref(), Some(&b""[..]));
    assert_eq!((cache.0.hits.value(), cache.0.misses.value()), (2, 2));
}

#[test]
fn a_too_large_value_is_rejected_and_the_previous_one_removed() {
    let cache = SharedCache::new("cache_large", 8, 10).expect("cache");
    assert_eq!(cache.insert(b"12345", b"12345", None), Ok(()));
    assert_eq!(cache.insert(b"12345", b"123456", None), Err(CacheWriteError::TooLarge));
    assert_eq!(cache.get(b"12345"), None);
    assert_eq!(cache.insert(&[0; 11], b"", None), Err(CacheWriteError::TooLarge));
    assert!(cache.is_empty());
}

#[test]
fn entries_that_are_read_are_not_evicted() {
    let cache = SharedCache::new("cache_clock", 8, 16).expect("cache");
    for key in 0..8u8 {
        cache.insert(&[key], &[key], None).expect("stored");
    }
    for new in 8..40u8 {
        assert!(cache.get(&[3]).is_some(), "it was read after each insertion");
        cache.insert(&[new], &[new], None).expect("stored");
    }
    assert_eq!((cache.len(), cache.capacity(), cache.0.evictions.value()), (8, 8, 32));
    cache.clear().expect("cleared");
    assert!(cache.is_empty());
}

#[test]
fn an_expired_entry_is_replaced_first() {
    let cache = SharedCache::new("cache_first", 8, 16).expect("cache");
    for key in 0..8u8 {
        let ttl = if key == 5 { nanoseconds(10) } else { None };
        cache.insert_at(&[key], &[key], ttl, 100).expect("stored");
    }
    cache.insert_at(b"new", b"", None, 110).expect("stored");
    let left = (0..8u8).filter(|key| cache.get_at(&[*key], 110).is_some()).count();
    assert_eq!((left, cache.0.evictions.value()), (7, 0));
}

#[test]
fn a_half_written_entry_of_a_dead_writer_is_a_miss_and_is_repaired() {
    let cache = SharedCache::new("cache_dead", 8, 64).expect("cache");
    cache.insert(b"whole", b"stays", None).expect("stored");
    cache.insert(b"torn", b"is lost", None).expect("stored");
    let hash = cache.0.hasher.hash_one(b"torn".as_slice());
    assert!(!cache.0.processes.is_alive(ProcessIdentity(DEAD_PROCESS)));
    cache
        .set(hash)
        .entries()
        .find(|entry| entry.has_key(hash, b"torn"))
        .expect("there")
        .write_half_for_test();
    cache.set(hash).set_lock_holder(DEAD_PROCESS);
    assert_eq!(cache.get(b"torn"), None);
    assert_eq!(cache.get(b"whole").as_deref(), Some(&b"stays"[..]));
    cache.insert(b"new", b"fits", None).expect("the lock of the dead is no obstacle");
    assert_eq!(cache.get(b"new").as_deref(), Some(&b"fits"[..]));
    assert_eq!((cache.len(), cache.0.repairs.value()), (2, 1));
}

#[test]
fn a_live_writer_that_does_not_finish_makes_others_fail_with_busy() {
    let cache = SharedCache::new("cache_busy", 8, 64).expect("cache");
    cache.insert(b"k", b"old", None).expect("stored");
    let current = cache.0.processes.current_process().expect("a row");
    cache.set(0).set_lock_holder(current.0);
    assert_eq!(cache.insert(b"k", b"new", None), Err(CacheWriteError::Busy));
    assert_eq!(cache.remove(b"k"), Err(CacheWriteError::Busy));
    assert_eq!(cache.get(b"k").as_deref(), Some(&b"old"[..]), "readers do not look at the lock");
}

#[test]
fn corrupted_memory_does_not_crash() {
    let cache = SharedCache::new("cache_garbage", 16, 40).expect("cache");
    for (i, word) in cache.0.words.iter().enumerate() {
        word.store((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), Ordering::Relaxed);
    }
    for key in 0..100u8 {
        let _ = cache.get(&[key]);
        let _ = cache.insert(&[key], &[key], None);
        let _ = cache.remove(&[key]);
    }
    assert!(cache.len() <= 16);
}

#[test]
fn zero_and_excessive_sizes_are_rejected() {
    for (entries, bytes) in [(0, 1), (1, 0), (1, MAX_ENTRY_BYTES + 1), (usize::MAX, 1000)] {
        let error = SharedCache::new("cache_bad", entries, bytes).expect_err("refused");
        assert!(error.to_string().contains("\"cache_bad\""), "{error}");
    }
}

/// Creates a value whose words are all the same, so that a mix of two values is noticed.
fn test_value(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + number as usize % 50)
}

fn is_consistent_value(value: &[u8]) -> bool {
    let Some(first) = value.first_chunk::<8>() else { return false };
    value == test_value(u64::from_le_bytes(*first))
}

#[test]
fn readers_never_see_a_mix_of_two_values() {
    let cache = SharedCache::new("cache_mix", 8, 500).expect("cache");
    let stop = AtomicBool::new(false);
    let write = |from: u64| {
        for number in (from..from + 4_000).chain([from]) {
            let _ = cache.insert(&[(number % 4) as u8], &test_value(number), None);
        }
        stop.store(true, Ordering::Relaxed);
    };
    let read = || {
        let mut seen = 0;
        while !stop.load(Ordering::Relaxed) || seen == 0 {
            for value in (0..4u8).filter_map(|key| cache.get(&[key])) {
                assert!(is_consistent_value(&value), "{value:?}");
                seen += 1;
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(1 << 20));
        scope.spawn(|| write(1 << 40));
        scope.spawn(read);
        scope.spawn(read);
    });
}

#[derive(Debug, Clone)]
enum CacheOperation {
    Insert { key: u8, value: Vec<u8>, ttl: Option<u64> },
    Get(u8),
    Remove(u8),
    Clear,
    Wait(u64),
}

fn cache_operation() -> impl Strategy<Value = CacheOperation> {
    let value = proptest::collection::vec(any::<u8>(), 0..40);
    let ttl = proptest::option::of(1..100u64);
    prop_oneof![
        8 => (0..40u8, value, ttl).prop_map(|(key, value, ttl)| CacheOperation::Insert { key, value, ttl }),
        8 => (0..40u8).prop_map(CacheOperation::Get),
        2 => (0..40u8).prop_map(CacheOperation::Remove),
        1 => Just(CacheOperation::Clear),
        4 => (1..60u64).prop_map(CacheOperation::Wait),
    ]
}

/// Returns keys of varying length, at most `per_set` per set. The hash is random per process, so the keys are selected.
fn choose_keys(cache: SharedCache, per_set: usize) -> Vec<Vec<u8>> {
    let mut used = vec![0; cache.0.sets];
    let candidates = (0..u32::MAX).map(|n| {
        let padding = [0xaa].repeat(n as usize % 16);
        [&n.to_le_bytes()[..], &padding].concat()
    });
    let mut has_room = |key: &Vec<u8>| {
        let set =
            &mut used[(cache.0.hasher.hash_one(key.as_slice()) % cache.0.sets as u64) as usize];
        *set += 1;
        *set <= per_set
    };
    let most = per_set.saturating_mul(cache.0.sets).min(40);
    candidates.filter(|key| has_room(key)).take(most).collect()
}

/// Runs operations on a cache and on a map. They may differ only by entries that the cache has evicted.
fn compare_with_map(
    cache: SharedCache,
    keys: &[Vec<u8>],
    operations: Vec<CacheOperation>,
) -> Result<(), TestCaseError> {
    let key_of = |key: u8| keys[usize::from(key)].as_slice();
    let mut model: HashMap<u8, (Vec<u8>, u64)> = HashMap::new();
    let (mut now, mut lost) = (1, 0);
    cache.clear().expect("cleared");
    let before = cache.0.evictions.value();
    for step in operations {
        match step {
            CacheOperation::Insert { key, value, ttl } => {
                let stored = cache.insert_at(key_of(key), &value, ttl.and_then(nanoseconds), now);
                let fits = key_of(key).len() + value.len() <= cache.0.bytes;
                prop_assert_eq!(stored, if fits { Ok(()) } else { Err(CacheWriteError::TooLarge) });
                model.remove(&key);
                if fits {
                    model.insert(key, (value, ttl.map_or(u64::MAX, |ttl| now + ttl)));
                }
            }
            CacheOperation::Get(key) => {
                let known = model.get(&key).filter(|(_, expiry)| *expiry > now);
                let found = cache.get_at(key_of(key), now);
                if found.is_none() && known.is_some() {
                    model.remove(&key);
                    lost += 1;
                } else {
                    prop_assert_eq!(found.as_ref(), known.map(|(value, _)| value));
                }
            }
            CacheOperation::Remove(key) => {
                let removed = cache.remove(key_of(key)).expect("free");
                prop_assert!(!removed || model.contains_key(&key));
                model.remove(&key);
            }
            CacheOperation::Clear => {
                cache.clear().expect("cleared");
                model.clear();
            }
            CacheOperation::Wait(ns) => now += ns,
        }
        prop_assert!(cache.len_at(now) <= cache.capacity());
        prop_assert!(lost <= cache.0.evictions.value() - before);
    }
    Ok(())
}

#[test]
fn the_cache_behaves_like_a_map_that_may_evict() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let operations = proptest::collection::vec(cache_operation(), 1..150);
    // Forty keys for the 16 entries of two sets.
    let small = SharedCache::new("cache_model_small", 16, 40).expect("cache");
    let many = choose_keys(small, usize::MAX);
    runner
        .run(&operations, |operations| compare_with_map(small, &many, operations))
        .expect("small");
    // As many keys in a set as it has entries: nothing may be lost.
    let roomy = SharedCache::new("cache_model_roomy", 1024, 48).expect("cache");
    let few = choose_keys(roomy, ENTRIES_PER_SET);
    runner.run(&operations, |operations| compare_with_map(roomy, &few, operations)).expect("roomy");
    assert_eq!(roomy.0.evictions.value(), 0);
}

#[test]
fn a_full_cache_evicts_one_entry_for_each_new_one() {
    let cache = SharedCache::new("cache_model_full", 16, 40).expect("cache");
    // Eight keys for each of the two sets, and then as many others, whose sets are full.
    let all = choose_keys(cache, 2 * ENTRIES_PER_SET);
    let current = choose_keys(cache, ENTRIES_PER_SET);
    assert_eq!(current.len(), 16);
    let others = all.iter().filter(|key| !current.contains(key));
    for key in &current {
        cache.insert_at(key, b"", None, 1).expect("stored");
    }
    assert_eq!((cache.len_at(1), cache.0.evictions.value()), (16, 0));
    let mut evicted = 0;
    for key in others {
        evicted += 1;
        cache.insert_at(key, b"", None, 1).expect("stored");
        assert_eq!((cache.len_at(1), cache.0.evictions.value()), (16, evicted));
    }
    assert_eq!(evicted, 16);
}
