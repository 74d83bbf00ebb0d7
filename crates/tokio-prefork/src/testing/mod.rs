//! Tests of programs: [`TestCluster`] runs a program as a real cluster, with a primary and forked workers, and [`TestWorker`] is a
//! worker handle without a cluster. Needs the feature `testing`.
//!
//! ```toml
//! [dev-dependencies]
//! tokio-prefork = { version = "0.1", features = ["testing"] }
//! ```
//!
//! ```
//! use axum::{Router, routing::get};
//! use tokio_prefork::testing::TestCluster;
//!
//! # /*
//! #[test]
//! # */
//! fn a_killed_worker_is_replaced() {
//!     // Two workers, on a free port of 127.0.0.1.
//!     let cluster = TestCluster::spawn(|_worker| async {
//!         Ok(Router::new().route("/", get("hello")))
//!     });
//!     assert_eq!(cluster.get("/").body(), "hello");
//!
//!     let victim = cluster.workers()[0].id;
//!     cluster.kill(victim);
//!     cluster.wait_for_replacement(victim);
//!     assert_eq!(cluster.get("/").status(), 200);
//!
//!     cluster.reload();
//!     assert!(cluster.stop().success());
//! }
//! # a_killed_worker_is_replaced();
//! ```
//!
//! # How it works
//!
//! A process with several threads cannot fork, and every test runner has several. So the cluster runs in a new process of
//! the test program, which calls the closure in place of `main`. This needs no support of the test runner: `#[test]`,
//! `#[tokio::test]`, nextest and tests in parallel work, with any number of clusters in one test.
//!
//! **The closure captures nothing**, as variables of the test do not exist in the other process; the compiler refuses one
//! that does. Pass values as the input of [`TestClusterBuilder::spawn_program_with`], or as environment variables. What the
//! processes of the cluster write to their own memory, such as a `static`, does not appear in the test either: assert on
//! responses, on [`TestCluster::status`] or on [shared state](crate::shared), which the status contains.
//!
//! **Code before `main` has not run**: an argument parser in `main` or a logger that a test initializes does not exist in the
//! cluster. If the program installs no logger, the library's log goes to [`TestCluster::log`], at the level that `RUST_LOG`
//! names (`info` by default).
//!
//! **Cleaning up.** Dropping the handle stops the cluster at once, also when the test panics; then the end of the log is
//! printed. If the test process is killed, the kernel signals the primary to stop. A cluster in a `static` lives until the
//! test process exits.

mod cluster_process;
mod http_client;
mod spawner;
mod start_error;
mod test_cluster;
mod test_cluster_builder;
mod test_directory;
mod test_worker;

pub(crate) use cluster_process::{adapt_config, is_variable_of_cluster_process, prepare_to_serve};
pub use start_error::StartError;
pub use test_cluster::TestCluster;
pub use test_cluster_builder::TestClusterBuilder;
pub use test_worker::TestWorker;
