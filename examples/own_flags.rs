//! A program with the flags, variables and TOML file of `prefork serve`, and with keys and flags of its own.
//!
//! `greeting` is a key like those of the server: a flag, the variable `OWN_FLAGS_GREETING` and a line of the file, read
//! again on SIGHUP. `--shout` is a flag of this program's clap parser.
//!
//! ```text
//! cargo run --example own_flags -- --bind 127.0.0.1:3000 --workers 2 --greeting hi --shout
//! OWN_FLAGS_GREETING=hi cargo run --example own_flags -- --config own_flags.toml --check-config
//! curl http://127.0.0.1:3000/
//! cargo run -- status --name own_flags
//! ```

use axum::Router;
use axum::routing::get;
use clap::Parser;
use tokio_prefork::cli::{self, AppKeys, Field, Key, ServerArgs};
use tokio_prefork::{Main, Result, Worker};

#[derive(Parser)]
#[command(version, about = "Greets whoever asks")]
struct Args {
    #[command(flatten)]
    server: ServerArgs<Greeting>,
    /// Greet in capitals
    #[arg(long)]
    shout: bool,
}

/// The keys of this program beside those of the server.
#[derive(Clone)]
struct Greeting {
    text: String,
}

impl Default for Greeting {
    fn default() -> Greeting {
        Greeting { text: "hello".to_string() }
    }
}

impl AppKeys for Greeting {
    const KEYS: &'static [Key<Greeting>] = &[Key::new(
        "greeting",
        "Greeting",
        Field::Text {
            value_name: "TEXT",
            parse: |text| match text.trim() {
                "" => Err("is empty: give a greeting".to_string()),
                text => Ok(text.to_string()),
            },
            field: |greeting| &mut greeting.text,
        },
        "How to greet",
    )];
}

fn main() -> Main {
    run(cli::parse()).into()
}

fn run(args: Args) -> Result<()> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let shout = args.shout;
    args.server.into_cluster("own_flags")?.serve(move |worker: Worker| async move {
        // A reload starts workers with the new configuration, so this is the current greeting.
        let greeting = worker.config().app_settings::<Greeting>().cloned().unwrap_or_default();
        let text = if shout { greeting.text.to_uppercase() } else { greeting.text };
        Ok(Router::new().route("/", get(move || async move { format!("{text}\n") })))
    })
}
