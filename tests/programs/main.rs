//! Small clusters for the integration tests, for what the built-in application cannot show: applications that
//! fail, hang, preload, or speak no HTTP. `test_programs NAME --bind ADDRESS --workers N [KEY=VALUE]...`

mod boot;
mod isolated_jobs;
mod messages;
mod misbehaving_workers;
mod node_api;
mod primary_events;
mod primary_requests;
mod request_summary;
mod serving;
mod shared_state;
mod worker_kinds;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use tokio_prefork::{Config, ControlSocket, Dispatch, Error, Result, Workers};

/// What a program was told.
pub struct Told {
    /// What `--bind`, `--workers` and some keys say.
    pub config: Config,
    values: BTreeMap<String, String>,
}

impl Told {
    /// The value of `KEY=VALUE`.
    pub fn value(&self, key: &str) -> Result<String> {
        self.values.get(key).cloned().ok_or_else(|| Error::application("arguments", key))
    }
}

fn main() -> ExitCode {
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).init();
    let mut words = std::env::args().skip(1);
    // Cargo runs nothing here, but somebody may.
    let Some(name) = words.next() else { return ExitCode::SUCCESS };
    let done = told(words).and_then(|told| match name.as_str() {
        "asks" => primary_requests::asks(told),
        "vandals" => misbehaving_workers::vandals(told),
        "node" => node_api::node(told),
        "boot-fails" => boot::fails(told),
        "boot-exits" => boot::exits(told),
        "boot-hangs" => boot::hangs(told),
        "boot-fails-if-broken" => boot::fails_if_broken(told),
        "preload" => boot::preload(told),
        "preload-fails" => boot::preload_fails(told),
        "preload-panics" => boot::preload_panics(told),
        "preload-leaves-a-thread" => boot::preload_leaves_a_thread(told),
        "not-send" => serving::not_send(told),
        "axum" => serving::axum(told),
        "connections" => serving::connections(told),
        "describes" => request_summary::describes(told),
        "events" => primary_events::events(told),
        "environment" => serving::environment(told),
        "retiring" => serving::retiring(told),
        "isolated" => isolated_jobs::isolated(told),
        "kinds" => worker_kinds::kinds(told),
        "mails" => messages::mails(told),
        "waiting" => serving::waiting(told),
        "shared-counter" => shared_state::counter(told),
        "shared-limiter" => shared_state::limiter(told),
        "shared-cache" => shared_state::cache(told),
        "shared-roles" => shared_state::roles(told),
        "shared-circle" => shared_state::circle(told),
        "shared-too-late" => shared_state::too_late(told),
        _ => Err(Error::application("no such program", &name)),
    });
    done.unwrap_or_else(|e| {
        eprintln!("test program: {e}");
        ExitCode::from(e.exit_status())
    })
}

fn told(words: impl Iterator<Item = String>) -> Result<Told> {
    let bad = |word: &str| Error::application("arguments", word);
    let mut builder = Config::builder();
    let mut values = BTreeMap::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| bad(&word));
        match word.as_str() {
            "--bind" => builder = builder.listen(&next()?)?,
            "--workers" => {
                let count: NonZeroU32 = next()?.parse().map_err(|_| bad(&word))?;
                builder = builder.workers(Workers::Count(count));
            }
            other => {
                let (key, value) = other.split_once('=').ok_or_else(|| bad(other))?;
                let number = || value.parse::<u32>().map_err(|_| bad(other));
                match key {
                    "boot-attempts" => builder = builder.boot_attempts(number()?),
                    "boot-timeout-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.boot_timeout(limit);
                    }
                    "graceful-timeout-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.graceful_timeout(limit);
                    }
                    "request-timeout-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.request_timeout(Some(limit));
                    }
                    "max-queue-wait-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.max_queue_wait(limit);
                    }
                    "dispatch" => {
                        let policy = value.parse::<Dispatch>().map_err(|_| bad(other))?;
                        builder = builder.dispatch(policy);
                    }
                    "pipeline-flush" => {
                        let flush = value.parse().map_err(|_| bad(other))?;
                        builder = builder.pipeline_flush(flush);
                    }
                    "control" => {
                        builder = builder.control(ControlSocket::Path(value.into()));
                    }
                    _ => {
                        values.insert(key.to_string(), value.to_string());
                    }
                }
            }
        }
    }
    Ok(Told { config: builder.build()?, values })
}
