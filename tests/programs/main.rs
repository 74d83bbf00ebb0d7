//! Small clusters for the integration tests, for what the built-in application cannot show: applications that
//! fail, hang, preload, or speak no HTTP. `test_programs NAME --bind ADDRESS --workers N [KEY=VALUE]...`

mod asks;
mod boots;
mod describes;
mod events;
mod isolated;
mod kinds;
mod mails;
mod node;
mod serves;
mod shares;
mod vandals;

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
        "asks" => asks::asks(told),
        "vandals" => vandals::vandals(told),
        "node" => node::node(told),
        "boot-fails" => boots::fails(told),
        "boot-exits" => boots::exits(told),
        "boot-hangs" => boots::hangs(told),
        "boot-fails-if-broken" => boots::fails_if_broken(told),
        "preload" => boots::preload(told),
        "preload-fails" => boots::preload_fails(told),
        "preload-panics" => boots::preload_panics(told),
        "preload-leaves-a-thread" => boots::preload_leaves_a_thread(told),
        "not-send" => serves::not_send(told),
        "axum" => serves::axum(told),
        "connections" => serves::connections(told),
        "describes" => describes::describes(told),
        "events" => events::events(told),
        "environment" => serves::environment(told),
        "retiring" => serves::retiring(told),
        "isolated" => isolated::isolated(told),
        "kinds" => kinds::kinds(told),
        "mails" => mails::mails(told),
        "waiting" => serves::waiting(told),
        "shared-counter" => shares::counter(told),
        "shared-limiter" => shares::limiter(told),
        "shared-cache" => shares::cache(told),
        "shared-roles" => shares::roles(told),
        "shared-circle" => shares::circle(told),
        "shared-too-late" => shares::too_late(told),
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
