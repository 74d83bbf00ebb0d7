//! What can become of a simulated child, and the dice that decide it.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

pub const SIGABRT: i32 = 6;
pub const SIGKILL: i32 = 9;
pub const SIGSEGV: i32 = 11;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn code(code: i32) -> ExitStatus {
    ExitStatus::from_raw(code << 8)
}

pub fn signal(number: i32) -> ExitStatus {
    ExitStatus::from_raw(number)
}

/// A generator of random numbers (splitmix64) of our own, so that a seed means the same world for ever.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub fn millis(&mut self, limit: u64) -> Duration {
        ms(self.below(limit))
    }
}

/// What a child does of its own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    SayOnline,
    SayReady,
    SayBootFailed,
    /// It is given work that may kill it.
    Work,
    Retire,
    Disconnect,
    CloseChannel,
    Garble,
    /// Its event loop turns no more.
    Freeze,
    /// It turns again.
    Thaw,
    /// A signal stops it, which the kernel tells.
    Stop,
    /// It goes on, which the kernel tells as well.
    Continue,
    /// It has all the connections it may have.
    Fill,
    /// It has room again.
    Empty,
    /// It has finished what was open.
    Finish,
    /// However it comes: nobody is too frozen to die.
    End(ExitStatus),
}

/// How a child will live.
#[derive(Debug, Clone)]
pub struct Life {
    /// How long the fork takes.
    pub fork: Duration,
    pub fork_fails: bool,
    /// Measured from the fork's return.
    pub deeds: Vec<(Duration, Deed)>,
    /// How long it takes to drain; a wedged one never does.
    pub drain: Option<Duration>,
    /// How long it takes to die of SIGABRT; one that was stopped does not.
    pub abort: Option<Duration>,
    /// Requests a second.
    pub rate: u64,
    /// Memory at first, and what is added each second.
    pub memory: (u64, u64),
}

/// A process of the simulated world.
#[derive(Debug)]
pub struct Child {
    pub life: Life,
    born: Instant,
    /// Since when its loop has stood still.
    frozen: Option<Instant>,
    /// For how long it had before.
    lost: Duration,
    full: bool,
}

impl Child {
    pub fn new(life: Life, born: Instant) -> Child {
        Child { life, born, frozen: None, lost: ms(0), full: false }
    }

    pub fn is_full(&self) -> bool {
        self.full
    }

    pub fn fill(&mut self, full: bool) {
        self.full = full;
    }

    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub fn can(&self, deed: Deed) -> bool {
        !self.is_frozen() || matches!(deed, Deed::Thaw | Deed::Continue | Deed::End(_))
    }

    pub fn freeze(&mut self, freeze: bool, now: Instant) {
        let since = self.frozen.take();
        self.lost += since.map_or(ms(0), |since| now - since);
        self.frozen = freeze.then_some(now);
    }

    /// For how long its loop has turned.
    fn active(&self, now: Instant) -> Duration {
        self.frozen.unwrap_or(now) - self.born - self.lost
    }

    /// Its loop turns every 100 ms, busy or not.
    pub fn beat(&self, now: Instant) -> u64 {
        self.active(now).as_millis() as u64 / 100
    }

    pub fn requests(&self, now: Instant) -> u64 {
        self.active(now).as_millis() as u64 * self.life.rate / 1000
    }

    pub fn memory(&self, now: Instant) -> u64 {
        self.life.memory.0 + self.active(now).as_millis() as u64 * self.life.memory.1 / 1000
    }
}

impl Life {
    /// Is there and never says a word.
    pub fn hanging() -> Life {
        Life {
            fork: ms(0),
            fork_fails: false,
            deeds: Vec::new(),
            drain: Some(ms(20)),
            abort: Some(ms(200)),
            rate: 100,
            memory: (1_000, 0),
        }
    }

    /// Is ready after 10 ms and serves for ever.
    pub fn serving() -> Life {
        Life::hanging().and(10, Deed::SayReady)
    }

    /// The fork itself fails.
    pub fn stillborn() -> Life {
        Life { fork_fails: true, ..Life::hanging() }
    }

    /// Does `deed` so many milliseconds after its fork.
    pub fn and(mut self, at: u64, deed: Deed) -> Life {
        self.deeds.push((ms(at), deed));
        self
    }

    /// Its fork takes so many milliseconds.
    pub fn forked_after(self, fork: u64) -> Life {
        Life { fork: ms(fork), ..self }
    }

    /// Does not drain when told to.
    pub fn wedged(self) -> Life {
        Life { drain: None, ..self }
    }

    /// SIGABRT does not end it.
    pub fn stopped(self) -> Life {
        Life { abort: None, ..self }
    }

    /// Uses so much memory at first, and so much more each second.
    pub fn heavy(self, memory: u64, growth: u64) -> Life {
        Life { memory: (memory, growth), ..self }
    }

    /// Anything that can befall a worker, and `ready` in ten of them do get ready.
    pub fn random(dice: &mut Dice, ready: u64) -> Life {
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
        let others = [
            end,
            end,
            Deed::Retire,
            Deed::CloseChannel,
            Deed::Garble,
            Deed::SayBootFailed,
            Deed::SayOnline,
            Deed::Work,
            Deed::Freeze,
            Deed::Thaw,
            Deed::Stop,
            Deed::Continue,
        ];
        for _ in 0..dice.below(4) {
            let at = if dice.below(3) == 0 { dice.below(boot + 1) } else { dice.below(8000) };
            life = life.and(at, others[dice.below(others.len() as u64) as usize]);
        }
        life = life.heavy(dice.below(2_000), dice.below(200));
        if dice.below(3) == 0 {
            life = life.stopped();
        }
        if dice.below(4) == 0 { life.wedged() } else { life }
    }
}
