//! What can become of a simulated child, and the dice that decide it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGSEGV: i32 = 11;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn code(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

pub(crate) fn signal(number: i32) -> ExitStatus {
    ExitStatus::from_raw(number)
}

/// A generator of random numbers (splitmix64) of our own, so that a seed means the same world for ever.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub(crate) fn millis(&mut self, limit: u64) -> Duration {
        ms(self.below(limit))
    }
}

/// What a child does of its own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    SayReady,
    SayBootFailed,
    Retire,
    CloseChannel,
    Garble,
    End(ExitStatus),
}

/// How a child will live.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    /// How long the fork takes.
    pub(crate) fork: Duration,
    pub(crate) fork_fails: bool,
    /// Measured from the fork's return.
    pub(crate) deeds: Vec<(Duration, Deed)>,
    /// How long it takes to drain; a wedged one never does.
    pub(crate) drain: Option<Duration>,
}

impl Life {
    /// Is there and never says a word.
    pub(crate) fn hanging() -> Life {
        Life { fork: ms(0), fork_fails: false, deeds: Vec::new(), drain: Some(ms(20)) }
    }

    /// Is ready after 10 ms and serves for ever.
    pub(crate) fn serving() -> Life {
        Life::hanging().and(10, Deed::SayReady)
    }

    /// The fork itself fails.
    pub(crate) fn stillborn() -> Life {
        Life { fork_fails: true, ..Life::hanging() }
    }

    /// Does `deed` so many milliseconds after its fork.
    pub(crate) fn and(mut self, at: u64, deed: Deed) -> Life {
        self.deeds.push((ms(at), deed));
        self
    }

    /// Its fork takes so many milliseconds.
    pub(crate) fn forked_after(self, fork: u64) -> Life {
        Life { fork: ms(fork), ..self }
    }

    /// Does not drain when told to.
    pub(crate) fn wedged(self) -> Life {
        Life { drain: None, ..self }
    }

    /// Anything that can befall a worker, and `ready` in ten of them do get ready.
    pub(crate) fn random(dice: &mut Dice, ready: u64) -> Life {
        if dice.below(12) == 0 {
            return Life::stillborn().forked_after(dice.below(30));
        }
        let mut life = Life::hanging().forked_after(dice.below(3) * 10);
        let boot = dice.below(800);
        if dice.below(10) < ready {
            life = life.and(boot, Deed::SayReady);
        }
        let ends = [code(0), code(1), signal(SIGSEGV), signal(SIGKILL), signal(15)];
        let end = Deed::End(ends[dice.below(5) as usize]);
        let others =
            [end, end, Deed::Retire, Deed::CloseChannel, Deed::Garble, Deed::SayBootFailed];
        for _ in 0..dice.below(4) {
            let at = if dice.below(3) == 0 { dice.below(boot + 1) } else { dice.below(8000) };
            life = life.and(at, others[dice.below(6) as usize]);
        }
        if dice.below(4) == 0 { life.wedged() } else { life }
    }
}
