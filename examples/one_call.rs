//! The shortest program with the flags, variables and TOML file of `prefork serve`.
//!
//! ```text
//! cargo run --example one_call -- --bind 127.0.0.1:3000 --workers 2
//! cargo run --example one_call -- --help
//! curl http://127.0.0.1:3000/
//! ```

use axum::Router;
use axum::routing::get;
use tokio_prefork::cli::{self, Program};
use tokio_prefork::{Main, Worker};

fn main() -> Main {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    // `tokio_prefork::program!()` takes name and version from Cargo.toml.
    let program = Program::new("one-call").version("1.2.3").about("Says hello");
    cli::run(program, |worker: Worker| async move {
        let pid = worker.pid();
        Ok(Router::new().route("/", get(move || async move { format!("hello from pid {pid}\n") })))
    })
    .into()
}
