//! The `prefork` command: parses the arguments, runs one verb and exits with its status.

mod app;
mod args;
mod commands;
mod dev;
mod foreign_verbs;
mod logging;
mod output;
mod settings;
mod usage_tips;
mod verb_groups;

use std::process::ExitCode;

use args::Verb;
use commands::run::RunMode;
use commands::{
    bench, check, compare, control, demo, dev_cert, dispatch_program, health, man_pages,
    reference_pages, run, serve, top,
};

fn main() -> ExitCode {
    let verb = match args::parse_args(std::env::args_os()) {
        Ok(verb) => verb,
        Err(error) => return tokio_prefork::cli::report_clap_error(&error),
    };
    let result = match verb {
        Verb::Serve(flags) => serve::run_serve(flags),
        Verb::Run(flags) => run::run_program(flags, RunMode::Run),
        Verb::Dev(flags) => run::run_program(flags, RunMode::Dev),
        Verb::Check { flags, format } => check::run_check(flags, format),
        Verb::CheckRun { flags, format } => check::run_check_run(flags, format),
        Verb::DispatchProgram(flags) => dispatch_program::run_dispatch_program(flags),
        Verb::DevCert(call) => dev_cert::run_dev_cert(call),
        Verb::Control(call) => control::run_control(call),
        Verb::Top(call) => top::run_top(*call),
        Verb::Health(call) => health::run_health(call),
        Verb::Bench(call) => bench::run_bench(*call),
        Verb::Generate(call) => man_pages::run_generate(call),
        Verb::Reference(call) => reference_pages::run_reference(&call),
        Verb::Demo(call) => demo::run_demo(call),
        Verb::Compare(call) => compare::run_compare(call),
    };
    result.unwrap_or_else(|error| {
        tokio_prefork::report_failed_start(&error);
        output::print_error(&error);
        ExitCode::from(error.exit_status())
    })
}
