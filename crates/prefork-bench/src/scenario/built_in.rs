//! The workloads that come with the program. Their paths are those of the built-in application.

use std::sync::{Arc, LazyLock};

use super::Workload;

/// A scenario file that comes with the program.
#[derive(Debug)]
pub struct BuiltInScenario {
    name: &'static str,
    text: &'static str,
    workload: LazyLock<Arc<Workload>>,
}

/// Makes the list of the files.
macro_rules! scenario_files {
    ($($name:literal),* $(,)?) => {
        static ALL: [BuiltInScenario; [$($name),*].len()] = [$(BuiltInScenario {
            name: $name,
            text: include_str!(concat!("built_in/", $name, ".toml")),
            workload: LazyLock::new(|| {
                parse_built_in($name, include_str!(concat!("built_in/", $name, ".toml")))
            }),
        }),*];
    };
}

scenario_files!(
    "keep-alive",
    "new-connections",
    "bodies",
    "pipelined",
    "cpu-loop",
    "cpu-pool",
    "mixed",
    "noisy-neighbour",
    "full-handshakes",
    "resumed-handshakes",
    "half-load",
    "high-load",
    "ramp",
    "connection-ramp",
    "mixed-sizes",
    "static-file",
    "http2-multiplexing",
    "idle-memory",
    "slow-readers",
    "websocket-echo",
    "worker-kills",
    "reloads",
);

/// Number of workloads of a comparison that names none: the first ones.
const DEFAULT_COUNT: usize = 8;
/// Workloads of `--quick`: so few that two minutes have enough rounds.
const QUICK_NAMES: [&str; 3] = ["keep-alive", "new-connections", "noisy-neighbour"];
/// What takes the place of `new-connections` over HTTPS; with `--quick` the first one.
const HANDSHAKE_NAMES: [&str; 2] = ["full-handshakes", "resumed-handshakes"];

fn parse_built_in(name: &str, text: &str) -> Arc<Workload> {
    match Workload::parse(name, &format!("{name}.toml"), text) {
        Ok(workload) => Arc::new(workload),
        Err(why) => unreachable!("a test parses all of them: {why}"),
    }
}

/// Returns all scenarios that come with the program, in the order of the documentation.
pub fn built_in_scenarios() -> &'static [BuiltInScenario] {
    &ALL
}

impl BuiltInScenario {
    /// Returns the scenario with this name.
    ///
    /// # Errors
    /// There is none; the message lists the known ones.
    pub fn find(name: &str) -> Result<&'static BuiltInScenario, String> {
        let names: Vec<&str> = ALL.iter().map(|one| one.name).collect();
        let found = ALL.iter().find(|one| one.name == name);
        found.ok_or(format!("{name:?} is not a workload: give one or more of {}", names.join(", ")))
    }

    /// Returns its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the text of the file.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// Returns its workload.
    pub fn workload(&self) -> Arc<Workload> {
        Arc::clone(&self.workload)
    }
}

impl Workload {
    /// Returns the workloads of a comparison that names none.
    pub fn default_set(is_quick: bool, https: bool) -> Vec<Arc<Workload>> {
        let is_chosen = |one: &&BuiltInScenario| !is_quick || QUICK_NAMES.contains(&one.name);
        let handshakes = HANDSHAKE_NAMES.len() - usize::from(is_quick);
        let names = ALL[..DEFAULT_COUNT].iter().filter(is_chosen).flat_map(|one| match one.name {
            "new-connections" if https => HANDSHAKE_NAMES[..handshakes].to_vec(),
            name => vec![name],
        });
        names.filter_map(|name| Workload::built_in(name).ok()).collect()
    }
}
