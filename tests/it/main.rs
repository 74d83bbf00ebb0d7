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
//! topics that are about HTTP: `http static_files abuse limits`.
//! `PREFORK_VANDALS` workers that write garbage (4), from `PREFORK_SEED` on (1).
//! `PREFORK_SHARED_KILLS` kills of workers that write shared state (30), `PREFORK_LEADERS` killed leaders (50).
//! Those variables are for the tests; the servers they start do not see them.

mod support;

mod abuse;
mod bench;
mod bench_chaos;
mod bind;
mod boot;
mod cluster_api;
mod compare;
mod config;
mod control;
mod control_abuse;
mod corpus;
mod crash_loop;
mod demo;
mod demo_paths;
mod dispatch_rungs;
mod dispatch_shared;
mod documentation;
mod drain_delay;
mod events;
mod examples;
mod file_conditions;
mod file_server;
mod frozen;
mod half_close;
mod handover;
mod http;
mod install;
mod ip_hash;
mod isolated;
mod kinds;
mod least_conn;
mod library;
mod limits;
mod log_file;
mod log_output;
mod messages;
mod messages_asked;
mod messages_fail;
mod models;
mod models_differ;
mod orphan;
mod output;
mod pid1;
mod pid_file;
mod pool;
mod privilege;
mod queue;
mod recycle;
mod reload;
mod reload_fails;
mod reload_sockets;
mod request_edges;
mod respawn;
mod reuseport;
mod round_robin;
mod round_robin_changes;
mod scale;
mod scoreboard;
mod shared_roles;
mod shared_state;
mod signals;
mod sockets_passed;
mod static_files;
mod stop;
mod systemd;
mod test_script;
mod tidy;
mod timeouts;
mod timeouts_http2;
mod titles;
mod upgrade;
mod upgrade_fails;
mod vandals;
mod watchdog;
