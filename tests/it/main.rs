//! Integration tests: the real binary, started, watched and stopped.
//!
//! Each test starts a server of its own on port 0 and waits for conditions, never for times. A test that
//! fails keeps the directory of its server and prints where it is. `tests/programs` has the small clusters
//! for what the built-in application cannot show; `cargo test` builds them, and for `cargo test --test it`
//! alone there is `cargo build --example test_programs`.
//!
//! Heavier runs are the same tests with more: `PREFORK_ISOLATED_ENDS` segfaults (20), `PREFORK_STORM` kills (40), `PREFORK_MASSACRES` deaths of all
//! workers at once (10), `PREFORK_SLOW` slow clients (200), `PREFORK_STOPS` stops under load (3), `PREFORK_RELOADS` reloads
//! under load (10), `PREFORK_IDLE` idle connections (64), `PREFORK_UPGRADES` upgrades under load (5).
//! `PREFORK_UNDER=reuseport` runs all of them under another dispatch policy than the default.
//! `PREFORK_UNDER_MODEL=single` (`threads`, `thread-per-core`) starts servers under another concurrency model; it is for the
//! topics that are about HTTP: `http file_server http_malformed resource_limits`.
//! `PREFORK_VANDALS` workers that write garbage (4), from `PREFORK_SEED` on (1).
//! `PREFORK_SHARED_KILLS` kills of workers that write shared state (30), `PREFORK_LEADERS` killed leaders (50).
//! Those variables are for the tests; the servers they start do not see them.

mod support;

mod accept_queue;
mod bench;
mod bind;
mod boot;
mod compare;
mod concurrency_models;
mod config;
mod connection_handover;
mod control_socket;
mod cpu_pool;
mod demo_command;
mod demo_routes;
mod dispatch_ip_hash;
mod dispatch_least_conn;
mod dispatch_reuseport;
mod dispatch_round_robin;
mod dispatch_shared;
mod documentation;
mod dropped_privileges;
mod examples;
mod file_conditional_requests;
mod file_server;
mod half_close;
mod http;
mod http_corpus;
mod http_malformed;
mod install_script;
mod isolated_jobs;
mod library_api;
mod log_output;
mod messages;
mod misbehaving_workers;
mod orphaned_workers;
mod pid_file;
mod pid_namespace;
mod primary_events;
mod process_titles;
mod reload;
mod reload_listeners;
mod resource_limits;
mod respawn;
mod scale;
mod scoreboard;
mod shared_state;
mod signals;
mod socket_activation;
mod stalled_workers;
mod standard_output;
mod stop;
mod systemd;
mod test_script;
mod tidy;
mod timeouts;
mod upgrade;
mod worker_kinds;
mod worker_recycling;
