//! Programs that cannot start, and the kinds of `main` that report it.

use std::error::Error as _;
use std::process::{ExitCode, Termination};

use axum::Router;
use tokio_prefork::{Cluster, Error, Main, Result, Worker};

use super::ProgramArguments;

fn serve_nothing(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async { Ok(Router::new()) })
}

/// Calls `serve` inside a runtime of the flavor `flavor`, as under `#[tokio::main]`.
pub(super) fn start_in_runtime(arguments: ProgramArguments) -> Result<()> {
    let mut builder = match arguments.value("flavor")?.as_str() {
        "multi_thread" => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.build().map_err(|e| Error::system("build the runtime", e))?;
    runtime.block_on(async { serve_nothing(arguments) })
}

/// Calls `serve` while another thread runs.
pub(super) fn start_with_threads(arguments: ProgramArguments) -> Result<()> {
    let forever = || loop {
        std::thread::park();
    };
    let exporter = std::thread::Builder::new().name("exporter".into()).spawn(forever);
    exporter.map_err(|e| Error::system("start a thread", e))?;
    serve_nothing(arguments)
}

/// Every boot panics.
#[expect(clippy::panic, reason = "a panic is what this is about")]
pub(super) fn boot_panics(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        if true {
            panic!("no database");
        }
        Ok(Router::new())
    })
}

/// Every boot fails with an error of std.
pub(super) fn boot_cannot_read(arguments: ProgramArguments) -> Result<()> {
    Cluster::new(arguments.config).serve(|_: Worker| async {
        let _secret = std::fs::read("missing/secret")?;
        Ok(Router::new())
    })
}

/// Ends as a `main` of the return type `main` would.
pub(super) fn end_as_main(arguments: ProgramArguments) -> ExitCode {
    fn boxed(arguments: ProgramArguments) -> std::result::Result<(), Box<dyn std::error::Error>> {
        serve_nothing(arguments)?;
        Ok(())
    }
    let kind = arguments.value("main").unwrap_or_default();
    match kind.as_str() {
        "box" => boxed(arguments).report(),
        "result" => serve_nothing(arguments).report(),
        "report" => serve_nothing(arguments).map_or_else(|e| e.report(), |()| ExitCode::SUCCESS),
        _ => Main::from(serve_nothing(arguments)).report(),
    }
}

/// Prints the kinds of the error and of its cause.
pub(super) fn print_error_kinds(arguments: ProgramArguments) -> Result<()> {
    serve_nothing(arguments).inspect_err(|error| {
        let source = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
        let errno = source.and_then(std::io::Error::raw_os_error);
        println!("{:?} {:?} {errno:?}", error.kind(), error.io_kind());
    })
}
