//! `prefork status`, `reload`, `scale`, `stop`, `upgrade`, `events` and `stack`: requests to a running primary.

mod certificate_lines;
mod control_target;
mod pool_lines;
mod request_lines;
pub(crate) mod shared_metrics_table;
pub(crate) mod status_table;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};

pub(crate) use control_target::ControlTarget;

use crate::args::parse_number;
use crate::output::{print_result, print_stdout};
use tokio_prefork::control::{ControlClient, Rescale, WorkerCountChange};
use tokio_prefork::text::printable;
use tokio_prefork::{Result, exit};

/// Refresh interval of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A control request and the primary to send it to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ControlCall {
    target: ControlTarget,
    verb: ControlVerb,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ControlVerb {
    Status { json: bool, watch: bool },
    Reload { wait: bool },
    Scale(Rescale),
    Stop { now: bool },
    Upgrade { wait: bool },
    Events { follow: bool, json: bool },
    Stack { of: StackOf, full: bool, json: bool },
}

/// The worker whose stacks are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StackOf {
    Worker(u64),
    Slot(u32),
}

/// Returns the definitions of the control verbs.
pub(crate) fn control_commands() -> Vec<Command> {
    let workers = Arg::new("workers")
        .value_name("[KIND=]N|+N|-N")
        .required(true)
        .allow_hyphen_values(true)
        .value_parser(parse_rescale)
        .help("New number of workers, or the change: +1, -1; consumer=2 scales a worker kind other than web");
    [
        Command::new("status")
            .about("Show the workers and their current requests")
            .after_help(
                "Examples:\n  prefork status\n  prefork status --watch\n  prefork status --json | jq '.workers[].pid'",
            )
            .arg(switch("json", "Print a JSON object"))
            .arg(switch("watch", "Refresh every second").conflicts_with("json")),
        Command::new("reload")
            .about("Replace all workers one by one, without downtime")
            .after_help(
                "The configuration file is read again; flags and variables stay those of the start.\n\n\
                 Examples:\n  prefork reload\n  prefork reload --no-wait\n  prefork check -c /etc/prefork.toml && prefork reload",
            )
            .arg(switch("no-wait", "Return when the reload has started")),
        Command::new("scale")
            .about("Change the number of workers")
            .after_help("Examples:\n  prefork scale 8\n  prefork scale -1\n  prefork scale consumer=2")
            .arg(workers),
        Command::new("stop")
            .about("Stop gracefully and wait until the primary has exited")
            .after_help("A second stop stops immediately.\n\nExamples:\n  prefork stop\n  prefork stop --now")
            .arg(switch("now", "Stop immediately: kill the workers without finishing requests")),
        Command::new("upgrade")
            .about("Upgrade in place to the binary installed at the same path")
            .after_help(
                "Returns when the workers of the new binary serve. If it does not start, the old one serves on.\n\n\
                 Examples:\n  prefork upgrade\n  prefork upgrade --no-wait",
            )
            .arg(switch("no-wait", "Return when the new binary has passed its check")),
        Command::new("events")
            .about("Print the last 1000 log events of the primary")
            .after_help("Examples:\n  prefork events\n  prefork events --follow\n  prefork events --follow --json | jq .message")
            .arg(switch("follow", "Keep printing new events").short('f'))
            .arg(switch("json", "Print one JSON object per line")),
        Command::new("stack")
            .about("Print where in the code the threads of a worker are")
            .after_help(
                "Needs no debugger, and does not stop the threads.\n\nExamples:\n  prefork stack 3\n  prefork stack --slot 0 --full",
            )
            .arg(
                Arg::new("worker")
                    .value_name("WORKER")
                    .value_parser(parse_number::<u64>)
                    .help("Id of the worker, as in prefork status"),
            )
            .arg(
                Arg::new("slot")
                    .long("slot")
                    .value_name("SLOT")
                    .value_parser(parse_number::<u32>)
                    .help("Slot whose worker is meant"),
            )
            .group(ArgGroup::new("which worker").args(["worker", "slot"]).required(true))
            .arg(switch("full", "Also print the frames of the server below the application"))
            .arg(switch("json", "Print a JSON object")),
    ]
    .map(|command| command.args(ControlTarget::args()))
    .into()
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Parses `4`, `+1`, `-1` or `consumer=2`.
fn parse_rescale(text: &str) -> Result<Rescale, String> {
    let Some((kind, number)) = text.split_once('=') else {
        return Ok(parse_change(text)?.into());
    };
    // Only kinds other than web may be scaled to 0.
    let change = if number == "0" { WorkerCountChange::To(0) } else { parse_change(number)? };
    Ok(Rescale { kind: Some(kind.to_string()), change })
}

fn parse_change(text: &str) -> Result<WorkerCountChange, String> {
    let signed = text.starts_with(['+', '-']);
    let change = match signed {
        true => text.parse().ok().filter(|by| *by != 0).map(WorkerCountChange::By),
        false => text.parse().ok().filter(|to| *to != 0).map(WorkerCountChange::To),
    };
    change.ok_or("give a number of workers from 1 on, or a change: +1, -1".to_string())
}

/// Reads the arguments of a control verb; `None` for other verbs.
pub(crate) fn parse_control(name: &str, matches: &ArgMatches) -> Option<ControlCall> {
    let flag = |name: &str| matches.get_flag(name);
    let verb = match name {
        "status" => ControlVerb::Status { json: flag("json"), watch: flag("watch") },
        "reload" => ControlVerb::Reload { wait: !flag("no-wait") },
        "scale" => ControlVerb::Scale(matches.get_one::<Rescale>("workers")?.clone()),
        "stop" => ControlVerb::Stop { now: flag("now") },
        "upgrade" => ControlVerb::Upgrade { wait: !flag("no-wait") },
        "stack" => {
            let worker = matches.get_one::<u64>("worker").copied().map(StackOf::Worker);
            let slot = matches.get_one::<u32>("slot").copied().map(StackOf::Slot);
            ControlVerb::Stack { of: worker.or(slot)?, full: flag("full"), json: flag("json") }
        }
        "events" => ControlVerb::Events { follow: flag("follow"), json: flag("json") },
        _ => return None,
    };
    Some(ControlCall { target: ControlTarget::from_matches(matches), verb })
}

/// Sends the request to the primary and prints the response.
pub(crate) fn run_control(call: ControlCall) -> Result<ExitCode> {
    if let ControlVerb::Status { watch: true, .. } = call.verb {
        return watch_status(&call);
    }
    let mut client = call.target.connect()?.client;
    let summary = match call.verb {
        ControlVerb::Status { json, .. } => {
            let mut status = client.status()?;
            status.read_process_usage();
            return print_result(&match json {
                true => status.to_json() + "\n",
                false => status_table::format_status(&status),
            });
        }
        ControlVerb::Events { follow, json } => return print_events(client, follow, json),
        ControlVerb::Stack { of, full, json } => {
            let stack = match of {
                StackOf::Worker(id) => client.stack(id)?,
                StackOf::Slot(slot) => client.stack_of_slot(slot)?,
            };
            return print_result(&match json {
                true => stack.to_json() + "\n",
                false => stack.display(full).to_string(),
            });
        }
        ControlVerb::Stop { now } => return stop_and_wait(client, now),
        ControlVerb::Reload { wait: true } => client.reload()?,
        ControlVerb::Reload { wait: false } => client.reload_without_waiting()?,
        ControlVerb::Scale(rescale) => client.scale(rescale)?,
        ControlVerb::Upgrade { wait: true } => client.upgrade()?,
        ControlVerb::Upgrade { wait: false } => client.upgrade_without_waiting()?,
    };
    print_result(&printable_line(&summary))
}

/// Prints the status every second until the output is closed. Reconnects each time, to survive restarts of the server.
fn watch_status(call: &ControlCall) -> Result<ExitCode> {
    loop {
        let status = call.target.connect()?.client.status()?;
        // Moves the cursor home and clears only the rest of each line and of the screen, to avoid flicker.
        let table = status_table::format_status(&status).replace('\n', "\x1b[K\n");
        if !print_stdout(&format!("\x1b[H{table}\x1b[J"))? {
            return Ok(ExitCode::from(exit::OK));
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn stop_and_wait(mut client: ControlClient, now: bool) -> Result<ExitCode> {
    let summary = client.stop(now)?;
    print_result(&printable_line(&summary))?;
    client.wait_for_exit()?;
    print_result("stopped\n")
}

fn print_events(client: ControlClient, follow: bool, json: bool) -> Result<ExitCode> {
    for event in client.events(follow, 0)? {
        let event = event?;
        let is_open = print_stdout(&match json {
            true => event.to_json() + "\n",
            false => status_table::format_event(&event),
        })?;
        if !is_open {
            break;
        }
    }
    Ok(ExitCode::from(exit::OK))
}

fn printable_line(text: &str) -> String {
    format!("{}\n", printable(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Verb};

    fn call(line: &str) -> ControlCall {
        match args::parse_args(line.split(' ')).expect(line) {
            Verb::Control(call) => call,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn control_verbs_are_parsed() {
        for (line, verb) in [
            ("prefork status", ControlVerb::Status { json: false, watch: false }),
            ("prefork status --json", ControlVerb::Status { json: true, watch: false }),
            ("prefork reload --no-wait", ControlVerb::Reload { wait: false }),
            ("prefork scale 4", ControlVerb::Scale(WorkerCountChange::To(4).into())),
            ("prefork scale +1", ControlVerb::Scale(WorkerCountChange::By(1).into())),
            ("prefork scale -1", ControlVerb::Scale(WorkerCountChange::By(-1).into())),
            ("prefork stop --now", ControlVerb::Stop { now: true }),
            ("prefork upgrade", ControlVerb::Upgrade { wait: true }),
            ("prefork upgrade --no-wait", ControlVerb::Upgrade { wait: false }),
            ("prefork events -f --json", ControlVerb::Events { follow: true, json: true }),
        ] {
            assert_eq!(call(line).verb, verb, "{line}");
        }
        let call = call("prefork scale -2 --control /run/x.sock");
        assert_eq!(
            (call.target.control, call.verb),
            (Some("/run/x.sock".into()), ControlVerb::Scale(WorkerCountChange::By(-2).into()))
        );
    }

    #[test]
    fn invalid_worker_counts_are_rejected() {
        for text in ["0", "+0", "-0", "+", "many", "1.5", "99999999999", ""] {
            assert!(parse_rescale(text).is_err(), "{text}");
        }
        for text in ["consumer=", "consumer=many", "consumer=+0"] {
            assert!(parse_rescale(text).is_err(), "{text}");
        }
        let rescaled = parse_rescale("consumer=0").expect("0 is valid");
        assert_eq!(
            (rescaled.kind.as_deref(), rescaled.change),
            (Some("consumer"), WorkerCountChange::To(0))
        );
    }
}
