//! The states of workers and of the primary, as `prefork status --json` names them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Defines a state with a name for each of its variants. A name of a newer version is read as `Unknown`.
macro_rules! named_states {
    ($(#[$meta:meta])* $state:ident { $($(#[$doc:meta])* $variant:ident => $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "String", into = "&'static str")]
        #[non_exhaustive]
        pub enum $state {
            $($(#[$doc])* $variant,)*
            /// A state that this version does not know.
            #[default]
            Unknown,
        }

        impl $state {
            /// Returns the name used in JSON and in tables.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($state::$variant => $name,)*
                    $state::Unknown => "unknown",
                }
            }

            /// Returns the state with this name, [`Unknown`](Self::Unknown) if there is none.
            pub fn from_name(name: &str) -> $state {
                match name {
                    $($name => $state::$variant,)*
                    _ => $state::Unknown,
                }
            }
        }

        impl From<String> for $state {
            fn from(name: String) -> $state {
                $state::from_name(&name)
            }
        }

        impl From<$state> for &'static str {
            fn from(state: $state) -> &'static str {
                state.as_str()
            }
        }

        impl fmt::Display for $state {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

named_states! {
    /// The state of a worker or of one of its threads.
    WorkerState {
        /// The worker is about to be forked.
        Forking => "forking",
        /// The worker has started and has not reported READY yet.
        Booting => "booting",
        /// The worker accepts and serves connections.
        Serving => "serving",
        /// The worker serves its open connections, but no listening socket gives it new ones.
        CannotAccept => "cannot-accept",
        /// The worker finishes its open connections and accepts no new ones.
        Draining => "draining",
        /// The worker has drained, and its process is about to exit.
        Exiting => "leaving",
        /// The worker was killed with SIGABRT because it stalled, and has not exited yet.
        Aborted => "aborted",
        /// The worker was killed with SIGKILL and has not exited yet.
        Killed => "killed",
        /// The thread has ended; other threads of its process may still serve.
        ThreadEnded => "left",
    }
}

named_states! {
    /// The state of the primary.
    PrimaryPhase {
        /// Waits for the first workers to report READY.
        Booting => "booting",
        /// Keeps the workers running.
        Running => "running",
        /// Replaces the workers.
        Reloading => "reloading",
        /// Stops gracefully.
        Stopping => "stopping",
        /// Kills the workers that are left.
        Ending => "ending",
        /// Is about to exit.
        Done => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_names_of_newer_versions_are_unknown() {
        for state in [WorkerState::CannotAccept, WorkerState::ThreadEnded, WorkerState::Unknown] {
            let json = serde_json::to_string(&state).expect("json");
            assert_eq!(json, format!("\"{state}\""));
            assert_eq!(serde_json::from_str::<WorkerState>(&json).expect("state"), state);
        }
        let newer: PrimaryPhase = serde_json::from_str(r#""dancing""#).expect("phase");
        assert_eq!(newer, PrimaryPhase::Unknown);
    }

    #[test]
    fn every_state_of_the_supervisor_has_a_name_here() {
        let known = ["forking", "booting", "serving", "draining", "leaving", "aborted", "killed"];
        for name in known {
            assert_eq!(WorkerState::from_name(name).as_str(), name);
        }
        for name in ["booting", "running", "reloading", "stopping", "ending", "done"] {
            assert_eq!(PrimaryPhase::from_name(name).as_str(), name);
        }
    }
}
