//! Decides when changes begin a build and a reload, so that what a build writes does not begin the next one at once, for ever.

use std::time::Duration;

use super::project_watch::Changes;

/// How many rounds in a row may begin at once with changes that came during the round before.
const MAX_ECHO_ROUNDS: u32 = 3;

/// The first delay after that. It doubles each time: whether a file is written by the build or by a person who saves often cannot be
/// told, so nothing is dropped.
const FIRST_DELAY: Duration = Duration::from_secs(2);

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(120);

/// When changes begin a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Begin,
    /// Later. They came during each of the last rounds, so it may be the build or the program that writes these files.
    BeginAfter(Duration),
}

/// The rounds of builds and reloads.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    echoes_in_a_row: u32,
}

impl Rounds {
    /// Decides about changes, between two rounds.
    pub(crate) fn decide(&mut self, changes: &Changes) -> Decision {
        if !changes.may_be_echo {
            self.echoes_in_a_row = 0;
            return Decision::Begin;
        }
        self.echoes_in_a_row += 1;
        match self.echoes_in_a_row.checked_sub(MAX_ECHO_ROUNDS + 1) {
            None => Decision::Begin,
            Some(delays) => {
                let delay = FIRST_DELAY.saturating_mul(1 << delays.min(16));
                Decision::BeginAfter(delay.min(MAX_DELAY))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(rounds: &mut Rounds, may_be_echo: bool) -> Decision {
        rounds.decide(&Changes { paths: vec!["src/main.rs".into()], may_be_echo })
    }

    #[test]
    fn a_change_during_a_round_begins_one_more() {
        let mut rounds = Rounds::default();
        for may_be_echo in [false, true, false, true, true, false] {
            assert_eq!(decide(&mut rounds, may_be_echo), Decision::Begin);
        }
    }

    #[test]
    fn a_build_that_changes_watched_files_each_time_runs_less_and_less_often() {
        let mut rounds = Rounds::default();
        assert_eq!(decide(&mut rounds, false), Decision::Begin);
        for _ in 0..MAX_ECHO_ROUNDS {
            assert_eq!(decide(&mut rounds, true), Decision::Begin);
        }
        for seconds in [2, 4, 8, 16, 32, 64, 120, 120] {
            let delay = Duration::from_secs(seconds);
            assert_eq!(decide(&mut rounds, true), Decision::BeginAfter(delay));
        }
        for _ in 0..100 {
            let _ = decide(&mut rounds, true);
        }
        assert_eq!(decide(&mut rounds, false), Decision::Begin, "a change later begins a round");
        assert_eq!(decide(&mut rounds, true), Decision::Begin);
    }
}
