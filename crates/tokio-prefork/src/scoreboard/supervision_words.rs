//! What the primary has counted, in words of its request page that hold details of requests on those of workers.

use super::page_layout::PageWord;
use crate::status::{ChangeCounters, EXIT_REASONS, MAX_JSON_INTEGER, SupervisionCounters};
use prefork_os::shared_memory::SharedPage;

/// One word for each of `EXIT_REASONS`, with room for more.
const EXITS: PageWord = PageWord::at(96);
const FORKS: PageWord = PageWord::at(128);
const LOG_LINES_DROPPED: PageWord = PageWord::at(129);
const MESSAGES_LOST: PageWord = PageWord::at(130);
const RELOADS: PageWord = PageWord::at(136);
const UPGRADES: PageWord = PageWord::at(144);

const _: () = assert!(EXIT_REASONS.len() <= 32 && ChangeCounters::WORDS <= 8);

/// Writes the counters.
pub(super) fn store(page: &SharedPage, counters: &SupervisionCounters) {
    for (n, reason) in EXIT_REASONS.iter().enumerate() {
        EXITS.plus(n).store(page, counters.exits.get(*reason).copied().unwrap_or(0));
    }
    for (word, value) in [
        (FORKS, counters.forks),
        (LOG_LINES_DROPPED, counters.log_lines_dropped),
        (MESSAGES_LOST, counters.messages_lost),
    ] {
        word.store(page, value);
    }
    for (first, changes) in [(RELOADS, counters.reloads), (UPGRADES, counters.upgrades)] {
        for (n, value) in changes.to_array().into_iter().enumerate() {
            first.plus(n).store(page, value);
        }
    }
}

/// Writes the counts of dropped log lines and lost messages.
pub(super) fn store_losses(page: &SharedPage, log_lines: u64, messages: u64) {
    LOG_LINES_DROPPED.store(page, log_lines);
    MESSAGES_LOST.store(page, messages);
}

/// Reads the counters, without the start time.
pub(super) fn read(page: &SharedPage) -> SupervisionCounters {
    let word = |word: PageWord| word.load(page).min(MAX_JSON_INTEGER);
    let exits = EXIT_REASONS.iter().enumerate().map(|(n, reason)| (*reason, word(EXITS.plus(n))));
    let changes =
        |first: PageWord| ChangeCounters::from_array(std::array::from_fn(|n| word(first.plus(n))));
    SupervisionCounters {
        started_at_ms: 0,
        forks: word(FORKS),
        exits: exits.filter(|exit| exit.1 > 0).map(|(name, n)| (name.to_string(), n)).collect(),
        reloads: changes(RELOADS),
        upgrades: changes(UPGRADES),
        log_lines_dropped: word(LOG_LINES_DROPPED),
        messages_lost: word(MESSAGES_LOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_back() {
        let mut pages = prefork_os::shared_memory::create_shared_pages(1).expect("page").0;
        let page = pages.keep_only_page(0).expect("own");
        let exits = EXIT_REASONS.iter().zip(1..).map(|(reason, n)| (reason.to_string(), n));
        let counters = SupervisionCounters {
            started_at_ms: 0,
            forks: 50,
            exits: exits.collect(),
            reloads: ChangeCounters::from_array([1, 2, 3, 4, 5, 6]),
            upgrades: ChangeCounters::from_array([7, 8, 9, 10, 11, 12]),
            log_lines_dropped: 60,
            messages_lost: 70,
        };
        store(page, &counters);
        assert_eq!(read(page), counters);
        page.iter().for_each(|word| word.store(0, std::sync::atomic::Ordering::Relaxed));
        assert_eq!(read(page), SupervisionCounters::default());
    }
}
