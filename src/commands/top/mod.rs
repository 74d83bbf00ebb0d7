//! `prefork top`: a live view of a running cluster in a terminal, over the control socket.
//!
//! It only reads. Samples of the status become a [`model::Model`]; the model is drawn into a buffer of cells; neither knows the
//! terminal.

mod actions;
mod batch;
mod details;
mod draw;
mod event_table;
mod format;
mod interactive;
mod model;
mod pool_table;
mod process_usage;
mod rates;
mod sample;
mod sampler;
mod shared_table;
mod summary;
mod table;
mod table_layout;
mod terminal;
#[cfg(test)]
mod test_support;
mod theme;
mod worker_table;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use super::control::ControlTarget;
use crate::output::print_error;
use model::{Model, View};
use sample::SampleSource;
use tokio_prefork::cli::parse_duration;
use tokio_prefork::{Result, exit};

const HELP: &str = "\
Press ? for the keys. The view only reads; `prefork reload`, `scale` and `stop` change a cluster. Without a terminal, give \
--batch, or use `prefork status`.

Exit status: 0 it was quit, 64 wrong command line or no terminal, 69 no primary answered.

Examples:
  prefork top
  prefork top --name greeter --sort req/s
  prefork top --batch -n 3 --interval 5s";

/// Arguments of `prefork top`.
#[derive(Debug, PartialEq)]
pub(crate) struct TopCall {
    target: ControlTarget,
    interval: Duration,
    is_batch: bool,
    iterations: Option<u64>,
    view: View,
    sort: Option<String>,
    filter: String,
}

/// Returns the definition of the verb `top`.
pub(crate) fn top_command() -> Command {
    let interval = Arg::new("interval")
        .long("interval")
        .short('d')
        .value_name("DURATION")
        .default_value("1s")
        .value_parser(parse_interval)
        .help("Time between samples, from 100ms to 1h");
    let batch = Arg::new("batch")
        .long("batch")
        .short('b')
        .action(ArgAction::SetTrue)
        .help("Print plain frames instead of using the terminal, each after an interval");
    let iterations = Arg::new("iterations")
        .long("iterations")
        .short('n')
        .value_name("N")
        .value_parser(value_parser!(u64).range(1..))
        .help("Exit after N samples or frames");
    let view = Arg::new("view")
        .long("view")
        .value_name("VIEW")
        .default_value(View::Workers.name())
        .value_parser(PossibleValuesParser::new(View::ALL.map(View::name)))
        .help("View to start with");
    let sort = Arg::new("sort")
        .long("sort")
        .value_name("COLUMN")
        .help("Column to sort by, such as cpu% or req/s [default: slot]");
    let filter = Arg::new("filter")
        .long("filter")
        .value_name("TEXT")
        .default_value("")
        .hide_default_value(true)
        .help("Show only rows that contain this text, in any case");
    Command::new("top")
        .about("Watch workers and requests in a terminal")
        .after_help(HELP)
        .args([interval, batch, iterations, view, sort, filter])
        .args(ControlTarget::args())
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    match interval {
        _ if interval < Duration::from_millis(100) => Err("give at least 100ms".to_string()),
        _ if interval > Duration::from_secs(3600) => Err("give at most 1h".to_string()),
        _ => Ok(interval),
    }
}

/// Reads the arguments of `top`.
pub(crate) fn parse_top(matches: &ArgMatches) -> Option<TopCall> {
    let view = matches.get_one::<String>("view")?;
    Some(TopCall {
        target: ControlTarget::from_matches(matches),
        interval: *matches.get_one("interval")?,
        is_batch: matches.get_flag("batch"),
        iterations: matches.get_one("iterations").copied(),
        view: View::ALL.into_iter().find(|known| known.name() == view)?,
        sort: matches.get_one::<String>("sort").cloned(),
        filter: matches.get_one::<String>("filter")?.clone(),
    })
}

/// Shows the view, or prints frames with `--batch`.
pub(crate) fn run_top(call: TopCall) -> Result<ExitCode> {
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if !call.is_batch && (!terminal::has_terminal() || is_dumb) {
        let why = if is_dumb { "TERM is dumb" } else { "standard output is not one" };
        print_error(&format_args!(
            "top needs a terminal, and {why}: use `prefork status`, or `prefork top --batch` for plain text"
        ));
        return Ok(ExitCode::from(exit::USAGE));
    }
    let mut source = SampleSource::new(call.target);
    // Before the screen is entered, so that a wrong name or path is an error like that of the other verbs.
    let mut model = Model::new(source.take_sample()?, call.view, call.interval);
    model.set_filter(call.filter);
    if let Some(column) = call.sort
        && !model.sort_by(&column)
    {
        let columns = model.table().columns;
        let titles: Vec<String> =
            columns.iter().map(|column| column.title.to_lowercase()).collect();
        print_error(&format_args!(
            "--sort {column}: the view {} is sorted by one of: {}",
            call.view.name(),
            titles.join(", ")
        ));
        return Ok(ExitCode::from(exit::USAGE));
    }
    match call.is_batch {
        true => batch::run_batch(model, source, call.iterations),
        false => interactive::run_interactive(model, source, call.iterations),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Verb};

    fn parse(line: &str) -> Result<TopCall, clap::Error> {
        args::parse_args(line.split(' ')).map(|verb| match verb {
            Verb::Top(call) => *call,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn arguments_are_parsed() {
        let call = parse("prefork top").expect("top");
        assert_eq!(
            (call.interval, call.view, call.is_batch),
            (Duration::from_secs(1), View::Workers, false)
        );
        let call =
            parse("prefork top -b -n 3 -d 500ms --view events --sort cpu% --name a").expect("top");
        assert_eq!((call.iterations, call.interval), (Some(3), Duration::from_millis(500)));
        assert_eq!(
            (call.view, call.sort.as_deref(), call.is_batch),
            (View::Events, Some("cpu%"), true)
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for wrong in ["-d 99ms", "-d 2h", "-d 0", "-n 0", "-n x", "--view cpu"] {
            parse(&format!("prefork top {wrong}")).expect_err(wrong);
        }
    }
}
