//! Random order of measurements, from a seed that the report names.

use prefork_os::system::random_u64;

/// A generator of pseudorandom numbers: SplitMix64 (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
///
/// Not for secrets. It is small, and the same seed gives the same order everywhere.
#[derive(Debug, Clone)]
pub(crate) struct RandomOrder {
    state: u64,
}

impl RandomOrder {
    /// Returns a seed from the kernel, small enough to be exact as a number in JSON.
    pub(crate) fn new_seed() -> std::io::Result<u64> {
        Ok(random_u64()? >> 12)
    }

    pub(crate) fn from_seed(seed: u64) -> RandomOrder {
        RandomOrder { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns 0 to `count - 1` in random order.
    pub(crate) fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            // The bias of a remainder is below 2^-50 for any number of servers.
            order.swap(at, (self.next() % (at as u64 + 1)) as usize);
        }
        order
    }
}

#[cfg(test)]
impl RandomOrder {
    /// Returns a number from 0 to 1, without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number of the normal distribution with mean 0 and deviation 1 (Box and Muller, 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_reference_implementation() {
        let mut random = RandomOrder::from_seed(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973];
        assert_eq!([random.next(), random.next()], expected);
    }

    #[test]
    fn every_order_is_equally_frequent() {
        let mut random = RandomOrder::from_seed(7);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            *counts.entry(random.shuffled(3)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
