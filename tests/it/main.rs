//! End-to-end tests of the `prefork` binary and of programs on the library.
//!
//! Each test starts a server of its own on port 0 and waits for conditions, never for times. A test that fails keeps the
//! directory of its server and prints its path. `tests/programs` has small applications for what the built-in one cannot
//! show; `cargo test` builds them, and for `cargo test --test it` alone run `cargo build --examples` first.
//!
//! Tests look at statuses, exit statuses, events, HTTP and `/proc`, and in logs at levels, `key=value` fields and names.
//!
//! Environment variables make runs heavier (defaults in parentheses):
//!
//! | variable | meaning |
//! |---|---|
//! | `PREFORK_KILLS` | killed workers under load (40) |
//! | `PREFORK_KILL_ALL` | rounds in which all workers are killed at once (10) |
//! | `PREFORK_RELOADS`, `PREFORK_UPGRADES`, `PREFORK_STOPS` | reloads (10), upgrades (5) and stops (3) under load |
//! | `PREFORK_SLOW`, `PREFORK_IDLE` | slow clients (200) and idle connections (64) |
//! | `PREFORK_SHARED_KILLS`, `PREFORK_LEADERS` | killed workers that write shared state (30), killed leaders (50) |
//! | `PREFORK_ISOLATED_CRASHES` | crashing isolated jobs (20) |
//! | `PREFORK_STORM_JOBS` | isolated jobs under reloads, kills and upgrades (3000, 1000 for each other model) |
//! | `PREFORK_LARGE_JOBS` | large isolated jobs at the same time (20) |
//! | `PREFORK_TEST_PAGE` | part of the names of the pages whose code is run (all) |
//! | `PREFORK_MISBEHAVING`, `PREFORK_SEED` | workers that write garbage (4), and their first random seed (1) |
//! | `PREFORK_TEST_DISPATCH` | dispatch policy of all servers without one of their own |
//! | `PREFORK_TEST_MODEL` | concurrency model of all servers; for `http file_server http_malformed resource_limits` |
//! | `PREFORK_TEST_TLS` | TLS between all servers and clients; for `http http_corpus http_malformed timeouts half_close http2_settings stop file_server` |
//!
//! The servers under test do not see these variables.

mod support;

mod accept_queue;
mod access_log;
mod admin;
mod admin_lifecycle;
mod app_name;
mod bench;
mod bench_http2;
mod bench_https;
mod bind;
mod boot;
mod client_address;
mod client_identity;
mod compare;
mod concurrency_models;
mod config;
mod connection_handover;
mod control_socket;
mod cpu_bound_work;
mod cpu_pool;
mod demo_command;
mod demo_routes;
mod dev_cert;
mod dev_overlay;
mod dev_program;
mod dev_watch;
mod dispatch_ip_hash;
mod dispatch_least_conn;
mod dispatch_reuseport;
mod dispatch_round_robin;
mod dispatch_shared;
mod documentation;
mod documented_code;
mod dropped_privileges;
mod empty_cluster;
mod examples;
mod examples_over_reload;
mod file_conditional_requests;
mod file_server;
mod fork_safety;
mod forked_workers;
mod full_workers;
mod half_close;
mod health_command;
mod http;
mod http2_settings;
mod http_corpus;
mod http_malformed;
mod https_redirect;
mod inherited_sockets;
mod install_script;
mod isolated_calls;
mod isolated_jobs;
mod isolated_limits;
mod isolated_outcomes;
mod job_storm;
mod large_payloads;
mod last_responses;
mod leaving;
mod library_api;
mod listen_addresses;
mod load_kinds;
mod log_format;
mod log_output;
mod message_delivery;
mod messages;
mod metric_families;
mod metrics;
mod misbehaving_workers;
mod node_behaviour;
mod orphaned_workers;
mod own_flags;
mod parked_connections;
mod parked_connections_at_once;
mod pid_file;
mod pid_namespace;
mod pool_figures;
mod primary_events;
mod primary_loop;
mod process_limits;
mod process_titles;
mod program_pools;
mod prose;
mod reload;
mod reload_listeners;
mod request_ids;
mod resource_limits;
mod respawn;
mod response_chunks;
mod run_command;
mod run_drain;
mod run_output;
mod run_programs;
mod run_readiness;
mod run_sockets;
mod run_sockets_faults;
mod scale;
mod scenarios;
mod scoreboard;
mod serve_http;
mod shared_locks;
mod shared_memory;
mod shared_state;
mod shared_upgrade;
mod signals;
mod slow_readers;
mod socket_activation;
mod stalled_stack;
mod stalled_workers;
mod standard_output;
mod start_errors;
mod stop;
mod systemd;
mod test_cluster;
mod test_script;
mod tidy;
mod timeouts;
mod tls_certificates;
mod tls_client_certificates;
mod tls_connections;
mod tls_handshakes;
mod tls_keys_in_memory;
mod tls_tickets;
mod upgrade;
mod websocket_passing;
mod websocket_route;
mod worker_handle;
mod worker_kinds;
mod worker_output;
mod worker_recycling;
