//! What operators do: `prefork VERB` against the control socket of a server.

use std::path::PathBuf;

use super::command::{Builder, Ended};
use super::server::Server;
use super::{process, wait};

impl Server {
    /// Where a server that was built with `control` is asked.
    pub fn control(&self) -> PathBuf {
        self.dir().join("control")
    }

    /// `prefork VERB [WORD]...`, run to its end.
    #[track_caller]
    pub fn ask(&self, words: &[&str]) -> Ended {
        let socket = ["--control".into(), self.control().into_os_string()];
        Builder::verb(words[0]).args(&words[1..]).args(socket).run()
    }

    /// The same, which must succeed; what it prints.
    #[track_caller]
    pub fn order(&self, words: &[&str]) -> String {
        let ended = self.ask(words);
        assert_eq!((ended.status, ended.err.as_str()), (Some(0), ""), "{words:?}");
        ended.out
    }

    /// The same, which must fail with `code`; what it complains about.
    #[track_caller]
    pub fn refused(&self, words: &[&str], code: i32) -> String {
        let ended = self.ask(words);
        assert_eq!((ended.status, ended.out.as_str()), (Some(code), ""), "{}", ended.err);
        assert!(ended.err.starts_with("prefork: ") && ended.err.ends_with('\n'), "{}", ended.err);
        ended.err
    }

    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.order(&["status", "--json"])).expect("JSON")
    }

    /// Waits until all workers are of this generation, which was asked for.
    #[track_caller]
    pub fn wait_generation(&self, generation: usize) {
        self.wait_log(&format!(" workers of generation {generation} serve"));
    }

    /// Waits until there are `count` workers and none of `old`; they are returned.
    #[track_caller]
    pub fn wait_others(&self, count: usize, old: &[u32]) -> Vec<u32> {
        wait::until_some(&format!("{count} workers, none of {old:?}"), || {
            let now = process::children(self.pid());
            (now.len() == count && !now.iter().any(|pid| old.contains(pid))).then_some(now)
        })
    }
}
