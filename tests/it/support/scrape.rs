//! The metrics of a server, over an admin listener on a Unix socket.

use std::collections::BTreeMap;

use super::command::ProcessBuilder;
use super::http::{Address, Client};
use super::{Server, wait};

pub const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3";
pub const PLAIN_TEXT: &str = "text/plain;version=0.0.4";

/// One scrape: the value of each series, by its name and labels, and the type of each metric.
#[derive(Debug, Default)]
pub struct Scrape {
    pub series: BTreeMap<String, f64>,
    pub types: BTreeMap<String, String>,
}

impl Scrape {
    fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect(line);
                scrape.types.insert(name.to_string(), kind.to_string());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect(line);
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(scrape.series.insert(series.to_string(), value).is_none(), "twice: {line}");
            }
        }
        assert!(scrape.series.len() > 40, "too few series: {text}");
        scrape
    }

    pub fn value(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or_else(|| panic!("no {series} in {self:?}"))
    }

    pub fn sum(&self, name: &str) -> f64 {
        let prefix = format!("{name}{{");
        let found = self.series.iter().filter(|(series, _)| series.starts_with(&prefix));
        found.map(|(_, value)| value).sum()
    }

    /// Returns the sum of the series of `NAME`, or of those of `NAME{LABEL="VALUE"}` with that label; of a histogram, its observations.
    pub fn total(&self, metric: &str) -> f64 {
        let (name, label) = metric.split_once('{').unwrap_or((metric, ""));
        let label = label.trim_end_matches('}');
        let is_histogram = self.types.get(name).is_some_and(|kind| kind == "histogram");
        let name = if is_histogram { format!("{name}_count") } else { name.to_string() };
        let of_name = self.series.iter().filter(|(series, _)| {
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.contains(label)
        });
        of_name.map(|(_, value)| value).sum()
    }

    /// Returns the series that may only grow: counters, and the buckets, counts and sums of histograms.
    pub fn growing(&self) -> impl Iterator<Item = (&String, f64)> {
        let suffixes = ["_total", "_bucket", "_count", "_sum"];
        let is_growing = move |series: &str| {
            let name = series.split('{').next().unwrap_or_default();
            suffixes.iter().any(|suffix| name.ends_with(suffix))
        };
        self.series.iter().filter(move |one| is_growing(one.0)).map(|(name, value)| (name, *value))
    }

    /// Checks that buckets are cumulative and that the last one is the count.
    pub fn assert_consistent_histograms(&self) {
        for name in self.types.iter().filter(|one| one.1 == "histogram").map(|one| one.0) {
            let mut buckets: Vec<(f64, f64)> = self
                .series
                .iter()
                .filter_map(|(series, value)| {
                    let rest = series.strip_prefix(&format!("{name}_bucket{{le=\""))?;
                    Some((rest.strip_suffix("\"}")?.parse().expect("a bound"), *value))
                })
                .collect();
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{name}: {buckets:?}");
            let last = buckets.last().unwrap_or_else(|| panic!("{name} has no buckets"));
            assert_eq!((last.0, last.1), (f64::INFINITY, self.value(&format!("{name}_count"))));
        }
    }
}

/// Returns the address of the admin listener of a server that [`start`] or [`start_program`] has started.
pub fn admin_socket(server: &Server) -> Address {
    Address::Unix(server.dir().join("admin.sock"))
}

/// Starts a server with an admin listener on a Unix socket.
#[track_caller]
pub fn start(builder: ProcessBuilder) -> Server {
    with_admin(builder).start()
}

/// Adds an admin listener to `prefork serve` or `prefork run`.
pub fn with_admin(builder: ProcessBuilder) -> ProcessBuilder {
    let socket = format!("unix:{}", builder.dir().join("admin.sock").display());
    builder.args(["--admin".to_string(), socket])
}

/// Starts a program of `tests/programs` with an admin listener on a Unix socket.
#[track_caller]
pub fn start_program(builder: ProcessBuilder) -> Server {
    let socket = builder.dir().join("admin.sock");
    builder.args([format!("admin=unix:{}", socket.display())]).start()
}

/// Scrapes over a connection, and tells whether it stays open.
pub fn scrape_over(client: &mut Client, accept: &str) -> Result<(Scrape, bool), String> {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n");
    let response = client.send_and_read(request).map_err(|e| format!("{e:?}"))?;
    match response.status {
        200 => {
            let is_kept = response.header("connection") != Some("close");
            Ok((Scrape::parse(response.text()), is_kept))
        }
        status => Err(format!("status {status}: {}", response.text())),
    }
}

/// Scrapes once.
#[track_caller]
pub fn scrape(server: &Server) -> Scrape {
    // The admin process may not have started yet, or be replaced at the moment.
    let mut client =
        wait::wait_until_some("the admin listener", || Client::connect(&admin_socket(server)).ok());
    scrape_over(&mut client, PLAIN_TEXT).expect("a scrape").0
}
