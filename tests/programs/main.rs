//! Small applications for the integration tests, for what the built-in application cannot show.
//!
//! `test_programs NAME --bind ADDRESS --workers N [KEY=VALUE]...`

mod boot;
mod connection_info;
mod cpu_bound_api;
mod cpu_pool;
mod foreign_program;
mod foreign_server;
mod inherited_sockets;
mod isolated_calls;
mod isolated_jobs;
mod isolated_limits;
mod job_storm;
mod kept_connections;
mod large_payloads;
mod last_responses;
mod leaving;
mod logging;
mod message_delivery;
mod messages;
mod misbehaving_workers;
mod node_api;
mod primary_events;
mod primary_loop;
mod primary_requests;
mod process_limits;
mod program_pools;
mod request_ids;
mod request_summary;
mod response_chunks;
mod serve_http;
mod serving;
mod shared_locks;
mod shared_memory;
mod shared_state;
mod shared_upgrade;
mod start_errors;
mod stuck_handlers;
mod websocket_passing;
mod worker_handle;
mod worker_kinds;
mod worker_output;

use std::collections::BTreeMap;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use tokio_prefork::{Config, ControlSocket, Dispatch, Error, Main, Result, WorkerCount};

/// Arguments of a program.
pub struct ProgramArguments {
    /// Configuration by `--bind`, `--workers` and the keys of the library.
    pub config: Config,
    values: BTreeMap<String, String>,
}

impl ProgramArguments {
    /// Returns the value of another `KEY=VALUE`.
    pub fn value(&self, key: &str) -> Result<String> {
        self.values.get(key).cloned().ok_or_else(|| Error::application("arguments", key))
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("foreign-server") => return foreign_server::serve(words),
        Some("foreign-program") => return foreign_program::run(words),
        _ => {}
    }
    match std::env::var("TEST_LOG_FORMAT").ok().and_then(|format| format.parse().ok()) {
        Some(format) => logging::init_logger(format),
        None => env_logger::Builder::new().filter_level(log::LevelFilter::Info).init(),
    }
    let mut words = std::env::args().skip(1);
    // Without a name, do nothing.
    let Some(name) = words.next() else { return ExitCode::SUCCESS };
    let arguments = parse_arguments(words);
    if name == "end-as-main" {
        return arguments.map_or_else(|e| e.report(), start_errors::end_as_main);
    }
    let result = arguments.and_then(|arguments| run_program(&name, arguments));
    Main::from(result).report()
}

fn run_program(name: &str, arguments: ProgramArguments) -> Result<()> {
    match name {
        "start-in-runtime" => start_errors::start_in_runtime(arguments),
        "start-with-threads" => start_errors::start_with_threads(arguments),
        "print-error-kinds" => start_errors::print_error_kinds(arguments),
        "boot-panics" => start_errors::boot_panics(arguments),
        "boot-cannot-read" => start_errors::boot_cannot_read(arguments),
        "primary-requests" => primary_requests::primary_requests(arguments),
        "misbehaving-workers" => misbehaving_workers::misbehaving_workers(arguments),
        "cpu-bound-api" => cpu_bound_api::cpu_bound_api(arguments),
        "node-api" => node_api::node_api(arguments),
        "boot-fails" => boot::boot_fails(arguments),
        "boot-exits" => boot::boot_exits(arguments),
        "boot-hangs" => boot::boot_hangs(arguments),
        "boot-fails-if-broken" => boot::boot_fails_if_broken(arguments),
        "preload" => boot::preload(arguments),
        "preload-fails" => boot::preload_fails(arguments),
        "preload-panics" => boot::preload_panics(arguments),
        "preload-everywhere" => boot::preload_everywhere(arguments),
        "migrates-before-fork" => boot::migrates_before_fork(arguments),
        "before-fork-panics" => boot::before_fork_panics(arguments),
        "preload-leaves-a-thread" => boot::preload_leaves_a_thread(arguments),
        "named" => serving::named_application(arguments),
        "not-send" => serving::handler_not_send(arguments),
        "axum" => serving::axum_router(arguments),
        "connection-info" => connection_info::http_connections(arguments),
        "raw-connection-info" => connection_info::raw_connections(arguments),
        "proxied-connections" => connection_info::proxied_connections(arguments),
        "cpu-pool" => cpu_pool::cpu_pool(arguments),
        "connect-info" => connection_info::axum_extractors(arguments),
        "extended-connect" => serving::extended_connect(arguments),
        "pass-websockets" => websocket_passing::pass_websockets(arguments),
        "connections" => serving::line_protocol(arguments),
        "request-ids" => request_ids::request_ids(arguments),
        "request-summary" => request_summary::request_summary(arguments),
        "response-chunks" => response_chunks::response_chunks(arguments),
        "inherited-sockets" => inherited_sockets::inherited_sockets(arguments),
        "roles-at-start" => serving::roles_forked_at_start(arguments),
        "primary-loop" => primary_loop::primary_loop(arguments),
        "primary-events" => primary_events::primary_events(arguments),
        "environment" => serving::worker_environment(arguments),
        "retiring" => serving::retiring_workers(arguments),
        "isolated-calls" => isolated_calls::isolated_calls(arguments),
        "isolated-jobs" => isolated_jobs::isolated_jobs(arguments),
        "job-storm" => job_storm::job_storm(arguments),
        "large-payloads" => large_payloads::large_payloads(arguments),
        "last-responses" => last_responses::last_responses(arguments),
        "program-pools" => program_pools::program_pools(arguments),
        "isolated-limits" => isolated_limits::isolated_limits(arguments),
        "serve-http" => serve_http::serve_http(arguments),
        "logging" => logging::logging(arguments),
        "leaving" => leaving::leaving(arguments),
        "stuck-handlers" => stuck_handlers::stuck_handlers(arguments),
        "worker-handle" => worker_handle::worker_handle(arguments),
        "worker-output" => worker_output::worker_output(arguments),
        "process-limits" => process_limits::process_limits(arguments),
        "worker-kinds" => worker_kinds::worker_kinds(arguments),
        "messages" => messages::messages(arguments),
        "message-delivery" => message_delivery::message_delivery(arguments),
        "waiting" => serving::waiting_requests(arguments),
        "shared-memory" => shared_memory::shared_memory(arguments),
        "shared-counter" => shared_state::shared_counter(arguments),
        "shared-limiter" => shared_state::shared_limiter(arguments),
        "shared-cache" => shared_state::shared_cache(arguments),
        "leadership" => shared_state::leadership(arguments),
        "leadership-cycle" => shared_state::leadership_cycle(arguments),
        "shared-locks" => shared_locks::shared_locks(arguments),
        "shared-upgrade" => shared_upgrade::shared_upgrade(arguments),
        "shared-too-late" => shared_state::shared_state_declared_in_worker(arguments),
        _ => Err(Error::application("no such program", name.to_string())),
    }
}

fn parse_arguments(words: impl Iterator<Item = String>) -> Result<ProgramArguments> {
    let bad = |word: &str| Error::application("arguments", word);
    let mut builder = Config::builder();
    let mut values = BTreeMap::new();
    let mut words = words;
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| bad(&word));
        match word.as_str() {
            "--bind" => builder = builder.listen(&*next()?)?,
            "--model" => {
                let model = next()?;
                builder = builder.model(model.parse().map_err(|_| bad(&model))?);
            }
            "--workers" => {
                builder = builder.workers(next()?.parse::<WorkerCount>()?);
            }
            other => {
                let (key, value) = other.split_once('=').ok_or_else(|| bad(other))?;
                let number = || value.parse::<u32>().map_err(|_| bad(other));
                match key {
                    "max-requests" => builder = builder.max_requests(number()?),
                    "boot-attempts" => builder = builder.boot_attempts(number()?),
                    "boot-timeout-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.boot_timeout(limit);
                    }
                    "admin" => builder = builder.admin(value)?,
                    "access-log" => builder = builder.access_log(value),
                    "pool-threads" => builder = builder.pool_threads(number()?),
                    "graceful-timeout-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.graceful_timeout(limit);
                    }
                    "stall-warn-ms" => {
                        builder = builder.stall_warn(Duration::from_millis(number()?.into()));
                    }
                    "stall-timeout-ms" => {
                        builder = builder.stall_timeout(Duration::from_millis(number()?.into()));
                    }
                    "request-timeout-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.request_timeout(limit);
                    }
                    "max-queue-wait-ms" => {
                        let limit = Duration::from_millis(number()?.into());
                        builder = builder.max_queue_wait(limit);
                    }
                    "model" => {
                        let model = value.parse().map_err(|_| bad(other))?;
                        builder = builder.model(model);
                    }
                    "dispatch" => {
                        let policy = value.parse::<Dispatch>().map_err(|_| bad(other))?;
                        builder = builder.dispatch(policy);
                    }
                    "request-id" => builder = builder.request_id(value == "on"),
                    "trusted-proxies" => {
                        let trusted = value.parse().map_err(|_| bad(other))?;
                        builder = builder.trusted_proxies(trusted);
                    }
                    "proxy-protocol" => builder = builder.proxy_protocol(value.parse()?),
                    "pipeline-flush" => {
                        let flush = value.parse().map_err(|_| bad(other))?;
                        builder = builder.pipeline_flush(flush);
                    }
                    "tls-cert" => builder = builder.tls_cert(vec![value.into()]),
                    "tls-key" => builder = builder.tls_key(vec![value.into()]),
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
    Ok(ProgramArguments { config: builder.build()?, values })
}
